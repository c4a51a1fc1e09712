"""Open anything that holds the tensors of a network."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from espalier._errors import CheckpointError
from espalier.checkpoint._base import AbstractCheckpoint, Layout
from espalier.checkpoint.folder import read_path
from espalier.checkpoint.memory import mapping_checkpoint, module_checkpoint
from espalier.checkpoint.names import network_names
from espalier.checkpoint.stored import StoredCheckpoint


def open_checkpoint(source: str | Path | nn.Module | Mapping[str, Tensor]) -> AbstractCheckpoint:
    """Open anything that holds the tensors of a network.

    Args:
        source: a safetensors file, dense or sparse; a file of `torch.save`, its weights bare or nested; an
            index of shards or the folder it lies in; a Hugging Face model folder; a module; a mapping of
            tensors.

    Returns:
        A mapping that reads one tensor at a time. Of files: prefixes of wrappers (`module.`, `_orig_mod.`)
        are stripped when every name has them, and `X_orig`, `X_mask` of `torch.nn.utils.prune` are read as
        their product `X`. Values that are not tensors (epoch, optimizer) are left out; `notes` says when
        other weights were.

    Raises:
        CheckpointError: the file is missing, corrupt or unsafe, or an item is not a tensor.
    """
    if isinstance(source, AbstractCheckpoint):
        return source
    if isinstance(source, nn.Module):
        return module_checkpoint(source)
    if isinstance(source, Mapping):
        return mapping_checkpoint(source)
    if not isinstance(source, str | Path):
        raise CheckpointError(
            f"a path, a module or a mapping of tensors was needed, got {type(source).__name__}"
        )
    path = Path(source)
    table = read_path(path)
    stored, aliases, renamed = network_names(table.stored, table.aliases)
    files = {
        file: tuple(renamed[name] for name in names if name in renamed)
        for file, names in table.layout.files.items()
    }
    layout = Layout(table.layout.folder, files, table.layout.index)
    return StoredCheckpoint(
        stored, path=path, aliases=aliases, metadata=table.metadata, layout=layout, notes=table.notes
    )
