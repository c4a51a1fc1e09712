"""Write one safetensors file tensor by tensor, some of them sparse."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint._base import REAL_DTYPES, TensorInfo
from espalier.checkpoint.safetensors_file import DTYPE_NAMES
from espalier.checkpoint.sparse_format import SPARSE_KEY, Entry, dump_map, encode, entry, physical_names
from espalier.checkpoint.stored import as_bytes


def write_file(
    path: Path,
    infos: Mapping[str, TensorInfo],
    load: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    *,
    sparse: bool,
) -> dict[str, int]:
    """Write a safetensors file; returns the bytes of each tensor as stored.

    The header comes first in the file but is known last where tensors may turn out sparse. Room for the
    largest header is left, the tensors are written, then the header; if much room is left over, the data
    moves down.
    """
    plan = _Plan(infos, metadata, sparse)
    with open(path, "wb") as file:
        file.write(bytes(8 + plan.room))
        for name in sorted(infos, key=lambda name: -infos[name].dtype.itemsize):
            plan.put(file, name, load(name).detach())
        plan.finish(file)
    return plan.sizes


def check_storable(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that a safetensors file cannot hold.

    Raises:
        CheckpointError: a dtype or a name that the format does not have.
    """
    for name, info in infos.items():
        if info.dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {info.dtype}, which safetensors cannot store; "
                "give a name that ends in .pt, or convert the tensor"
            )
        if name == "__metadata__":
            raise CheckpointError(f"{path}: tensor {name!r} has a name that the format reserves; rename it")


class _Plan:
    """The header of a file that is being written."""

    def __init__(self, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], sparse: bool) -> None:
        self._infos = infos
        self._metadata = dict(metadata)
        self._metadata.pop(SPARSE_KEY, None)
        self._sparse = sparse
        self._taken = set(infos)
        self._table: dict[str, dict[str, object]] = {}
        self._map: dict[str, Entry] = {}
        self._masks: list[tuple[str, Tensor]] = []
        self._end = 0
        self.sizes: dict[str, int] = {}
        self.room = self._room()

    def put(self, file: BinaryIO, name: str, tensor: Tensor) -> None:
        """Write a tensor, or the values of a sparse one; masks wait, their bytes would misalign the rest."""
        encoded = encode(tensor) if self._sparse else None
        if encoded is None:
            self._append(file, name, tensor)
            self.sizes[name] = tensor.nbytes
            return
        mask, values = physical_names(name, self._taken)
        self._taken |= {mask, values}
        self._map[name] = entry(tensor, encoded, mask, values)
        self._append(file, values, encoded.values)
        self._masks.append((mask, encoded.mask))
        self.sizes[name] = encoded.values.nbytes + encoded.mask.nbytes

    def finish(self, file: BinaryIO) -> None:
        """Write the masks and the header."""
        for name, mask in self._masks:
            self._append(file, name, mask)
        header = self._header()
        room = self.room
        if (room - len(header)) * 200 > self._end + room:
            room = -(-len(header) // 8) * 8
            _move_down(file, 8 + self.room, 8 + room, self._end)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))

    def _append(self, file: BinaryIO, name: str, tensor: Tensor) -> None:
        file.write(as_bytes(tensor.cpu().contiguous()))
        self._table[name] = _row(tensor.dtype, tensor.shape, self._end, self._end + tensor.nbytes)
        self._end += tensor.nbytes

    def _header(self) -> bytes:
        metadata = self._metadata | ({SPARSE_KEY: dump_map(self._map)} if self._map else {})
        table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        return json.dumps(table | self._table, separators=(",", ":"), ensure_ascii=False).encode()

    def _room(self) -> int:
        """A multiple of 8 that no header of these tensors exceeds: exact when none can be sparse."""
        end = 0
        for name in sorted(self._infos, key=lambda name: -self._infos[name].dtype.itemsize):
            info = self._infos[name]
            self._table[name] = _row(info.dtype, info.shape, end, end + info.nbytes)
            end += info.nbytes
            if self._sparse and info.dtype in REAL_DTYPES:
                mask, values = physical_names(name, self._taken)
                self._table[mask] = _row(torch.uint8, (end,), end, end)
                self._table[values] = _row(info.dtype, (end,), end, end)
                number = info.entries * 2 + 1000
                self._map[name] = Entry("BF16", list(info.shape), number, "none", number, mask, values)
        room = len(self._header()) + 16 * len(self._map)
        self._table, self._map = {}, {}
        return -(-room // 8) * 8


def _row(dtype: torch.dtype, shape: Iterable[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}


def _move_down(file: BinaryIO, start: int, to: int, count: int) -> None:
    with open(file.name, "rb") as reader:
        file.flush()
        for done in range(0, count, 1 << 22):
            reader.seek(start + done)
            piece = reader.read(min(1 << 22, count - done))
            file.seek(to + done)
            file.write(piece)
            file.flush()
    file.truncate(to + count)
