"""Checkpoint files from one form to another: torch, dense safetensors, sparse safetensors."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint import AbstractCheckpoint, Written, atomic, check_output, rewrite
from espalier.checkpoint._base import REAL_DTYPES
from espalier.checkpoint.atomic import file_target, save_torch
from espalier.checkpoint.sparse_format import Sparse
from espalier.checkpoint.stored import StoredCheckpoint
from espalier.checkpoint.write import TORCH_SUFFIXES

_WORTH_TELLING = 50  # part of the file that negative zeros must take to be mentioned


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        path: the file or folder.
        form: "torch", "safetensors" or "sparse".
        bytes: size of what was written.
        source_bytes: size of what was read.
        dense_bytes: bytes of the tensors themselves, dense.
        notes: sentences worth reading.
    """

    path: Path
    form: str
    bytes: int
    source_bytes: int
    dense_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"path": str(self.path)}


def to_torch(source: AbstractCheckpoint, out: str | Path) -> Converted:
    """Write one file of `torch.save`: the dense state dict, every name in it, tied tensors sharing memory.

    `torch.load(path, weights_only=True)` reads it. All tensors are in memory meanwhile.

    Raises:
        CheckpointError: the file cannot be written, or is the one that is read.
    """
    out = Path(out)
    if out.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{out}: a torch file needs a name that ends in {', '.join(TORCH_SUFFIXES)}")
    target = file_target(out, source.files)
    state = {name: tensor.detach().cpu() for name, tensor in source.state_dict().items()}
    with atomic(out) as temporary:
        save_torch(state, temporary)
    return _converted(source, out, "torch", target.stat().st_size, ())


def to_safetensors(source: AbstractCheckpoint, out: str | Path) -> Converted:
    """Write dense safetensors in the shape of the source: a file, or a folder of shards; tensor by tensor.

    Raises:
        CheckpointError: see `espalier.rewrite`.
    """
    _check_suffix(source, Path(out))
    return _of(source, rewrite(source, out, lambda _, tensor: tensor), "safetensors")


def to_sparse(source: AbstractCheckpoint, out: str | Path) -> Converted:
    """Write the sparse format (`docs/sparse-format.md`) in the shape of the source, tensor by tensor.

    A note says so if nothing became smaller, or less than it could because zeros are -0.0, which stays bit by bit.

    Raises:
        CheckpointError: see `espalier.rewrite`.
    """
    _check_suffix(source, Path(out))
    check_output(source, out, sparse=True)
    negative = taken = 0

    def count(name: str, tensor: Tensor) -> Tensor:
        nonlocal negative, taken
        if tensor.dtype in REAL_DTYPES:
            found = int(torch.count_nonzero((tensor == 0) & torch.signbit(tensor)))
            negative, taken = negative + found, taken + found * tensor.itemsize
        return tensor

    written = rewrite(source, out, count, sparse=True)
    if taken * _WORTH_TELLING > written.bytes:
        told = (
            f"{negative:,} zeros are -0.0, as multiplying by a mask leaves them, and are stored bit by bit: add 0.0 to "
            "the tensors (-0.0 + 0.0 is 0.0), or give their share to `espalier prune --amount`, for a smaller file"
        )
        written = replace(written, notes=(*written.notes, told))
    return _of(source, written, "sparse")


def _check_suffix(source: AbstractCheckpoint, out: Path) -> None:
    if out.suffix in TORCH_SUFFIXES and (source.layout is None or source.layout.folder is None):
        raise CheckpointError(
            f"{out}: this is no torch file; name it {out.stem}.safetensors, or use --to torch"
        )


def _of(source: AbstractCheckpoint, written: Written, form: str) -> Converted:
    return _converted(source, written.path, form, written.bytes, written.notes)


def _converted(
    source: AbstractCheckpoint, out: Path, form: str, size: int, notes: tuple[str, ...]
) -> Converted:
    dense = sum(info.nbytes for info in source.infos.values())
    packed = isinstance(source, StoredCheckpoint) and any(
        isinstance(source.stored(n), Sparse) for n in source
    )
    if form == "sparse" and size >= dense:
        notes = (*notes, "nothing is gained: no tensor has enough zeros; prune it first")
    elif form != "sparse" and not packed:
        notes = (
            *notes,
            "the source is dense already: the same weights in another file, and nothing is gained",
        )
    return Converted(out, form, size, source.bytes_on_disk, dense, notes)
