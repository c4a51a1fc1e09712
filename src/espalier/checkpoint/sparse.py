"""Use sparse files: as a state dict, or back as dense files."""

from pathlib import Path

from torch import Tensor

from espalier.checkpoint.opening import open_checkpoint
from espalier.checkpoint.sparse_format import encode
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

    Raises:
        CheckpointError: the file is missing or corrupt, or the output cannot be written.
    """
    return rewrite(open_checkpoint(path), out, lambda _, tensor: tensor)
