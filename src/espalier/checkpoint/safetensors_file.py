"""Read one safetensors file: a strict header, then tensors by plain reads."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from espalier._errors import CheckpointError
from espalier.checkpoint.stored import Raw, open_file

HEADER_LIMIT = 100_000_000
"""Largest header the format allows, in bytes."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Name in the header -> torch dtype. The sub-byte types (F4, F6_*) are refused by name."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        tensors: name -> where the tensor lies, in order of their bytes.
        metadata: the strings under `__metadata__`.
    """

    tensors: dict[str, Raw]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Checked before anything is allocated: the header fits into the file, is JSON of the right form, every
    dtype is known, every shape fills exactly its bytes, and the tensors tile the rest of the file without
    hole or overlap.

    Raises:
        CheckpointError: any of these does not hold; names file, tensor, what was needed and what was found.
    """
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path}: {size} bytes is too short for a safetensors file (at least 10)")
        length = int.from_bytes(start, "little")
        if length > HEADER_LIMIT or length > size - 8:
            raise CheckpointError(
                f"{path}: the header claims {length} bytes, but the file has {size - 8} after the length and "
                f"the format allows {HEADER_LIMIT}; the file is truncated or not safetensors"
            )
        table = _parse(path, file.read(length))
    metadata = _metadata(path, table.pop("__metadata__", {}))
    tensors = [_entry(path, name, entry, 8 + length) for name, entry in table.items()]
    tensors.sort(key=lambda raw: (raw.offset, raw.entries))
    _check_tiling(path, tensors, 8 + length, size)
    return Header({raw.name: raw for raw in tensors}, metadata)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not the JSON of a safetensors file: {error}") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object, found {type(table).__name__}")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return table


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path}: `__metadata__` must map strings to strings")
    return value


def _entry(path: Path, name: str, entry: Any, data: int) -> Raw:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{path}: tensor {name!r} must have dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {entry['dtype']!r}, which torch cannot hold; "
            f"known: {', '.join(DTYPES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: tensor {name!r} has shape {shape!r:.80} and data_offsets {offsets!r:.80}"
        )
    need, found = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if need != found:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {entry['dtype']} needs {need} bytes, its "
            f"offsets {offsets} span {found}; the file is corrupt"
        )
    return Raw(path, name, data + offsets[0], tuple(shape), dtype)


def _naturals(value: Any) -> bool:
    # The bound keeps every product that torch sees inside int64; bool is an int in Python and not in JSON.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _check_tiling(path: Path, tensors: Sequence[Raw], data: int, size: int) -> None:
    end = data
    for raw in tensors:
        if raw.offset != end:
            fault = "overlaps the tensor before it" if raw.offset < end else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {raw.name!r} begins at byte {raw.offset} where {end} was expected and so "
                f"{fault}; the file is corrupt"
            )
        end += raw.entries * raw.dtype.itemsize
    if end != size:
        fault = "truncated: copy or download it again" if size < end else "longer than its header says"
        raise CheckpointError(
            f"{path}: the tensors end at byte {end}, the file at {size}; the file is {fault}"
        )
