"""What a network is traced and checked with: tensors, their names, and which of their axes may change."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError

BATCH, SEQUENCE = "batch", "sequence"
_ROWS = 2
_TEXTS = (
    "A tree trained flat against a wall,",
    "pruned along the directions in which it does not mind at all.",
)


@dataclass(frozen=True)
class Example:
    """Inputs of a network.

    Args:
        tensors: one batch.
        names: the arguments of `forward` that they are; None if they are given by position.
        axes: for each tensor, axis -> name of a size that may change; equal names are equal sizes.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    axes: tuple[Mapping[int, str], ...]

    @property
    def arguments(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of a call."""
        if self.names is None:
            return self.tensors, {}
        return (), dict(zip(self.names, self.tensors, strict=True))

    def labels(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the inputs: their own, or those that `forward` gives them."""
        if self.names is not None:
            return self.names
        parameters = [
            name
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        spare = (f"input_{i}" for i in range(len(self.tensors)))
        return tuple([*parameters, *spare][: len(self.tensors)])

    def with_rows(self, rows: int) -> "Example":
        """The first so many rows of the batch, repeated from the first one where there are too few."""
        tensors = [
            tensor.index_select(0, torch.arange(rows, device=tensor.device) % len(tensor))
            if axes.get(0) == BATCH
            else tensor
            for tensor, axes in zip(self.tensors, self.axes, strict=True)
        ]
        return Example(tuple(tensors), self.names, self.axes)

    def like(self, sizes: Sequence[int], *, seed: int = 0) -> "Example":
        """Gaussian inputs of other sizes, if there is one tensor of numbers with as many axes.

        Raises:
            EspalierError: there is not.
        """
        (first, *others) = self.tensors
        if others or not first.is_floating_point() or first.ndim != len(sizes) + 1:
            names = ", ".join(self.names or ())
            raise EspalierError(
                f"inputs of shape {tuple(sizes)} do not fit {names or 'the example'}: {self.shapes}"
            )
        generator = torch.Generator().manual_seed(seed)
        return Example((torch.randn(self.rows, *sizes, generator=generator),), self.names, self.axes)

    @property
    def rows(self) -> int:
        """Size of the batch; 1 if no tensor has such an axis."""
        batches = zip(self.tensors, self.axes, strict=True)
        return next((len(tensor) for tensor, axes in batches if axes.get(0) == BATCH), 1)

    @property
    def shapes(self) -> str:
        """The shapes, for messages."""
        return ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)


def as_example(value: Any) -> Example:
    """A tensor, several, or several by name; the first axis of each is the batch.

    Raises:
        EspalierError: it is none of these, or a tensor has no axis or no row.
    """
    if isinstance(value, Example):
        example = value
    elif isinstance(value, Tensor):
        example = Example((value,), None, ({0: BATCH},))
    elif isinstance(value, Mapping):
        example = Example(tuple(value.values()), tuple(value), ({0: BATCH},) * len(value))
    elif isinstance(value, tuple):
        example = Example(value, None, ({0: BATCH},) * len(value))
    else:
        raise EspalierError(
            f"the example must be a tensor, a tuple or a dict of tensors, got {type(value).__name__}"
        )
    if not example.tensors or not all(isinstance(t, Tensor) and t.ndim and len(t) for t in example.tensors):
        raise EspalierError(
            "every tensor of the example needs a batch as its first axis, with a row at least"
        )
    return example


def image_example(shape: Sequence[int], *, seed: int = 0) -> Example:
    """A batch of Gaussian inputs, reproducible from the seed.

    Args:
        shape: of one input without the batch, for instance (3, 32, 32).
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    return Example((torch.randn(_ROWS, *shape, generator=generator),), None, ({0: BATCH},))


def hf_example(model: nn.Module, folder: str | Path, length: int | None = None, *, seed: int = 0) -> Example:
    """A batch for a network of transformers: token ids with their attention mask, or images.

    The ids are those of two short sentences if the folder has a tokenizer and no length is asked for; else they
    are drawn from the vocabulary, and the last quarter of the second row is masked.

    Args:
        model: has a `config`, as networks of transformers have.
        folder: where its tokenizer is, if there is one.
        length: tokens in a row.
        seed: of the drawn ids.

    Raises:
        EspalierError: it takes neither token ids nor images.
    """
    takes, config = set(inspect.signature(model.forward).parameters), getattr(model, "config", None)
    generator = torch.Generator().manual_seed(seed)
    if "pixel_values" in takes and "input_ids" not in takes:
        size, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
        height, width = size if isinstance(size, tuple | list) else (size, size)
        images = torch.randn(_ROWS, channels, height, width, generator=generator)
        return Example((images,), ("pixel_values",), ({0: BATCH},))
    if "input_ids" not in takes:
        raise EspalierError(
            f"{type(model).__name__} takes neither input_ids nor pixel_values: give its inputs in Python, "
            "espalier.export.to_onnx(model, example, path)"
        )
    ids = mask = None
    if length is None:
        ids, mask = _tokens(folder)
    if ids is None or mask is None:
        length = length or 16
        ids = torch.randint(0, int(getattr(config, "vocab_size", 2)), (_ROWS, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, length - length // 4 :] = 0
    tensors = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: tensor for name, tensor in tensors.items() if name in takes}
    return Example(tuple(tensors.values()), tuple(tensors), ({0: BATCH, 1: SEQUENCE},) * len(tensors))


def _tokens(folder: str | Path) -> tuple[Tensor | None, Tensor | None]:
    """Two tokenized sentences, or nothing where there is no tokenizer that works offline."""
    if not any((Path(folder) / file).is_file() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return None, None
    try:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer
        found = tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)(
            list(_TEXTS), padding=True, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]
    except Exception:  # tokenizers fail in many ways, and ids can be drawn instead
        return None, None
