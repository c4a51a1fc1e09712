"""What every checkpoint is: a mapping from parameter name to tensor that reads one tensor at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from espalier._errors import CheckpointError

Kind = Literal["weight", "norm", "embedding", "buffer", "scale", "other"]

REAL_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""The dtypes one can prune. Float8 stores values that are scaled elsewhere: carried through untouched."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Args:
        shape: its shape; `()` is a scalar.
        dtype: its element type.
        kind: what it is for: "norm" and "embedding" are known from the module, guessed from the name in a
            file; "buffer" is everything that training does not touch, and every tensor that is not floating;
            "scale" is what a quantized or normalized weight is multiplied by, which no scope selects; "other" is a
            parameter that acts on one channel at a time, such as a gain.
        why: what the tensor is instead of a weight, as a plural noun; "" for tensors of an ordinary layer.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind = "weight"
    why: str = ""

    @property
    def entries(self) -> int:
        """Number of entries, a Python int at any size."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries in memory."""
        return self.entries * self.dtype.itemsize

    @property
    def floating(self) -> bool:
        """True for float64, float32, float16 and bfloat16; not for float8, which is carried through."""
        return self.dtype in REAL_DTYPES


@dataclass(frozen=True)
class Layout:
    """Which file holds which tensors, so that a checkpoint can be written back in the shape it came.

    Args:
        folder: the folder of a sharded or Hugging Face checkpoint; None for one file.
        files: file name -> names of the tensors in it, in file order.
        index: name of the JSON file that says which shard holds a tensor; None without one.
    """

    folder: Path | None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    index: str | None = None


class AbstractCheckpoint(Mapping[str, Tensor], ABC):
    """Parameter name -> tensor, read on access and never kept.

    `checkpoint[name]` reads that tensor now; `list(checkpoint)` and `checkpoint.infos` read nothing. Tensors
    that are the same memory under several names appear once, under the first name; the others are in
    `aliases`.

    Attributes:
        path: the file or folder; None for what lives in memory.
        infos: name -> shape, dtype and kind, in file order.
        aliases: dropped name -> the name that stands for it.
        metadata: strings stored beside the tensors.
        layout: how the tensors lie in files; None for what lives in memory.
        notes: sentences worth reading about what was read and what was left.
        guessed: True if the kinds come from names and shapes, as in a file.
    """

    path: Path | None
    infos: dict[str, TensorInfo]
    aliases: dict[str, str]
    metadata: dict[str, str]
    layout: Layout | None
    notes: tuple[str, ...] = ()
    guessed: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, whether file, index or folder was opened; () in memory."""
        if self.path is None or self.layout is None:
            return ()
        folder = self.path.parent if self.layout.folder is None else self.layout.folder
        return tuple(folder / file for file in self.layout.files)

    @property
    def bytes_on_disk(self) -> int:
        """Size of exactly these files together, headers included; 0 in memory.

        Raises:
            CheckpointError: one of them is gone.
        """
        try:
            return sum(file.stat().st_size for file in self.files)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be measured: {error.strerror or error}") from None

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""

    @abstractmethod
    def chunks(self, name: str, entries: int = 1 << 20) -> Iterator[Tensor]:
        """The entries in order, as flat pieces of at most `entries`; memory is bounded by a piece."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor, read now; aliases share the storage of the tensor they stand for."""
        tensors = {name: self[name] for name in self}
        return tensors | {alias: tensors[name] for alias, name in self.aliases.items()}
