"""One tensor at rest: where its entries lie and how to read them without holding more than asked for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from espalier._errors import CheckpointError, near
from espalier.checkpoint._base import AbstractCheckpoint, Layout, TensorInfo
from espalier.checkpoint.kinds import Known, guess_kinds


class AbstractStored(ABC):
    """One tensor at rest."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @abstractmethod
    def pieces(self, entries: int) -> Iterator[Tensor]:
        """The entries in row-major order as flat tensors of at most `entries`."""

    @abstractmethod
    def read(self) -> Tensor:
        """The whole tensor."""


@dataclass(frozen=True)
class Resident(AbstractStored):
    """A tensor that is in memory already; reading gives the tensor itself, no copy."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Dtype of the tensor."""
        return self.tensor.dtype

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Slices of the flattened tensor."""
        yield from torch.split(self.tensor.reshape(-1), entries)

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.tensor


@dataclass(frozen=True)
class Raw(AbstractStored):
    """Contiguous little-endian entries in a file.

    Read by plain reads into our own buffer: pages of a memory map would count as resident memory, and a file
    that is cut while we look at it would kill the process instead of raising.

    Args:
        path: the file.
        name: the tensor's name, for messages.
        offset: byte in the file where the entries begin.
        shape: shape of the tensor.
        dtype: dtype of the entries.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Consecutive pieces, one read each."""
        if not self.entries:
            return
        with open_file(self.path) as file:
            file.seek(self.offset)
            for start in range(0, self.entries, entries):
                piece = torch.empty(min(entries, self.entries - start), dtype=self.dtype)
                self._fill(file, piece)
                yield piece

    def read(self) -> Tensor:
        """The whole tensor in one read."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if self.entries:
            with open_file(self.path) as file:
                file.seek(self.offset)
                self._fill(file, tensor)
        return tensor

    def _fill(self, file: BinaryIO, tensor: Tensor) -> None:
        need = tensor.numel() * tensor.itemsize
        found = read_into(file, tensor)
        if found < need:
            raise CheckpointError(
                f"{self.path}: tensor {self.name!r} needs {need} more bytes, but the file ended after "
                f"{found}; the file was cut while it was read, copy it again"
            )


def read_into(file: BinaryIO, tensor: Tensor) -> int:
    """Fill a contiguous tensor from a file; returns the bytes read, fewer only at the end of the file."""
    view = as_bytes(tensor)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.view(-1).view(torch.uint8).numpy().data


def open_file(path: Path) -> BinaryIO:
    """Open for unbuffered reading; every failure is a CheckpointError that names the file."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from None


class StoredCheckpoint(AbstractCheckpoint):
    """The one kind of checkpoint: a table of stored tensors, whatever file, folder or object they lie in.

    Args:
        stored: name -> where the tensor lies, in order.
        path: the file or folder, None in memory.
        aliases: dropped name -> the name that stands for it.
        metadata: strings stored beside the tensors.
        kinds: kind of each tensor; guessed from the names where absent.
        layout: how the tensors lie in files.
        notes: sentences worth reading about what was read and what was left.
    """

    def __init__(
        self,
        stored: Mapping[str, AbstractStored],
        *,
        path: Path | None = None,
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        kinds: Mapping[str, Known] | None = None,
        layout: Layout | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._stored = dict(stored)
        self.path = path
        self.aliases = dict(aliases or {})
        self.metadata = dict(metadata or {})
        self.layout = layout
        self.notes = notes
        self.guessed = kinds is None
        if kinds is None:
            shapes = {name: at.shape for name, at in stored.items()}
            kinds = guess_kinds(shapes, {name: at.dtype for name, at in stored.items()})
        self.infos = {name: TensorInfo(at.shape, at.dtype, *kinds[name]) for name, at in stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._at(name).read()

    def chunks(self, name: str, entries: int = 1 << 20) -> Iterator[Tensor]:
        """The entries of a tensor in order, as flat pieces of at most `entries`."""
        if entries < 1:
            raise ValueError(f"`entries` must be at least 1, got {entries}")
        return self._at(name).pieces(entries)

    def stored(self, name: str) -> AbstractStored:
        """Where a tensor lies."""
        return self._at(name)

    def _at(self, name: str) -> AbstractStored:
        if name not in self._stored:
            raise KeyError(f"no tensor {name!r} in this checkpoint.{near(name, self._stored)}")
        return self._stored[name]
