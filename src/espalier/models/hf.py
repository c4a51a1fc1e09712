"""Networks of Hugging Face folders, and the way between their names in memory and those in the file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import CheckpointError, EspalierError, first_line
from espalier._quiet import quiet
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint
from espalier.models.sources import Filled, check_finite, misfit

_FIRST_MARK = 1000
"""Above 0 and 1, which are what transformers gives to tensors that a file lacks."""

_REFUSALS = (OSError, RuntimeError, ValueError, ImportError, LookupError, TypeError, AttributeError)


def hf_model(folder: str | Path) -> nn.Module:
    """Build and load the model of a Hugging Face folder, offline and without running code of the folder.

    The class is the one named by `architectures` in `config.json`, from the installed transformers.

    Raises:
        EspalierError: see `load_hf`.
    """
    return load_hf(folder).model


def load_hf(
    folder: str | Path, checkpoint: AbstractCheckpoint | None = None, source: str | None = None
) -> Filled:
    """Build the network of a folder's `config.json` in float32 and fill it from a checkpoint.

    transformers renames tensors on loading (of a ViT, nearly all), adds or drops the prefix of the base model,
    ties heads, and leaves out what old versions stored (`position_ids`). All that is left to it; which tensor of
    the file went where is then found by loading once more, with every tensor of the file replaced by a number
    of its own. What transformers merged or split has no place.

    Args:
        folder: holds `config.json`.
        checkpoint: where the tensors come from; None for the folder itself.
        source: what to call the checkpoint in messages; None for the folder.

    Raises:
        EspalierError: transformers is missing, the folder has no such config, or the class is unknown.
        CheckpointError: the tensors do not fit the network, or one holds NaN or infinite entries.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise EspalierError("hf: models need transformers: pip install 'espalier[hf]'") from None
    if not (Path(folder) / "config.json").is_file():
        raise EspalierError(f"{folder} is no Hugging Face model folder: it has no config.json")
    source = source or str(folder)
    with _silent():
        config, kind = _architecture(folder)
        if checkpoint is None:
            checkpoint = open_checkpoint(folder)
        tensors = checkpoint.state_dict()
        try:
            model, report = _load(kind, config, tensors)
            marked, _ = _load(kind, config, _marks(checkpoint, tensors))
        except _REFUSALS as error:
            raise CheckpointError(
                f"{source} cannot be loaded as {kind.__name__}: {first_line(error)}"
            ) from error
    problem = misfit(
        kind.__name__,
        source,
        sorted(report["missing_keys"]),
        sorted(report["unexpected_keys"]),
        [f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in sorted(report["mismatched_keys"])],
    )
    if problem:
        raise CheckpointError(problem)
    names = list(checkpoint)
    candidates = {}
    for own, mark in marked.state_dict().items():
        found = _mark_of(mark, len(names))
        if found is not None:
            candidates[own] = names[found]
    state = model.state_dict()
    check_finite(model, {own: (candidates.get(own, own), tensor) for own, tensor in state.items()}, source)
    # A transposed or reshaped tensor keeps its mark; only equal tensors may be written back as they are.
    places = {own: name for own, name in candidates.items() if _same(state[own], tensors[name])}
    return Filled(model, places)


def _architecture(folder: str | Path) -> tuple[Any, type[nn.Module]]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except _REFUSALS as error:
        raise EspalierError(f"{folder}: transformers cannot read config.json: {first_line(error)}") from error
    auto: Any = transformers.AutoModel
    named = getattr(config, "architectures", None)
    if not named:
        try:
            with torch.device("meta"):
                return config, type(auto.from_config(config))
        except _REFUSALS as error:
            raise EspalierError(
                f"{folder}: config.json names no architecture: {first_line(error)}"
            ) from error
    kind = getattr(transformers, named[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise EspalierError(
            f"transformers {transformers.__version__} has no class {named[0]!r} (from {folder})"
        )
    return config, kind


def _load(kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    return kind.from_pretrained(  # type: ignore[no-any-return]
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # reported with the rest
        output_loading_info=True,
    )


def _marks(checkpoint: AbstractCheckpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor as one number, its position in the file, without memory for the entries."""
    marks = {}
    for i, name in enumerate(checkpoint):
        tensor = tensors[name]
        marked = checkpoint.infos[name].floating or tensor.dtype in (torch.int32, torch.int64)
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        marks[name] = (
            torch.tensor(_FIRST_MARK + i, dtype=dtype).expand(tensor.shape)
            if marked and tensor.numel()
            else tensor
        )
    return marks | {alias: marks[name] for alias, name in checkpoint.aliases.items()}


def _mark_of(tensor: Tensor, count: int) -> int | None:
    if not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
        return None
    low, high = tensor.min().item(), tensor.max().item()
    position = int(low) - _FIRST_MARK if low == high and low == low // 1 else -1
    return position if 0 <= position < count else None


def _same(own: Tensor, stored: Tensor) -> bool:
    return own.shape == stored.shape and torch.equal(own, stored.to(own.dtype))


@contextmanager
def _silent() -> Iterator[None]:
    """No bars, logs or warnings of transformers."""
    from transformers.utils import logging as noise

    bars: Any = noise

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            bars.enable_progress_bar()
