"""Write checkpoints: one safetensors file tensor by tensor, or a whole checkpoint in the shape it came."""

import filecmp
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from espalier._errors import CheckpointError, listing
from espalier._types import Tensors
from espalier.checkpoint._base import AbstractCheckpoint, Layout, TensorInfo
from espalier.checkpoint.atomic import (
    atomic,
    atomic_folder,
    file_target,
    folder_target,
    same_place,
    save_torch,
)
from espalier.checkpoint.folder import WEIGHTS
from espalier.checkpoint.memory import drop_aliases
from espalier.checkpoint.safetensors_file import read_header
from espalier.checkpoint.writer import check_storable, write_file

__all__ = ["Written", "atomic", "check_output", "rewrite", "save_checkpoint"]

WRITER_KEY = "espalier"
"""Metadata key that marks what Espalier wrote, so that it may be written over."""

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin")
_FOREIGN = (*WEIGHTS, ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".index.json")
_LARGEST_COPY = 64 << 20

Change = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        path: the file or folder, as it was given.
        files: every file that holds weights, links resolved.
        bytes: their size together, headers included.
        tensors: name -> bytes of the tensor as stored (mask and values of a sparse one).
        notes: sentences worth reading about what was written.
    """

    path: Path
    files: tuple[Path, ...]
    bytes: int
    tensors: dict[str, int]
    notes: tuple[str, ...] = ()


def save_checkpoint(path: str | Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, tensor by tensor, completely or not at all.

    Memory holds one tensor at a time. Tensors are ordered by the size of their entries, largest first, and as
    given within a size, so that each one is aligned. In a `dict` the same memory under several names is
    written once; the other names go into the metadata, mapped to the name that was written, as
    `safetensors.torch.save_model` does.

    Args:
        path: the file.
        tensors: name -> tensor; read twice if it reads its tensors on access and is not a checkpoint.
        metadata: strings to store beside the tensors.

    Raises:
        CheckpointError: a tensor cannot be stored, the file cannot be written, or a name is reserved.
    """
    aliases: dict[str, str] = {}
    if isinstance(tensors, AbstractCheckpoint):
        infos, aliases = tensors.infos, tensors.aliases
    else:
        if isinstance(tensors, dict):
            for name, tensor in tensors.items():
                _check_tensor(name, tensor)
            tensors, aliases = drop_aliases(tensors.items())
        infos = {name: _info(name, tensor) for name, tensor in tensors.items()}
    check_storable(Path(path), infos)
    with atomic(path) as temporary:
        write_file(temporary, infos, tensors.__getitem__, {**(metadata or {}), **aliases}, sparse=False)


def rewrite(
    source: AbstractCheckpoint,
    out: str | Path,
    change: Change,
    metadata: Mapping[str, str] | None = None,
    *,
    sparse: bool = False,
) -> Written:
    """Write a checkpoint with changed tensors, in the shape it came, completely or not at all.

    A file gives a file. Shards and Hugging Face folders give a folder with the same shards, a fresh index,
    and copies of the other files (configuration, tokenizer) but not of weights in other formats, which would
    be those of the unchanged network. Torch files come out as safetensors, unless `out` is a file with a
    suffix of theirs: then as a plain state dict, without metadata.

    Args:
        source: the checkpoint; read tensor by tensor.
        out: file or folder to write, not the source. A file that exists is replaced. A folder that exists
            must be empty, or hold nothing but what an earlier write of this checkpoint by Espalier left.
        change: gives the new tensor for a name and its tensor; shape and dtype must stay.
        metadata: added to the metadata of the source.
        sparse: store tensors with many zeros as mask and values (`docs/sparse-format.md`).

    Raises:
        CheckpointError: the output cannot be written there (see `check_output`), the disk is full, or a
            changed tensor has another shape or dtype.
    """
    out = Path(out)
    check_output(source, out, sparse)
    strings = {**source.metadata, **(metadata or {}), WRITER_KEY: _version()}
    if source.layout is not None and source.layout.folder is not None:
        return _rewrite_folder(source, source.layout, source.layout.folder, out, change, strings, sparse)
    if out.suffix in TORCH_SUFFIXES:
        return _rewrite_torch(source, out, change)
    load, target = _changed(source, change), file_target(out)
    with atomic(out) as temporary:
        sizes = write_file(temporary, source.infos, load, {**strings, **source.aliases}, sparse=sparse)
    return Written(out, (target,), target.stat().st_size, {name: sizes[name] for name in source})


def check_output(source: AbstractCheckpoint, out: str | Path, sparse: bool = False) -> None:
    """Refuse what `rewrite` would refuse, as far as it can be known before any work is done.

    Args:
        source: the checkpoint that will be read.
        out: file or folder to write.
        sparse: whether the sparse format is asked for.

    Raises:
        CheckpointError: `out` is the source, one of its files, around it or inside it; its folder is missing
            or not writable; it is a folder for a file or a file for a folder; it is an existing folder that
            holds anything this write would not put back; or its format cannot hold the tensors.
    """
    out = Path(out)
    layout = source.layout
    if layout is not None and layout.folder is not None:
        _check_apart(source, layout.folder, out)
        target = folder_target(out)
        if out.suffix in WEIGHTS and not target.is_dir():
            raise CheckpointError(
                f"{out}: the source {layout.folder} is a folder and so is the output; "
                f"give the name of a folder, such as {out.with_suffix('').name}"
            )
        check_storable(out, source.infos)
        if target.is_dir():
            _check_replaceable(target, layout, layout.folder, out)
        return
    file_target(out, source.files)
    if out.suffix not in TORCH_SUFFIXES:
        check_storable(out, source.infos)
    elif sparse:
        raise CheckpointError(
            f"{out}: the sparse format is a safetensors file; name it {out.stem}.safetensors"
        )


