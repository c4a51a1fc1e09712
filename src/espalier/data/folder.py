"""Image folders, ImageNet-like: train/<class>/*.jpg and val/<class>/*.jpg, read while training."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.data._base import (
    IMAGENET,
    AbstractSplit,
    Batch,
    Dataset,
    Normalization,
    Options,
    data_folder,
    provenance,
    split_rows,
)


def image_folder(
    folder: str | Path,
    options: Options | None = None,
    *,
    data: str | Path | None = None,
    size: int = 224,
    workers: int = 4,
) -> Dataset:
    """Read an image folder with `train/` and `val/` (or `test/`), one sub-folder per class.

    Evaluation: shorter side to `size * 8 / 7`, center crop. Augmentation: a random part (8 to 100 % of the
    area, aspect 3/4 to 4/3) resized to `size`, mirrored half of the time; drawn from (seed, epoch, index), so
    neither the number of workers nor a resume changes it. Default normalization: `IMAGENET`.

    Args:
        folder: the folder, or its name inside the data folder.
        options: normalization, validation fraction, limit.
        data: the data folder; None takes `ESPALIER_DATA`.
        size: side of the inputs in pixels.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        EspalierError: a folder is missing, the two have different classes, or torchvision is not installed.
    """
    try:
        from torchvision.datasets import ImageFolder
    except ImportError:
        raise EspalierError("image folders need torchvision: pip install 'espalier[train]'") from None
    options = options or Options()
    root = Path(folder)
    if not root.is_dir():
        root = data_folder(data) / folder
    held = next((root / word for word in ("val", "test") if (root / word).is_dir()), None)
    if held is None or not (root / "train").is_dir():
        raise EspalierError(
            f"{root} is no image folder: it needs train/<class>/ and val/<class>/ (or test/); set "
            "ESPALIER_DATA or --data-root to the folder that holds it"
        )
    try:
        train, test = ImageFolder(str(root / "train")), ImageFolder(str(held))
    except FileNotFoundError as error:
        raise EspalierError(f"{root} is no image folder: {str(error).splitlines()[0]}") from None
    if train.classes != test.classes:
        raise EspalierError(
            f"{root / 'train'} and {held} have different classes: the sub-folders must be the same"
        )
    rows = split_rows(len(train), len(test), options)
    normalization = options.normalization or IMAGENET
    splits = [
        FolderSplit(name, tuple(source.samples[i] for i in chosen.tolist()), size, normalization, workers)
        for name, source, chosen in zip(
            ("train", "validation", "test"), (train, train, test), rows, strict=True
        )
    ]
    source = provenance(f"image folder {root.name}, {size} pixels", rows, options)
    return Dataset(root.name, splits[0], splits[1], splits[2], tuple(train.classes), (3, size, size), source)


@dataclass(frozen=True, eq=False)
class FolderSplit(AbstractSplit):
    """Files decoded when their batch is due.

    Args:
        name: "train", "validation" or "test".
        samples: (file, label) pairs.
        size: side of the inputs in pixels.
        normalization: applied to inputs in [0, 1].
        workers: processes that decode.
    """

    name: str
    samples: Sequence[tuple[str, int]] = field(repr=False)
    size: int
    normalization: Normalization
    workers: int
    labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "labels", torch.tensor([label for _, label in self.samples], dtype=torch.int64)
        )

    @cached_property
    def _digest(self) -> str:
        """Class and file names and labels; the images' bytes are not read."""
        state = hashlib.blake2b(f"{self.size},{self.normalization}".encode())
        for file, label in self.samples:
            state.update(f"{Path(file).parent.name}/{Path(file).name},{label};".encode())
        return state.hexdigest()[:16]

    @property
    def digest(self) -> str:  # noqa: D102
        return self._digest

    def take(self, count: int) -> "FolderSplit":  # noqa: D102
        return replace(self, samples=self.samples[:count])

    def to(self, device: torch.device) -> "FolderSplit":  # noqa: D102
        return self

    def _load(self, rows: list[Tensor], seed: int | None, epoch: int, augment: bool) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        reader = _Reader(self.samples, self.size, (seed or 0, epoch) if augment else None)
        loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(
                0
            ),  # a loader without one draws from the global generator
        )
        for x, y in loader:
            yield self.normalization(x.to(torch.float32).div_(255)), y


@dataclass(frozen=True)
class _Reader:
    """Map-style data set for the loader's workers; uint8 (3, size, size) and the label."""

    samples: Sequence[tuple[str, int]]
    size: int
    draw: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file, label = self.samples[index]
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise EspalierError(f"{file} cannot be decoded: {error}") from None
        image = (
            _center(image, self.size) if self.draw is None else _random(image, self.size, (*self.draw, index))
        )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), label


def _center(image: Any, size: int) -> Any:
    """Shorter side to size * 8 / 7, then the center."""
    w, h = image.size
    scale = size * 8 / 7 / min(w, h)
    image = image.resize((max(size, round(w * scale)), max(size, round(h * scale))), resample=2)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def _random(image: Any, size: int, key: tuple[int, int, int]) -> Any:
    """A random part of random aspect, resized; ten tries, then the largest centered square."""
    rng = np.random.default_rng([part & 0xFFFFFFFF for part in key])
    w, h = image.size
    side = min(w, h)
    box = ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)
    for _ in range(10):
        area, aspect = w * h * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wide <= w and 0 < high <= h:
            left, top = int(rng.integers(w - wide + 1)), int(rng.integers(h - high + 1))
            box = (left, top, left + wide, top + high)
            break
    image = image.resize((size, size), resample=2, box=box)
    return image.transpose(0) if rng.random() < 0.5 else image
