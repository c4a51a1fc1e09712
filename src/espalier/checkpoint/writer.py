"""Write one safetensors file tensor by tensor, some of them sparse."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint._base import TensorInfo
from espalier.checkpoint.safetensors_file import DTYPE_NAMES
from espalier.checkpoint.sparse_format import encode
from espalier.checkpoint.sparse_map import SPARSE_KEY, Item, dump_head, dump_map, free_stem, item
from espalier.checkpoint.stored import as_bytes

_MUCH = 10**18  # more bytes than a file has
_Rows = dict[str, dict[str, Any]]
_LARGE = 4096
"""Bytes from which a dense tensor of a sparse file has a row of its own in the header, for any reader."""


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
    largest header is left, the tensors are written, then masks and map, then the header; if much room is left
    over, the data moves down.
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


@dataclass(frozen=True)
class _Put:
    """A tensor whose entries, or those that are stored, have been written.

    Args:
        name: of the tensor.
        dtype: of the tensor.
        item: what the map says of it.
        start: byte in the data.
        end: byte after the last.
        pooled: whether it lies in a run if the file is a sparse one.
    """

    name: str
    dtype: torch.dtype
    item: Item
    start: int
    end: int
    pooled: bool


class _Plan:
    """The header of a file that is being written."""

    def __init__(self, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], sparse: bool) -> None:
        self._metadata = {key: text for key, text in metadata.items() if key != SPARSE_KEY}
        self._sparse = sparse
        self._stem = free_stem(infos)
        self._put: list[_Put] = []
        self._masks: list[Tensor] = []
        self._end = 0
        self.sizes: dict[str, int] = {}
        self.room = self._room(infos)

    def put(self, file: BinaryIO, name: str, tensor: Tensor) -> None:
        """Write a tensor, or the values of a sparse one; masks wait, their bytes would misalign the rest."""
        encoded = encode(tensor) if self._sparse else None
        values = tensor if encoded is None else encoded.values
        pooled = encoded is not None or tensor.nbytes < _LARGE
        start = self._append(file, values.cpu().contiguous())
        self._put.append(_Put(name, tensor.dtype, item(tensor.shape, encoded), start, self._end, pooled))
        self.sizes[name] = values.nbytes
        if encoded is not None:
            self._masks.append(encoded.mask)
            self.sizes[name] += encoded.mask.nbytes

    def finish(self, file: BinaryIO) -> None:
        """Write masks, map and header."""
        header = _dump(self._metadata, self._rows(file) if self._masks else self._plain_rows())
        room = self.room
        if (room - len(header)) * 200 > self._end + room:
            room = -(-len(header) // 8) * 8
            _move_down(file, 8 + self.room, 8 + room, self._end)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))

    def _append(self, file: BinaryIO, tensor: Tensor) -> int:
        file.write(as_bytes(tensor))
        start = self._end
        self._end += tensor.nbytes
        return start

    def _plain_rows(self) -> _Rows:
        return {put.name: _row(put.dtype, put.item[0], put.start, put.end) for put in self._put}

    def _rows(self, file: BinaryIO) -> _Rows:
        """The rows of a sparse file; writes masks and map, which come last."""
        self._metadata[SPARSE_KEY] = dump_head(self._stem)
        rows: _Rows = {}
        runs: dict[str, dict[str, Item]] = {}
        for (pooled, dtype), group in groupby(self._put, key=lambda put: (put.pooled, put.dtype)):
            puts = list(group)
            if not pooled:
                rows |= {put.name: _row(dtype, put.item[0], put.start, put.end) for put in puts}
                continue
            run, start, end = f"{self._stem}.{len(runs)}", puts[0].start, puts[-1].end
            rows[run] = _row(dtype, [(end - start) // dtype.itemsize], start, end)
            runs[run] = {put.name: put.item for put in puts}
        packed = torch.frombuffer(bytearray(dump_map(runs)), dtype=torch.uint8)
        for name, tensors in (("masks", self._masks), ("map", [packed])):
            start = self._end
            for tensor in tensors:
                self._append(file, tensor)
            rows[f"{self._stem}.{name}"] = _row(torch.uint8, [self._end - start], start, self._end)
        return rows

    def _room(self, infos: Mapping[str, TensorInfo]) -> int:
        """A multiple of 8 that no header of these tensors exceeds: exact when none can be sparse."""
        end, rows, metadata = 0, {}, dict(self._metadata)
        for i, name in enumerate(sorted(infos, key=lambda name: -infos[name].dtype.itemsize)):
            info = infos[name]
            rows[name] = _row(info.dtype, info.shape, end, end + info.nbytes)
            if self._sparse:
                rows[f"{self._stem}.{i}"] = _row(info.dtype, [info.entries], end, end + info.nbytes)
            end += info.nbytes
        if self._sparse:
            metadata[SPARSE_KEY] = dump_head(self._stem)
            for name in ("masks", "map"):
                rows[f"{self._stem}.{name}"] = _row(torch.uint8, [_MUCH], _MUCH, _MUCH)
        return -(-len(_dump(metadata, rows)) // 8) * 8


def _dump(metadata: Mapping[str, str], rows: _Rows) -> bytes:
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    return json.dumps(table | rows, separators=(",", ":"), ensure_ascii=False).encode()


def _row(dtype: torch.dtype, shape: Iterable[int], start: int, end: int) -> dict[str, Any]:
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
