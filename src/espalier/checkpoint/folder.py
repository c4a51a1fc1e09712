"""Read folders: shards named by an index, and Hugging Face model folders."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espalier._errors import CheckpointError, listing
from espalier.checkpoint._base import Layout
from espalier.checkpoint.safetensors_file import read_header
from espalier.checkpoint.sparse_map import SPARSE_KEY, sparse_table
from espalier.checkpoint.stored import AbstractStored, open_file
from espalier.checkpoint.torch_file import read_torch

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt")
"""Suffixes of files that may hold weights."""

_INDEX_LIMIT = 100_000_000
_CHOICES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "*.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.safetensors",
    "*.bin.index.json",
    *(f"*{suffix}" for suffix in WEIGHTS[1:]),
)


@dataclass(frozen=True)
class Table:
    """What the files of a checkpoint hold, before names are made the network's.

    Args:
        stored: name -> where the tensor lies.
        aliases: dropped name -> the name that stands for it.
        metadata: strings stored in the files.
        layout: which file holds what.
        notes: sentences worth reading about what was read and what was left.
    """

    stored: dict[str, AbstractStored]
    aliases: dict[str, str]
    metadata: dict[str, str]
    layout: Layout
    notes: tuple[str, ...] = ()


def read_path(path: Path) -> Table:
    """Read a file, an index or a folder."""
    if path.is_dir():
        chosen = choose(path)
        return (
            read_index(chosen)
            if chosen.name.endswith(".json")
            else _with_hint(read_one(chosen, path), chosen)
        )
    if path.name.endswith(".json"):
        return read_index(path)
    return _with_hint(read_one(path, None), path)


def _with_hint(table: Table, path: Path) -> Table:
    """Say so when a file that is read as a whole network is named like one shard of several."""
    shard = re.search(r"-(\d{5})-of-(\d{5})\.", path.name)
    if shard is None or int(shard[2]) < 2:
        return table
    index = next(iter(sorted(path.parent.glob("*.index.json"))), None)
    whole = f"give {index.name}, or its folder," if index else "give the index of the shards"
    note = f"{path.name} is shard {int(shard[1])} of {int(shard[2])}; {whole} for the whole network"
    return replace(table, notes=(*table.notes, note))


def choose(folder: Path) -> Path:
    """The file of a folder that stands for its weights: an index before a file, safetensors before torch.

    Raises:
        CheckpointError: there is none, or several that nothing ranks.
    """
    for pattern in _CHOICES:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = listing(file.name for file in found)
            raise CheckpointError(f"{folder}: several files may hold the weights ({names}); give one of them")
        if found:
            return found[0]
    suffixes = ", ".join("*" + suffix for suffix in WEIGHTS)
    raise CheckpointError(f"{folder}: no weights in this folder; looked for an index, {suffixes}")


def read_one(path: Path, folder: Path | None) -> Table:
    """Read one file of either format, told apart by its first bytes."""
    if is_safetensors(path):
        header = read_header(path)
        metadata = dict(header.metadata)
        stored: dict[str, AbstractStored] = dict(header.tensors)
        if SPARSE_KEY in metadata:
            stored = sparse_table(path, header.tensors, metadata.pop(SPARSE_KEY))
        aliases = _recorded_aliases(stored, metadata)
        metadata = {key: text for key, text in metadata.items() if key not in aliases}
        notes: tuple[str, ...] = ()
    else:
        table = read_torch(path)
        stored, aliases, metadata, notes = table.stored, table.aliases, {}, table.notes
    return Table(stored, aliases, metadata, Layout(folder, {path.name: tuple(stored)}), notes)


def is_safetensors(path: Path) -> bool:
    """Tell safetensors (True) from a file of torch.save (False) by the first bytes.

    Raises:
        CheckpointError: it is neither.
    """
    with open_file(path) as file:
        start = file.read(16)
    if start[8:9] == b"{" or (
        path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"version http"))
    ):
        return True
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return False
    if start.startswith(b"version http"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    raise CheckpointError(
        f"{path}: neither safetensors nor a file of torch.save (it begins with {start!r}); "
        "convert it to safetensors"
    )


def _recorded_aliases(stored: Mapping[str, AbstractStored], metadata: Mapping[str, str]) -> dict[str, str]:
    # The convention of safetensors.torch.save_model: the metadata maps a dropped name to the one it kept.
    return {alias: name for alias, name in metadata.items() if name in stored and alias not in stored}


def read_index(path: Path) -> Table:
    """Read every shard that an index names.

    The order is that of the shards' names, then of their bytes. Tensors that a shard holds beyond the index
    are read too: leaving them out would lose them when the checkpoint is written back.

    Raises:
        CheckpointError: the index is malformed, a shard is missing, a tensor is not in its shard, or is in
            two.
    """
    weight_map = _weight_map(path)
    stored: dict[str, AbstractStored] = {}
    aliases: dict[str, str] = {}
    metadata: dict[str, str] = {}
    files: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    for shard in sorted(set(weight_map.values())):
        if not (path.parent / shard).is_file():
            raise CheckpointError(
                f"{path.parent / shard}: this shard is missing, but the index {path.name} names it"
            )
        table = read_one(path.parent / shard, path.parent)
        _check_shard(path, shard, table, weight_map, {*stored, *aliases})
        files[shard] = tuple(table.stored)
        stored |= table.stored
        aliases |= table.aliases
        metadata |= table.metadata
        notes += table.notes
    return Table(stored, aliases, metadata, Layout(path.parent, files, path.name), notes)


def _check_shard(
    index: Path, shard: str, table: Table, weight_map: Mapping[str, str], seen: set[str]
) -> None:
    held = {*table.stored, *table.aliases}
    if missing := [name for name, file in weight_map.items() if file == shard and name not in held]:
        raise CheckpointError(
            f"{index.parent / shard}: lacks {listing(missing)}, which the index {index.name} says it holds; "
            "shard and index do not belong together"
        )
    if twice := sorted(held & seen):
        raise CheckpointError(
            f"{index.parent / shard}: holds {listing(twice)}, which another shard holds too"
        )


def _weight_map(path: Path) -> dict[str, str]:
    with open_file(path) as file:
        if file.seek(0, 2) > _INDEX_LIMIT:
            raise CheckpointError(f"{path}: an index of more than {_INDEX_LIMIT} bytes is not read")
        file.seek(0)
        text = file.read()
    try:
        index: Any = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON index: {error}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: not an index of shards: it needs a non-empty `weight_map`")
    for name, shard in weight_map.items():
        # A plain file name only: an index from elsewhere must not point out of its folder.
        if not isinstance(shard, str) or not shard or "\0" in shard or shard != Path(shard).name:
            raise CheckpointError(
                f"{path}: {name!r} lies in {shard!r}, but a shard must be a file beside the index"
            )
    return weight_map
