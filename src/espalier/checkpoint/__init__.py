"""Read and write checkpoints: files, shards, Hugging Face folders, live modules, mappings of tensors."""

from espalier.checkpoint._base import AbstractCheckpoint, Kind, Layout, TensorInfo
from espalier.checkpoint.opening import open_checkpoint
from espalier.checkpoint.sparse import load_sparse, unpack
from espalier.checkpoint.write import Written, atomic, check_output, rewrite, save_checkpoint

__all__ = [
    "AbstractCheckpoint",
    "Kind",
    "Layout",
    "TensorInfo",
    "Written",
    "atomic",
    "check_output",
    "load_sparse",
    "open_checkpoint",
    "rewrite",
    "save_checkpoint",
    "unpack",
]
