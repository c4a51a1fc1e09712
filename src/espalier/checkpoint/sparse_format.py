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
from espalier.checkpoint.codec import BLOCK, Code, CodecError, decode_mask, encode_mask
from espalier.checkpoint.safetensors_file import DTYPE_NAMES, DTYPES
from espalier.checkpoint.stored import AbstractStored, Raw, open_file

SPARSE_KEY = "espalier.sparse"
"""The metadata key of the map."""

VERSION = 1
_SMALLEST = 256  # entries below which the map costs more than zeros save
_OVERHEAD = 256  # bytes of header that a sparse tensor costs beyond a dense one
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Entry:
    """One tensor in the map.

    Args:
        dtype: its dtype as safetensors writes it, e.g. "F32".
        shape: its shape.
        stored: entries whose bits are not all zero.
        code: "bits" or "gaps".
        length: bytes of the mask after inflating.
        mask: name of the U8 tensor that holds the zlib stream.
        values: name of the 1-D tensor that holds the stored entries.
    """

    dtype: str
    shape: list[int]
    stored: int
    code: Code
    length: int
    mask: str
    values: str


@dataclass(frozen=True)
class Encoded:
    """A tensor as mask and values.

    Args:
        values: the entries whose bits are not all zero, in row-major order.
        mask: the zlib stream.
        code: how the mask is written.
        length: bytes of the mask before deflate.
    """

    values: Tensor
    mask: Tensor
    code: Code
    length: int


@dataclass(frozen=True)
class Sparse(AbstractStored):
    """A tensor stored as mask and values, decoded block by block.

    Args:
        name: the tensor's name, for messages.
        shape: shape of the tensor.
        dtype: its dtype.
        stored: entries whose bits are not all zero.
        code: "bits" or "gaps".
        length: bytes of the mask after inflating.
        mask: where the zlib stream lies.
        values: where the stored entries lie.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: int
    code: Code
    length: int
    mask: Raw
    values: Raw

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Pieces of at most `entries`, cut from decoded blocks."""
        for count, index, values in self._blocks():
            block = np.zeros(count, values.dtype)
            block[index] = values
            yield from torch.split(torch.from_numpy(block).view(self.dtype), entries)

    def read(self) -> Tensor:
        """The whole tensor. Pages that hold only zeros are never touched and take no memory."""
        try:
            flat = np.zeros(self.entries, _as_integers(torch.empty(0, dtype=self.dtype)).dtype)
        except (MemoryError, ValueError):
            need = self.entries * self.dtype.itemsize
            raise CheckpointError(
                f"{self.mask.path}: sparse tensor {self.name!r} of shape {list(self.shape)} needs {need} "
                "bytes of memory, more than there are; read it in chunks"
            ) from None
        start = 0
        for count, index, values in self._blocks():
            flat[start : start + count][index] = values
            start += count
        return torch.from_numpy(flat).view(self.dtype).view(self.shape)

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[Any]]]:
        """Entries of a block, positions of the stored ones, their values as integers of the same size."""
        left = self.stored
        values = _Cursor(self.values)
        try:
            with open_file(self.mask.path) as file:
                file.seek(self.mask.offset)
                read = _limited(file.read, self.mask.entries)
                for count, index in decode_mask(self.code, self.length, self.entries, read):
                    left -= len(index)
                    if left < 0:
                        raise CodecError(
                            f"the mask keeps more than the {self.stored} entries that are stored"
                        )
                    yield count, index, _as_integers(values.take(len(index)))
            if left:
                raise CodecError(f"the mask keeps {self.stored - left} entries, {self.stored} are stored")
        except CodecError as error:
            raise CheckpointError(
                f"{self.mask.path}: sparse tensor {self.name!r}: {error}; the file is corrupt, copy it again"
            ) from None


