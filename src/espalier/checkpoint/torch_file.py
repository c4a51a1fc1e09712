"""Read files of `torch.save`, weights only: lazily from the zip format, whole from the older one."""

import itertools
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from espalier._errors import CheckpointError, first_line, listing
from espalier.checkpoint._base import REAL_DTYPES
from espalier.checkpoint.memory import drop_aliases
from espalier.checkpoint.stored import AbstractStored, Raw, Resident, open_file

NESTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "weights", "generator", "encoder", "ema", "params_ema", "model_ema"),
)
"""Keys under which training scripts keep the weights, in the order they are tried."""

CONVERT = (
    "where the file was made, load it and save its state dict with safetensors "
    "(`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`)"
)
_EXPANDED = 1 << 20
"""Largest tensor, in entries, that may be bigger than its memory (stride 0)."""


@dataclass(frozen=True)
class Strided(AbstractStored):
    """A view of a storage in a file whose entries are not in row-major order; read whole.

    Args:
        path: the file.
        name: the tensor's name, for messages.
        offset: byte in the file where the first entry lies.
        shape: shape of the tensor.
        stride: its strides, in entries.
        dtype: dtype of the entries.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Slices of the whole tensor; the span of its storage is in memory meanwhile."""
        yield from torch.split(self.read().reshape(-1), entries)

    def read(self) -> Tensor:
        """The whole tensor, made contiguous."""
        span = Raw(self.path, self.name, self.offset, (_span(self.shape, self.stride),), self.dtype).read()
        return span.as_strided(self.shape, self.stride).contiguous()


@dataclass(frozen=True)
class TorchTable:
    """The tensors of one torch file under the names they have there.

    Args:
        stored: name -> where the tensor lies.
        aliases: dropped name -> the name that stands for it.
        notes: which dict of tensors was read where there are several.
    """

    stored: dict[str, AbstractStored]
    aliases: dict[str, str]
    notes: tuple[str, ...] = ()


def read_torch(path: Path) -> TorchTable:
    """Find the tensors of a file of `torch.save` without running anything in it.

    The first dict of tensors counts: under the first of `NESTS` that is there, else at the top, else under
    any other key in file order. Whatever else the file holds (epoch, optimizer) is left out; a second dict of
    weights (the average beside the network) is named in a note.

    Raises:
        CheckpointError: the file is corrupt, wants to run code, or holds no dict of tensors.
    """
    with open_file(path) as file:
        magic = file.read(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch thinks of the file's age is no news to its owner
        return _read_zip(path) if magic == b"PK\x03\x04" else _read_legacy(path)


def _read_zip(path: Path) -> TorchTable:
    records = _guarded(path, lambda: _check_zip(path))
    try:
        tensors, notes = _state(path, _load(path, map_location="meta"))
        unique, aliases = drop_aliases(tensors.items())
        return TorchTable({name: _lazy(path, name, t, records) for name, t in unique.items()}, aliases, notes)
    except _NotLazyError:
        return _eager(path, *_state(path, _load(path, map_location="cpu", mmap=True)))


def _read_legacy(path: Path) -> TorchTable:
    _guarded(path, lambda: _check_legacy(path))
    return _eager(path, *_state(path, _load(path, map_location="cpu")))


class _NotLazyError(Exception):
    """The tensors cannot be described without loading them (quantized ones, for example)."""


def _load(path: Path, **how: Any) -> Any:
    try:
        return torch.load(path, weights_only=True, **how)
    except UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(str(error))}") from None
    except NotImplementedError as error:
        if how["map_location"] == "meta":
            raise _NotLazyError from None
        raise CheckpointError(f"{path}: torch cannot read it: {_first_line(error)}") from None
    except Exception as error:  # a corrupt file makes torch.load raise anything
        raise CheckpointError(f"{path}: corrupt, or not a file of torch.save: {_first_line(error)}") from None


_T = TypeVar("_T")


