"""Running a model over a split without leaving a trace: eval mode, no gradient, everything restored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.data import AbstractSplit


def logits_of(output: Any) -> Tensor:
    """The logits (B, classes) in what a model returns: a tensor, or an object or dict with `logits`.

    Raises:
        EspalierError: there are none.
    """
    found = output
    if not isinstance(found, Tensor):
        found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise EspalierError(
            f"the model must return logits (batch, classes) or an object with .logits, got {got}"
        )
    return found


@contextmanager
def modes(model: nn.Module) -> Iterator[None]:
    """Give every submodule its own train/eval mode back at the end."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (or buffer) lives; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def collect_logits(model: nn.Module, split: AbstractSplit, *, batch_size: int = 500) -> Tensor:
    """Logits of every example of a split in its order, from inputs only: float32 (n, classes) on the CPU.

    Eval mode, no gradient; the mode of every submodule is restored. The model stays on its device.

    Raises:
        EspalierError: the split is empty, or the model returns no logits.
    """
    if not len(split):
        raise EspalierError(
            f"the {split.name} split is empty: nothing to evaluate on (is the validation fraction 0?)"
        )
    device = device_of(model)
    found = []
    with modes(model), torch.inference_mode():
        model.eval()
        for x in split.inputs(batch_size):
            found.append(logits_of(model(x.to(device))).float().cpu())
    return torch.cat(found)