class _Cursor:
    """Consecutive pieces of a stored tensor, of any lengths."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._done = 0

    def take(self, count: int) -> Tensor:
        """The next `count` entries."""
        raw = self._raw
        offset = raw.offset + self._done * raw.dtype.itemsize
        self._done += count
        return Raw(raw.path, raw.name, offset, (count,), raw.dtype).read()


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
    stored = sum(int(np.count_nonzero(flat[at : at + BLOCK])) for at in range(0, len(flat), BLOCK))
    if stored * tensor.itemsize + _OVERHEAD > tensor.nbytes:
        return None
    bits = np.empty((len(flat) + 7) // 8, np.uint8)
    values = np.empty(stored, flat.dtype)
    done = 0
    for at in range(0, len(flat), BLOCK):
        block = flat[at : at + BLOCK]
        kept = block != 0
        bits[at // 8 : (at + BLOCK) // 8] = np.packbits(kept, bitorder="little")
        index = np.flatnonzero(kept)  # several times faster than indexing with booleans
        values[done : done + len(index)] = block.take(index)
        done += len(index)
    packed = encode_mask(bits, len(flat))
    if values.nbytes + len(packed.data) + _OVERHEAD >= tensor.nbytes:
        return None
    mask = torch.frombuffer(bytearray(packed.data), dtype=torch.uint8)
    return Encoded(torch.from_numpy(values).view(tensor.dtype), mask, packed.code, packed.length)


def entry(tensor: Tensor, encoded: Encoded, mask: str, values: str) -> Entry:
    """What the map says of a tensor."""
    dtype, stored = DTYPE_NAMES[tensor.dtype], encoded.values.numel()
    return Entry(dtype, list(tensor.shape), stored, encoded.code, encoded.length, mask, values)


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
            f"{path}: sparse format version {table.get('version')!r}, this Espalier reads "
            f"{VERSION}; update it"
        )
    tensors: dict[str, Any] = table["tensors"]
    return tensors


def _checked(path: Path, name: str, item: Any, physical: Mapping[str, Raw]) -> Sparse:
    fault = f"{path}: sparse tensor {name!r}"
    if not isinstance(item, dict) or item.keys() != Entry.__annotations__.keys():
        raise CheckpointError(f"{fault} must have exactly {', '.join(Entry.__annotations__)}")
    if not all(isinstance(item[key], str) for key in ("dtype", "code", "mask", "values")):
        raise CheckpointError(f"{fault}: dtype, code, mask and values must be strings")
    numbers = [
        item["stored"],
        item["length"],
        *(item["shape"] if isinstance(item["shape"], list) else [None]),
    ]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise CheckpointError(f"{fault}: shape, stored and length must be natural numbers")
    dtype = DTYPES.get(item["dtype"])
    if dtype not in REAL_DTYPES or item["code"] not in ("bits", "gaps"):
        raise CheckpointError(f"{fault} has dtype {item['dtype']!r:.40} and code {item['code']!r:.40}")
    mask, values = physical.get(item["mask"]), physical.get(item["values"])
    if mask is None or mask.dtype != torch.uint8 or len(mask.shape) != 1:
        raise CheckpointError(f"{fault} needs the 1-D U8 tensor {item['mask']!r}, which is not in the file")
    if values is None or values.dtype != dtype or values.shape != (item["stored"],):
        raise CheckpointError(
            f"{fault} needs {item['values']!r} with {item['stored']} entries of {item['dtype']}, "
            "which is not in the file"
        )
    sparse = Sparse(
        name, tuple(item["shape"]), dtype, item["stored"], item["code"], item["length"], mask, values
    )
    _check_sizes(fault, sparse)
    return sparse


def _check_sizes(fault: str, sparse: Sparse) -> None:
    n, stored, length = sparse.entries, sparse.stored, sparse.length
    # Deflate gains at most 1032 to 1; what claims more would make a few bytes ask for much memory.
    largest = 1040 * sparse.mask.entries + 64
    right = length == (n + 7) // 8 if sparse.code == "bits" else _gap_length(n, stored, length)
    if not (0 < n < 1 << 62 and stored <= n and right and length <= largest):
        raise CheckpointError(
            f"{fault}: {n} entries, {stored} stored and {length} bytes of {sparse.code} in a stream of "
            f"{sparse.mask.entries} do not fit together; the map is corrupt"
        )


def _gap_length(n: int, stored: int, length: int) -> bool:
    # stored + 1 final bytes, the other bytes are escapes; together they count the n - stored zeros.
    escapes = length - stored - 1
    return escapes >= 0 and 255 * escapes <= n - stored <= 255 * escapes + 254 * (stored + 1)
