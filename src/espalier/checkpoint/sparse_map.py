"""Where the tensors of a sparse file lie: runs of values, masks, and a deflated map that says what is whose.

`docs/sparse-format.md` is the specification.
"""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from espalier._errors import CheckpointError
from espalier.checkpoint._base import REAL_DTYPES
from espalier.checkpoint.codec import BLOCK
from espalier.checkpoint.safetensors_file import HEADER_LIMIT
from espalier.checkpoint.sparse_format import Encoded, Sparse
from espalier.checkpoint.stored import AbstractStored, Raw, open_file

SPARSE_KEY = "espalier.sparse"
"""The metadata key that makes a file a sparse one."""

VERSION = 3
_LARGEST = 1 << 62  # keeps every sum and product far inside the integers of torch and JSON
Item = tuple[Any, ...]
"""What the map says of a tensor: its shape; if it is sparse also entries stored, bytes of the mask, and where that
is deflated, bytes it has then."""


def item(shape: Iterable[int], encoded: Encoded | None) -> Item:
    """What the map says of a tensor."""
    if encoded is None:
        return (list(shape),)
    packed = (encoded.mask.numel(),) if encoded.packing == "zlib" else ()
    return (list(shape), encoded.values.numel(), encoded.length, *packed)


def dump_map(runs: Mapping[str, Mapping[str, Item]]) -> bytes:
    """The map as it lies in the file: run -> name -> item, JSON, deflated."""
    return zlib.compress(json.dumps(runs, separators=(",", ":"), ensure_ascii=False).encode(), 9)


def dump_head(stem: str) -> str:
    """The value of the metadata key."""
    head = {"version": VERSION, "map": f"{stem}.map", "masks": f"{stem}.masks"}
    return json.dumps(head, separators=(",", ":"))


def free_stem(taken: Iterable[str]) -> str:
    """What the names of our own tensors begin with, and no tensor of the network does."""
    stem, names = "espalier", list(taken)
    while any(name.startswith(f"{stem}.") for name in names):
        stem += "_"
    return stem


def sparse_table(path: Path, physical: Mapping[str, Raw], text: str) -> dict[str, AbstractStored]:
    """The tensors of a sparse file, in the order in which their entries lie.

    Args:
        path: the file.
        physical: what its header holds.
        text: the value of the metadata key.

    Raises:
        CheckpointError: the version is another one, or the map is malformed or does not fit the tensors.
    """
    head = _head(path, text)
    masks, packed = (_bytes(path, physical, head[key]) for key in ("masks", "map"))
    runs = _runs(path, packed, physical)
    parts = _Parts(path, masks)
    table: dict[str, AbstractStored] = {}
    for name, raw in physical.items():
        found = parts.of(raw, runs[name]) if name in runs else {name: raw}
        if name in (masks.name, packed.name):
            continue
        if twice := found.keys() & table.keys():
            raise CheckpointError(f"{path}: tensor {min(twice)!r} is there twice; the map is corrupt")
        table |= found
    parts.finish()
    return table


def _head(path: Path, text: str) -> dict[str, Any]:
    head = _json(path, text, f"`{SPARSE_KEY}`")
    if isinstance(head, dict) and head.get("version", VERSION) != VERSION:
        raise CheckpointError(
            f"{path}: sparse format version {head['version']!r}, this Espalier reads {VERSION}: unpack the "
            "file with the Espalier that wrote it, or update this one"
        )
    if not isinstance(head, dict) or not {"version", "map", "masks"} <= head.keys():
        raise CheckpointError(f"{path}: `{SPARSE_KEY}` must be an object with version, map and masks")
    return head


