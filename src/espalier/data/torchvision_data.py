"""Data sets that torchvision reads from a folder: MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN, ..."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier._errors import EspalierError, near
from espalier.data._base import (
    IMAGENET,
    Augmentation,
    Dataset,
    Normalization,
    Options,
    data_folder,
    in_memory,
    split_rows,
)

GRAY = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS")
"""Gray data sets: no normalization by default ("ToTensor only", as in the LeNet5 demonstration)."""

_FLIPS = ("FashionMNIST", "CIFAR10", "CIFAR100", "STL10")
_SPLIT_WORDS = ("SVHN", "STL10")
_NAMES = (*GRAY, "CIFAR10", "CIFAR100", *_SPLIT_WORDS)


def torchvision_data(name: str, data: str | Path | None = None, options: Options | None = None) -> Dataset:
    """Load `torchvision.datasets.<name>` from disk (it never downloads).

    Default normalization: none for the gray data sets, `IMAGENET` for color. Augmentation: crop with padding
    2 (gray) or 4, and mirror images for FashionMNIST, CIFAR and STL10.

    Args:
        name: MNIST, FashionMNIST, KMNIST, QMNIST, USPS, CIFAR10, CIFAR100, SVHN or STL10.
        data: the root torchvision expects; None takes `ESPALIER_DATA`.
        options: normalization, validation fraction, limit.

    Raises:
        EspalierError: unknown name, torchvision missing, or the files are not there (says how to get them).
    """
    if name not in _NAMES:
        raise EspalierError(
            f"torchvision data set {name!r} is not one of {', '.join(_NAMES)}.{near(name, _NAMES)}"
        )
    try:
        import torchvision.datasets as sets
    except ImportError:
        raise EspalierError(f"{name} needs torchvision: pip install 'espalier[train]'") from None
    options = options or Options()
    root = data_folder(data)
    train, test = (_read(getattr(sets, name), name, root, training) for training in (True, False))
    gray = name in GRAY
    return in_memory(
        name,
        _tensors(train),
        _tensors(test),
        split_rows(len(train), len(test), options),
        classes=tuple(getattr(train, "classes", None) or map(str, range(10))),
        source=f"torchvision.datasets.{name}",
        options=options,
        normalization=Normalization() if gray else IMAGENET,
        augmentation=Augmentation(padding=2 if gray else 4, flip=name in _FLIPS),
    )


def _read(kind: Any, name: str, root: Path, training: bool) -> Any:
    which = {"split": "train" if training else "test"} if name in _SPLIT_WORDS else {"train": training}
    try:
        return kind(root, download=False, **which)
    except RuntimeError as error:
        how = f"""python -c "import torchvision.datasets as d; d.{name}({str(root)!r}, download=True)\""""
        raise EspalierError(
            f"{name} is not in {root} ({str(error).splitlines()[0]}): get it with {how}, or set "
            "ESPALIER_DATA or --data-root to the folder that has it"
        ) from None


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """Images as uint8 (N, C, H, W) and labels, whichever way the class keeps them."""
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(), torch.as_tensor(np.asarray(labels)).long()
