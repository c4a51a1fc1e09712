"""Use sparse files: as a state dict, or back as dense files."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from espalier.checkpoint.opening import open_checkpoint
from espalier.checkpoint.sparse_format import Sparse, encode
from espalier.checkpoint.stored import StoredCheckpoint
from espalier.checkpoint.write import Written, rewrite

__all__ = ["encode", "load_sparse", "unpack"]


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read a sparse file or folder as a dense state dict, aliases included, bit by bit as it was.

    Dense files work too.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    return open_checkpoint(path).state_dict()


def unpack(path: str | Path, out: str | Path) -> Written:
    """Write the dense file or folder that a sparse one stands for, bit by bit, a tensor in memory at a time.

    Returns:
        What was written. Where nothing was packed, it is a copy, and a note says so.

    Raises:
        CheckpointError: the file is missing or corrupt, or the output cannot be written.
    """
    source = open_checkpoint(path)
    written = rewrite(source, out, lambda _, tensor: tensor)
    if isinstance(source, StoredCheckpoint) and any(isinstance(source.stored(n), Sparse) for n in source):
        return written
    return replace(written, notes=(*written.notes, f"nothing in {path} was packed; {out} is a copy"))