def _json(path: Path, text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not JSON: {error}") from None


def _bytes(path: Path, physical: Mapping[str, Raw], name: Any) -> Raw:
    raw = physical.get(name) if isinstance(name, str) else None
    if raw is None or raw.dtype != torch.uint8 or len(raw.shape) != 1:
        raise CheckpointError(
            f"{path}: a sparse file needs the 1-D U8 tensor {name!r:.80}, which is not in it"
        )
    return raw


def _runs(path: Path, packed: Raw, physical: Mapping[str, Raw]) -> dict[str, dict[str, Any]]:
    """The map, its outer form checked."""
    with open_file(path) as file:
        file.seek(packed.offset)
        stream = zlib.decompressobj()
        try:
            text = stream.decompress(file.read(packed.entries), HEADER_LIMIT)
        except zlib.error as error:
            raise CheckpointError(
                f"{path}: the map {packed.name!r} does not inflate ({error}); copy the file again"
            ) from None
    if not stream.eof or stream.unused_data:
        raise CheckpointError(f"{path}: the map {packed.name!r} is cut, too long, or followed by bytes")
    runs = _json(path, text, f"the map {packed.name!r}")
    if not isinstance(runs, dict) or not all(isinstance(items, dict) for items in runs.values()):
        raise CheckpointError(f"{path}: the map must be an object of objects")
    for name in runs:
        if name not in physical or len(physical[name].shape) != 1:
            raise CheckpointError(f"{path}: the map needs the 1-D tensor {name!r}, which is not in the file")
    return runs


class _Parts:
    """The tensors of runs, found by going through runs and masks from their beginnings."""

    def __init__(self, path: Path, masks: Raw) -> None:
        self._path = path
        self._masks = masks
        self._at = 0  # bytes of the masks that are taken

    def of(self, run: Raw, items: Mapping[str, Any]) -> dict[str, AbstractStored]:
        """The tensors that fill one run."""
        found: dict[str, AbstractStored] = {}
        at = 0
        for name, given in items.items():
            shape, *sparse = _checked(self._path, name, given)
            entries = math.prod(shape)
            count = sparse[0] if sparse else entries
            offset = run.offset + at * run.dtype.itemsize
            values = Raw(self._path, name, offset, (count,) if sparse else tuple(shape), run.dtype)
            at += count
            if at > run.entries:
                break
            found[name] = self._sparse(name, tuple(shape), sparse, values) if sparse else values
        if at != run.entries:
            more = "more" if at > run.entries else f"only {at}"
            raise CheckpointError(
                f"{self._path}: {run.name!r} has {run.entries} entries, its tensors in the map {more}; "
                "the map is corrupt"
            )
        return found

    def finish(self) -> None:
        """Check that every byte of the masks is somebody's."""
        if self._at != self._masks.entries:
            raise CheckpointError(
                f"{self._path}: {self._masks.name!r} has {self._masks.entries} bytes, the map needs {self._at}; "
                "the map is corrupt"
            )

    def _sparse(self, name: str, shape: tuple[int, ...], numbers: list[int], values: Raw) -> Sparse:
        stored, length, *packed = numbers
        size = packed[0] if packed else length
        mask = replace(self._masks, name=name, offset=self._masks.offset + self._at, shape=(size,))
        self._at += size
        packing: Any = "zlib" if packed else "none"
        sparse = Sparse(name, shape, values.dtype, stored, packing, length, mask, values)
        _check_sizes(f"{self._path}: sparse tensor {name!r}", sparse)
        if self._at > self._masks.entries:
            self.finish()
        return sparse


def _checked(path: Path, name: str, given: Any) -> Iterator[Any]:
    """Shape, and the numbers of a sparse tensor, if they have the right form."""
    fault = f"{path}: the map says of {name!r} {given!r:.80}, but"
    if not isinstance(given, list) or len(given) not in (1, 3, 4) or not isinstance(given[0], list):
        raise CheckpointError(
            f"{fault} needed are a shape, and of sparse tensors entries stored and bytes of the mask"
        )
    if not all(type(number) is int and 0 <= number < _LARGEST for number in (*given[0], *given[1:])):
        raise CheckpointError(f"{fault} these must be natural numbers")
    if math.prod(given[0]) >= _LARGEST:
        raise CheckpointError(f"{fault} no tensor has so many entries")
    yield from given


def _check_sizes(fault: str, sparse: Sparse) -> None:
    n, stored, length, mask = sparse.entries, sparse.stored, sparse.length, sparse.mask.entries
    blocks = -(-n // BLOCK)
    # Deflate gains at most 1032 to 1; what claims more would make a few bytes ask for much memory.
    largest = mask if sparse.packing == "none" else 1040 * mask + 64
    smallest = mask if sparse.packing == "none" else 4 * blocks + 4
    right = smallest <= length <= largest and 4 * blocks + 4 <= length <= 4 * blocks + 4 + n // 8 + blocks
    if not (sparse.dtype in REAL_DTYPES and n > 0 and stored <= n <= BLOCK * mask and right):
        raise CheckpointError(
            f"{fault}: {n} entries of {sparse.dtype}, {stored} stored and a mask of {length} bytes in {mask} do "
            "not fit together; the map is corrupt"
        )