def _guarded(path: Path, check: Callable[[], _T]) -> _T:
    try:
        return check()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and pickletools raise a dozen types on corrupt input
        raise CheckpointError(f"{path}: corrupt, or not a file of torch.save: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return first_line(error)[:200]


def _refusal(message: str) -> str:
    named = re.search(r"(?:GLOBAL|global|class|module|function) ([\w.]*\.[\w.]+)", message)
    if named:
        return (
            f"refused: its pickle wants to run {named[1]!r}, and Espalier never runs code from a file; "
            f"{CONVERT}"
        )
    reason = message.rpartition("WeightsUnpickler error:")[2].strip() or message.strip()
    reason = reason.splitlines()[0][:160]
    return f"corrupt, or not weights only ({reason}); if it can be loaded elsewhere: {CONVERT}"


def _check_zip(path: Path) -> dict[int, int]:
    """Data offset -> size of every record, after the checks that need no unpickling."""
    with zipfile.ZipFile(path) as archive, open_file(path) as file:
        infos = archive.infolist()
        names = {info.filename.rpartition("/")[2]: info for info in infos}
        if "constants.pkl" in names:
            raise CheckpointError(f"{path}: a TorchScript program, not a state dict; {CONVERT}")
        if "data.pkl" not in names:
            raise CheckpointError(f"{path}: a zip archive without data.pkl, so not a file of torch.save")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise CheckpointError(f"{path}: its records are compressed; save it again with torch.save")
        if "byteorder" in names and archive.read(names["byteorder"]) == b"big":
            raise CheckpointError(f"{path}: written on a big-endian machine; {CONVERT}")
        _check_pickle(path, BytesIO(archive.read(names["data.pkl"])))
        return {_data_offset(file, info): info.file_size for info in infos}


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    # The local header repeats name and extra field with lengths of its own: torch pads there to align data.
    file.seek(info.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(30))
    return info.header_offset + 30 + int(name) + int(extra)


def _check_legacy(path: Path) -> None:
    # Magic number, protocol, system, object, storage keys: five pickles, then the raw storages.
    size = path.stat().st_size
    with open(path, "rb") as file:
        if not _is_magic(file):
            raise CheckpointError(
                f"{path}: refused: a plain pickle, not a file of torch.save, "
                f"and Espalier never runs code from a file; {CONVERT}"
            )
        file.seek(0)
        for _ in range(5):
            _check_pickle(path, file, size)


def _is_magic(file: IO[bytes]) -> bool:
    """Whether the first pickle begins with the number that torch.save writes; nothing is unpickled."""
    opcodes = itertools.islice(pickletools.genops(file), 2)
    return any(value == torch.serialization.MAGIC_NUMBER for _, value, _ in opcodes)


def _check_pickle(path: Path, file: IO[bytes], largest: int | None = None) -> None:
    """Refuse what would claim memory out of proportion before torch sees it."""
    number: Any = 0
    for opcode, value, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "STACK_GLOBAL") and "bytearray" in str(value):
            raise CheckpointError(f"{path}: {_refusal('GLOBAL builtins.bytearray')}")
        if opcode.name in ("FLOAT", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"):
            number = value
        if opcode.name == "BINPERSID" and largest is not None and number > largest:
            raise CheckpointError(
                f"{path}: a storage claims {number} entries, the file has {largest} bytes; "
                "it is truncated or corrupt"
            )


def _state(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that count, and a note on the others."""
    found = list(_states(loaded, depth=3))
    if not found:
        raise CheckpointError(f"{path}: no dict of tensors in it, found {_described(loaded)}; {CONVERT}")
    (key, tensors), *others = found
    left = [
        repr(other) for other, held in others if other and any(t.dtype in REAL_DTYPES for t in held.values())
    ]
    return tensors, (f"read {key!r} of {path.name}; left out: {listing(left)}",) if left else ()


def _described(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    return f"a dict with keys {listing(map(str, loaded))}" if loaded else "an empty dict"


def _states(value: Any, depth: int, at: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors in a nest of dicts, with the keys that lead there ("" at the top), best first."""
    if not isinstance(value, Mapping) or not depth:
        return
    inside = [key for key in NESTS if key in value]
    others = [key for key in value if key not in NESTS and not str(key).startswith("optim")]
    for key in inside:
        yield from _states(value[key], depth - 1, f"{at}{key}.")
    tensors = {key: t for key, t in value.items() if isinstance(key, str) and isinstance(t, Tensor)}
    if tensors:
        yield at.removesuffix("."), tensors
    for key in others:
        yield from _states(value[key], depth - 1, f"{at}{key}.")


def _lazy(path: Path, name: str, tensor: Tensor, records: Mapping[int, int]) -> AbstractStored:
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
        raise _NotLazyError
    storage = tensor.untyped_storage()
    start = getattr(storage, "_checkpoint_offset", None)
    if start is None:
        raise _NotLazyError
    shape, stride, dtype = tuple(tensor.shape), tensor.stride(), tensor.dtype
    need = (tensor.storage_offset() + _span(shape, stride)) * dtype.itemsize if tensor.numel() else 0
    found = min(storage.nbytes(), records.get(start, 0))
    if need > found:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {list(shape)} needs {need} bytes, its storage has {found}; "
            "the file is corrupt"
        )
    offset = start + tensor.storage_offset() * dtype.itemsize
    if tensor.is_contiguous():
        return Raw(path, name, offset, shape, dtype)
    _check_expanded(path, name, tensor)
    return Strided(path, name, offset, shape, stride, dtype)


def _eager(path: Path, tensors: Mapping[str, Tensor], notes: tuple[str, ...]) -> TorchTable:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.layout} on {tensor.device}, "
                f"a plain tensor is needed; {CONVERT}"
            )
        _check_expanded(path, name, tensor)
    unique, aliases = drop_aliases(tensors.items())
    return TorchTable({name: Resident(tensor.detach()) for name, tensor in unique.items()}, aliases, notes)


def _check_expanded(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.numel() > max(_EXPANDED, tensor.untyped_storage().nbytes()):
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {list(tensor.shape)} claims far more entries than it stores "
            f"({tensor.untyped_storage().nbytes()} bytes); the file is corrupt"
        )


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Entries from the first to the last, both included; 0 for an empty tensor."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride)) if 0 not in shape else 0