def _check_apart(source: AbstractCheckpoint, folder: Path, out: Path) -> None:
    target = folder_target(out)
    if same_place(target, folder):
        raise CheckpointError(f"{out}: is the folder that is read; give another name, so that it stays")
    if any(same_place(parent, folder) for parent in target.parents):
        raise CheckpointError(f"{out}: lies inside the folder {folder} that is read; give a place outside")
    for path in (folder, *source.files):
        if any(same_place(parent, target) for parent in path.resolve().parents):
            raise CheckpointError(f"{out}: holds the source {path}, which must stay; give another name")


def _check_replaceable(target: Path, layout: Layout, folder: Path, shown: Path) -> None:
    """Raise if a folder holds anything but what this write puts back."""
    shards = {_safetensors_name(file) for file in layout.files}
    index = None if layout.index is None else _safetensors_name(layout.index)
    copies = set(_others(folder))
    held = {path.relative_to(target): path for path in _walk(target)}
    foreign = [
        str(name)
        for name, path in held.items()
        if path.is_symlink()
        or not path.is_file()
        or not (
            _by_espalier(path)
            if str(name) in shards
            else filecmp.cmp(path, folder / name, shallow=False)
            if name in copies
            else str(name) == index and shards.intersection(map(str, held))
        )
    ]
    if foreign:
        raise CheckpointError(
            f"{shown}: exists and holds {listing(sorted(foreign))}, which this write would not put back; "
            "give another name, or move that away"
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder that is not itself a real folder; links are not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _by_espalier(file: Path) -> bool:
    try:
        return WRITER_KEY in read_header(file).metadata
    except CheckpointError:
        return False


def _rewrite_folder(
    source: AbstractCheckpoint,
    layout: Layout,
    folder: Path,
    out: Path,
    change: Change,
    metadata: dict[str, str],
    sparse: bool,
) -> Written:
    load, target = _changed(source, change), folder_target(out)
    sizes: dict[str, int] = {}
    shards = {_safetensors_name(file): names for file, names in layout.files.items()}
    with atomic_folder(out, lambda old: _check_replaceable(old, layout, folder, out)) as temporary:
        for name in _others(folder):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, temporary / name)
        for file, names in shards.items():
            infos = {name: source.infos[name] for name in names}
            aliases = {alias: name for alias, name in source.aliases.items() if name in infos}
            sizes |= write_file(temporary / file, infos, load, {**metadata, **aliases}, sparse=sparse)
        if layout.index is not None:
            _write_index(temporary / _safetensors_name(layout.index), shards, sizes)
    files = tuple(target / file for file in shards)
    total = sum(file.stat().st_size for file in files)
    return Written(out, files, total, {name: sizes[name] for name in source})


def _rewrite_torch(source: AbstractCheckpoint, out: Path, change: Change) -> Written:
    load, target = _changed(source, change), file_target(out)
    tensors = {name: load(name).cpu() for name in source}
    with atomic(out) as temporary:
        save_torch(tensors | {alias: tensors[name] for alias, name in source.aliases.items()}, temporary)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    return Written(out, (target,), target.stat().st_size, sizes)


def _changed(source: AbstractCheckpoint, change: Change) -> Callable[[str], Tensor]:
    def load(name: str) -> Tensor:
        info, tensor = source.infos[name], change(name, source[name])
        if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            raise CheckpointError(
                f"tensor {name!r} must keep shape {list(info.shape)} and {info.dtype}, "
                f"it became {list(tensor.shape)} and {tensor.dtype}"
            )
        return tensor

    return load


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"a mapping of tensors was needed, but {name!r} is {type(value).__name__}")


def _info(name: str, tensor: Tensor) -> TensorInfo:
    _check_tensor(name, tensor)
    return TensorInfo(tuple(tensor.shape), tensor.dtype)


def _version() -> str:
    from espalier import __version__

    return __version__


def _safetensors_name(file: str) -> str:
    index = ".index.json" if file.endswith(".index.json") else ""
    file = file.removesuffix(".index.json")
    if file.endswith(".safetensors"):
        return file + index
    stem = file.rpartition(".")[0]
    if stem.startswith("pytorch_model"):
        stem = "model" + stem.removeprefix("pytorch_model")
    return f"{stem}.safetensors{index}"


def _others(folder: Path) -> list[Path]:
    """What is copied beside the weights, relative to the folder."""
    found = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or file.name.endswith(_FOREIGN):
            continue
        if file.is_file() and file.stat().st_size <= _LARGEST_COPY:
            found.append(name)
    return found


def _write_index(path: Path, shards: Mapping[str, Iterable[str]], sizes: Mapping[str, int]) -> None:
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
