"""Write checkpoints: one safetensors file tensor by tensor, or a whole checkpoint in the shape it came."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from espalier._errors import CheckpointError
from espalier._types import Tensors
from espalier.checkpoint._base import AbstractCheckpoint, Layout, TensorInfo
from espalier.checkpoint.atomic import atomic, atomic_folder
from espalier.checkpoint.folder import WEIGHTS
from espalier.checkpoint.memory import drop_aliases
from espalier.checkpoint.safetensors_file import read_header
from espalier.checkpoint.writer import write_file

__all__ = ["Written", "atomic", "rewrite", "save_checkpoint"]

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
        path: the file or folder.
        files: every file that holds weights.
        bytes: their size together, headers included.
        tensors: name -> bytes of the tensor as stored (mask and values of a sparse one).
    """

    path: Path
    files: tuple[Path, ...]
    bytes: int
    tensors: dict[str, int]


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
            tensors, aliases = drop_aliases(tensors.items())
        infos = {name: _info(tensor) for name, tensor in tensors.items()}
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
        out: file or folder to write; a folder may exist only if it is empty or Espalier wrote it.
        change: gives the new tensor for a name and its tensor; shape and dtype must stay.
        metadata: added to the metadata of the source.
        sparse: store tensors with many zeros as mask and values (`docs/sparse-format.md`).

    Raises:
        CheckpointError: the output cannot be written there, or a changed tensor has another shape or dtype.
    """
    out = Path(out)
    strings = {**source.metadata, **(metadata or {}), WRITER_KEY: _version()}
    if source.layout is not None and source.layout.folder is not None:
        return _rewrite_folder(source, source.layout, source.layout.folder, out, change, strings, sparse)
    if out.suffix in TORCH_SUFFIXES:
        return _rewrite_torch(source, out, change, sparse)
    load = _changed(source, change)
    with atomic(out) as temporary:
        sizes = write_file(temporary, source.infos, load, {**strings, **source.aliases}, sparse=sparse)
    return Written(out, (out,), out.stat().st_size, {name: sizes[name] for name in source})


def _rewrite_folder(
    source: AbstractCheckpoint,
    layout: Layout,
    folder: Path,
    out: Path,
    change: Change,
    metadata: dict[str, str],
    sparse: bool,
) -> Written:
    if out.resolve().is_relative_to(folder.resolve()) and out.resolve() != folder.resolve():
        raise CheckpointError(f"{out}: lies inside the folder {folder} that is read; give a place outside")
    load = _changed(source, change)
    sizes: dict[str, int] = {}
    shards = {_safetensors_name(file): names for file, names in layout.files.items()}
    with atomic_folder(out, _written_by_espalier) as temporary:
        _copy_others(folder, temporary)
        for file, names in shards.items():
            infos = {name: source.infos[name] for name in names}
            aliases = {alias: name for alias, name in source.aliases.items() if name in infos}
            sizes |= write_file(temporary / file, infos, load, {**metadata, **aliases}, sparse=sparse)
        if layout.index is not None:
            _write_index(temporary / _safetensors_name(layout.index), shards, sizes)
    files = tuple(out / file for file in shards)
    total = sum(file.stat().st_size for file in files)
    return Written(out, files, total, {name: sizes[name] for name in source})


def _rewrite_torch(source: AbstractCheckpoint, out: Path, change: Change, sparse: bool) -> Written:
    if sparse:
        raise CheckpointError(
            f"{out}: the sparse format is a safetensors file; name it {out.stem}.safetensors"
        )
    load = _changed(source, change)
    tensors = {name: load(name).cpu() for name in source}
    with atomic(out) as temporary:
        torch.save(tensors | {alias: tensors[name] for alias, name in source.aliases.items()}, temporary)
    return Written(out, (out,), out.stat().st_size, {name: tensor.nbytes for name, tensor in tensors.items()})


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


def _info(tensor: Tensor) -> TensorInfo:
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


def _written_by_espalier(folder: Path) -> bool:
    files = [file for file in folder.iterdir() if file.suffix in WEIGHTS]
    try:
        return bool(files) and all(WRITER_KEY in read_header(file).metadata for file in files)
    except CheckpointError:
        return False


def _copy_others(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if (
            hidden
            or not file.is_file()
            or file.name.endswith(_FOREIGN)
            or file.stat().st_size > _LARGEST_COPY
        ):
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / relative)


def _write_index(path: Path, shards: Mapping[str, Iterable[str]], sizes: Mapping[str, int]) -> None:
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
