"""What a network named on the command line takes: the shape of an input, the number of classes, an example."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier._errors import EspalierError

if TYPE_CHECKING:
    from torch import nn

    from espalier.checkpoint import AbstractCheckpoint
    from espalier.export import Example


def shape(word: str) -> tuple[int, ...]:
    """`3x32x32` or `3,32,32` as (3, 32, 32); the batch is not part of it."""
    parts = re.split(r"[x,×]", word.strip())
    if all(part.strip().isdigit() and int(part) > 0 for part in parts):
        return tuple(int(part) for part in parts)
    raise EspalierError(
        f"--input-shape must be the sizes of one input without the batch, such as 3x32x32, got {word!r}"
    )


def known_shape(model: str) -> tuple[int, ...] | None:
    """The shape of one input of a network that Espalier knows by name; None of others."""
    if model.startswith("torchvision:"):
        return (3, 299, 299) if model.endswith("inception_v3") else (3, 224, 224)
    if model in ("lenet5", "digits_cnn"):
        return (1, 28, 28) if model == "lenet5" else (1, 8, 8)
    return (3, 32, 32) if re.fullmatch(r"resnet\d+|vgg16|wrn\d+x\d+(\+bias)?", model) else None


def classes(checkpoint: "AbstractCheckpoint") -> int:
    """Logits of a classifier, read off its last matrix."""
    rows = [info.shape[0] for info in checkpoint.infos.values() if info.floating and len(info.shape) == 2]
    return rows[-1] if rows else 10


def example(model: str, network: "nn.Module", given: str | None) -> "Example":
    """A batch for a network: by `--input-shape`, by its name, or as its Hugging Face folder says.

    Raises:
        EspalierError: nothing says what it takes.
    """
    from espalier.export import hf_example, image_example

    sizes: Sequence[int] | None = shape(given) if given else None
    if model.startswith("hf:"):
        folder = model.removeprefix("hf:")
        if sizes is None or len(sizes) == 1:
            return hf_example(network, folder, sizes[0] if sizes else None)
        return hf_example(network, folder).like(sizes)
    sizes = sizes or known_shape(model)
    if sizes is None:
        raise EspalierError(
            f"--model {model}: the shape of its inputs is not known: give --input-shape, such as 3x32x32"
        )
    return image_example(sizes)
