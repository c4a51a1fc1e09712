"""The sparse format: which tensors of a safetensors file are stored as mask and values, and how to read them.

`docs/sparse-format.md` is the specification.
"""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
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
from espalier.checkpoint.safetensors_file import DTYPE_NAMES, DTYPES
from espalier.checkpoint.stored import AbstractStored, Raw, open_file, read_into

SPARSE_KEY = "espalier.sparse"
"""The metadata key of the map."""

VERSION = 2
_SMALLEST = 256  # entries below which the map costs more than zeros save
_OVERHEAD = 256  # bytes of header that a sparse tensor costs beyond a dense one
_TOUCHED = 64  # entries for each stored one that are cleared without being asked for
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Entry:
    """One tensor in the map.

    Args:
        dtype: its dtype as safetensors writes it, e.g. "F32".
        shape: its shape.
        stored: entries whose bits are not all zero.
        packing: "none", or "zlib" where the mask is deflated.
        length: bytes of the mask, after inflating.
        mask: name of the U8 tensor that holds the mask.
        values: name of the 1-D tensor that holds the stored entries.
    """

    dtype: str
    shape: list[int]
    stored: int
    packing: Packing
    length: int
    mask: str
    values: str


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
    if stored * tensor.itemsize + length + _OVERHEAD >= tensor.nbytes:
        return None
    values = np.empty(stored, flat.dtype)
    mask = encode_blocks(flat, counts, values)
    packed = deflate(mask, values.nbytes)
    packing: Packing = "none"
    # A reader allows a byte of mask no more than a block of entries.
    if packed is not None and len(packed) * BLOCK >= len(flat):
        mask, packing = np.frombuffer(bytearray(packed), np.uint8), "zlib"
    return Encoded(torch.from_numpy(values).view(tensor.dtype), torch.from_numpy(mask), packing, length)


def entry(tensor: Tensor, encoded: Encoded, mask: str, values: str) -> Entry:
    """What the map says of a tensor."""
    dtype, stored = DTYPE_NAMES[tensor.dtype], encoded.values.numel()
    return Entry(dtype, list(tensor.shape), stored, encoded.packing, encoded.length, mask, values)


def dump_map(entries: Mapping[str, Entry]) -> str:
    """The map as JSON."""
    tensors = {name: asdict(item) for name, item in entries.items()}
    return json.dumps({"version": VERSION, "tensors": tensors}, separators=(",", ":"))


def physical_names(name: str, taken: Set[str]) -> tuple[str, str]:
    """Names for the mask and the values of a tensor that no other tensor has."""
    stem = f"{name}.espalier"
    while f"{stem}_mask" in taken or f"{stem}_values" in taken:
        stem += "_"
    return f"{stem}_mask", f"{stem}_values"


def sparse_table(path: Path, physical: Mapping[str, Raw], text: str) -> dict[str, AbstractStored]:
    """The tensors of a file that has a map: each where its values lie, the masks gone.

    Raises:
        CheckpointError: the map is malformed or does not fit the tensors of the file.
    """
    entries = {name: _checked(path, name, item, physical) for name, item in _load_map(path, text).items()}
    by_values = {at.values.name: name for name, at in entries.items()}
    masks = {at.mask.name for at in entries.values()}
    if len(by_values) + len(masks) < 2 * len(entries) or masks & by_values.keys():
        raise CheckpointError(f"{path}: two sparse tensors share their mask or values; the map is corrupt")
    table: dict[str, AbstractStored] = {}
    for name, raw in physical.items():
        if name in by_values:
            table[by_values[name]] = entries[by_values[name]]
        elif name in entries:
            raise CheckpointError(
                f"{path}: tensor {name!r} is there twice, dense and sparse; the map is corrupt"
            )
        elif name not in masks:
            table[name] = raw
    return table


def _load_map(path: Path, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: `{SPARSE_KEY}` is not JSON: {error}") from None
    if not isinstance(table, dict) or not isinstance(table.get("tensors"), dict):
        raise CheckpointError(f"{path}: `{SPARSE_KEY}` must be an object with version and tensors")
    if table.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: sparse format version {table.get('version')!r}, this Espalier reads {VERSION}: unpack the "
            "file with the Espalier that wrote it, or update this one"
        )
    tensors: dict[str, Any] = table["tensors"]
    return tensors


def _checked(path: Path, name: str, item: Any, physical: Mapping[str, Raw]) -> Sparse:
    fault = f"{path}: sparse tensor {name!r}"
    if not isinstance(item, dict) or item.keys() != Entry.__annotations__.keys():
        raise CheckpointError(f"{fault} must have exactly {', '.join(Entry.__annotations__)}")
    if not all(isinstance(item[key], str) for key in ("dtype", "packing", "mask", "values")):
        raise CheckpointError(f"{fault}: dtype, packing, mask and values must be strings")
    numbers = [
        item["stored"],
        item["length"],
        *(item["shape"] if isinstance(item["shape"], list) else [None]),
    ]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise CheckpointError(f"{fault}: shape, stored and length must be natural numbers")
    dtype = DTYPES.get(item["dtype"])
    if dtype not in REAL_DTYPES or item["packing"] not in ("none", "zlib"):
        raise CheckpointError(f"{fault} has dtype {item['dtype']!r:.40} and packing {item['packing']!r:.40}")
    mask, values = physical.get(item["mask"]), physical.get(item["values"])
    if mask is None or mask.dtype != torch.uint8 or len(mask.shape) != 1:
        raise CheckpointError(f"{fault} needs the 1-D U8 tensor {item['mask']!r}, which is not in the file")
    if values is None or values.dtype != dtype or values.shape != (item["stored"],):
        raise CheckpointError(
            f"{fault} needs {item['values']!r} with {item['stored']} entries of {item['dtype']}, "
            "which is not in the file"
        )
    sparse = Sparse(
        name, tuple(item["shape"]), dtype, item["stored"], item["packing"], item["length"], mask, values
    )
    _check_sizes(fault, sparse)
    return sparse


def _check_sizes(fault: str, sparse: Sparse) -> None:
    n, stored, length, mask = sparse.entries, sparse.stored, sparse.length, sparse.mask.entries
    blocks = -(-n // BLOCK)
    # Deflate gains at most 1032 to 1; what claims more would make a few bytes ask for much memory.
    largest = mask if sparse.packing == "none" else 1040 * mask + 64
    smallest = mask if sparse.packing == "none" else 4 * blocks + 4
    right = smallest <= length <= largest and 4 * blocks + 4 <= length <= 4 * blocks + 4 + n // 8 + blocks
    if not (0 < n < 1 << 62 and stored <= n <= BLOCK * mask and right):
        raise CheckpointError(
            f"{fault}: {n} entries, {stored} stored and a mask of {length} bytes in {mask} do not fit "
            "together; the map is corrupt"
        )
