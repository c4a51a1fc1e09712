"""The sparse format: tensors as mask and values, encoded and decoded.

`docs/sparse-format.md` is the specification; where they lie in a file is for `sparse_map`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint._base import REAL_DTYPES
from espalier.checkpoint.codec import (
    BLOCK,
    CodecError,
    Packing,
    count_blocks,
    decode_mask,
    deflate,
    encode_blocks,
    mask_length,
)
from espalier.checkpoint.stored import AbstractStored, Raw, open_file, read_into

_SMALLEST = 256  # entries below which nothing is tried
_WORTH = 256  # bytes that must be saved: about what the first sparse tensor of a file costs elsewhere in it
_TOUCHED = 64  # entries for each stored one that are cleared without being asked for
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Encoded:
    """A tensor as mask and values.

    Args:
        values: the entries whose bits are not all zero, in row-major order.
        mask: the mask as stored.
        packing: "zlib" if it is deflated, else "none".
        length: bytes of the mask before deflate.
    """

    values: Tensor
    mask: Tensor
    packing: Packing
    length: int


@dataclass(frozen=True)
class Sparse(AbstractStored):
    """A tensor stored as mask and values, decoded block by block.

    Args:
        name: the tensor's name, for messages.
        shape: shape of the tensor.
        dtype: its dtype.
        stored: entries whose bits are not all zero.
        packing: "none", or "zlib" where the mask is deflated.
        length: bytes of the mask, after inflating.
        mask: where the mask lies.
        values: where the stored entries lie.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: int
    packing: Packing
    length: int
    mask: Raw
    values: Raw

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Pieces of at most `entries`, cut from decoded blocks."""
        for size, index, values in self._blocks():
            block = torch.zeros(size, dtype=values.dtype).scatter_(0, index, values)
            yield from torch.split(block.view(self.dtype), entries)

    def read(self) -> Tensor:
        """The whole tensor. Where nearly all is zero, memory that holds only zeros is never touched."""
        # A block that is cleared right before it is filled is still in the cache: that saves a fifth of the time.
        # A file that claims far more zeros than it has bytes gets pages that the system gives as they are filled.
        late = self.entries <= _TOUCHED * (self.stored + self.mask.entries)
        try:
            make = np.empty if late else np.zeros
            flat = torch.from_numpy(make(self.entries, f"i{self.dtype.itemsize}"))
        except (MemoryError, ValueError):
            need = self.entries * self.dtype.itemsize
            raise CheckpointError(
                f"{self.mask.path}: sparse tensor {self.name!r} of shape {list(self.shape)} needs {need} "
                "bytes of memory, more than there are; read it in chunks"
            ) from None
        start = 0
        for size, index, values in self._blocks():
            block = flat[start : start + size]
            start += size
            if late:
                block.zero_()
            if len(index):
                block.scatter_(0, index, values)
        return flat.view(self.dtype).view(self.shape)

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Entries of a block, positions of the stored ones, their values as integers (valid until the next)."""
        left = self.stored
        try:
            with open_file(self.mask.path) as masks, open_file(self.values.path) as values:
                masks.seek(self.mask.offset)
                values.seek(self.values.offset)
                buffer = torch.empty(min(BLOCK, self.stored), dtype=_INTEGERS[self.dtype.itemsize])
                read = _limited(masks.read, self.mask.entries)
                for size, index in decode_mask(self.packing, self.length, self.entries, read):
                    left -= len(index)
                    if left < 0:
                        raise CodecError(
                            f"the mask keeps more than the {self.stored} entries that are stored"
                        )
                    piece = buffer[: len(index)]
                    if read_into(values, piece) < piece.nbytes:
                        raise CodecError("the values end early")
                    yield size, torch.from_numpy(index), piece
            if left:
                raise CodecError(f"the mask keeps {self.stored - left} entries, {self.stored} are stored")
        except CodecError as error:
            raise CheckpointError(
                f"{self.mask.path}: sparse tensor {self.name!r}: {error}; the file is corrupt, copy it again"
            ) from None


def _limited(read: Any, left: int) -> Any:
    def next_bytes(count: int) -> bytes:
        nonlocal left
        piece: bytes = read(min(count, left))
        left -= len(piece)
        return piece

    return next_bytes


def _as_integers(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.view(-1).view(_INTEGERS[tensor.itemsize]).numpy()
    return array


def encode(tensor: Tensor) -> Encoded | None:
    """Split a tensor into mask and values; None where that would not be smaller.

    An entry is left out only if all its bits are zero, so -0.0 and every NaN come back bit by bit.
    """
    if tensor.dtype not in REAL_DTYPES or tensor.numel() < _SMALLEST:
        return None
    flat = _as_integers(tensor.detach().cpu().contiguous())
    counts = count_blocks(flat)
    stored, length = sum(counts), mask_length(len(flat), counts)
    if stored * tensor.itemsize + length + _WORTH >= tensor.nbytes:
        return None
    values = np.empty(stored, flat.dtype)
    mask = encode_blocks(flat, counts, values)
    packed = deflate(mask, values.nbytes)
    packing: Packing = "none"
    # A reader allows a byte of mask no more than a block of entries.
    if packed is not None and len(packed) * BLOCK >= len(flat):
        mask, packing = np.frombuffer(bytearray(packed), np.uint8), "zlib"
    return Encoded(torch.from_numpy(values).view(tensor.dtype), torch.from_numpy(mask), packing, length)
