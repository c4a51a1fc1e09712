"""Batch-norm statistics estimated anew after pruning: from inputs alone, without a training step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from espalier._errors import EspalierError
from espalier._forward import collect_logits, device_of, modes
from espalier.data import AbstractSplit
from espalier.likeness import Similarity, compare_logits


@dataclass(frozen=True)
class Recalibration:
    """What re-estimating the batch-norm statistics did.

    Args:
        kept: whether the network now has the new statistics.
        reason: one sentence for reports.
        layers: number of batch-norm layers with statistics; 0 means there was nothing to do.
        inputs: number of inputs the statistics were estimated from.
        before: similarity to the parent on the held-out inputs, with the old statistics; None without layers.
        after: the same with the new ones.
    """

    kept: bool
    reason: str
    layers: int
    inputs: int
    before: Similarity | None
    after: Similarity | None


def recalibrate(
    model: nn.Module,
    inputs: AbstractSplit,
    *,
    parent: nn.Module,
    held_out: AbstractSplit,
    images: int = 4000,
    batch_size: int = 200,
    seed: int = 0,
    augment: bool = True,
) -> Recalibration:
    """Estimate batch-norm statistics anew, and keep them only where that helps.

    Pruning changes the scale of what reaches each batch norm, which still normalizes with the dense network's
    statistics. New ones are the average over batches of batch mean and variance, as
    `torch.optim.swa_utils.update_bn` takes it, with two differences: everything but batch norm (dropout)
    stays in eval mode, and a smaller last batch is left out, because it would count as much as a whole one.
    They are kept only where they raise the agreement with the parent on inputs they were not estimated from:
    at small sparsities a few thousand inputs are worse than the original statistics. No label is read.

    Args:
        model: pruned; changed in place only if the new statistics are kept.
        inputs: what to estimate from, usually the training split.
        parent: the network before pruning.
        held_out: what to compare on, usually the validation split.
        images: how many inputs to use (the first of the split's order shuffled by `seed`).
        batch_size: inputs per batch, at least 2.
        seed: of the choice and order of inputs, and of their augmentation.
        augment: apply the data set's augmentation, under which the old statistics were gathered in training.

    Raises:
        EspalierError: fewer than 2 inputs per batch, or too few inputs for one batch, or parent is the model.
    """
    if parent is model:
        raise EspalierError("parent must not be the model itself: take a copy.deepcopy before pruning")
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return Recalibration(False, "the network has no batch norm with statistics", 0, 0, None, None)
    batch_size = min(batch_size, images, len(inputs))
    if batch_size < 2:
        raise EspalierError(f"recalibration needs at least 2 inputs in a batch, got {batch_size}")
    target = collect_logits(parent, held_out)
    before = compare_logits(collect_logits(model, held_out), target)
    old = [{k: v.clone() for k, v in _statistics(layer).items()} for layer in layers]
    try:
        used = estimate(
            model, layers, inputs, images=images, batch_size=batch_size, seed=seed, augment=augment
        )
        after = compare_logits(collect_logits(model, held_out), target)
    except BaseException:
        _put_back(layers, old)
        raise
    kept = after.agreement > before.agreement
    if not kept:
        _put_back(layers, old)
    change = f"agreement with the parent {before.agreement:.4f} -> {after.agreement:.4f}, n = {after.n:,}"
    reason = (
        f"new statistics kept: {change}"
        if kept
        else f"old statistics kept, the new ones do not help: {change}"
    )
    return Recalibration(kept, reason, len(layers), used, before, after)


def estimate(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    inputs: AbstractSplit,
    *,
    images: int,
    batch_size: int,
    seed: int,
    augment: bool,
) -> int:
    """Replace the layers' statistics by averages over whole batches; the number of inputs used."""
    device, used = device_of(model), 0
    with modes(model), _cumulative(layers), torch.no_grad():
        model.eval()
        for layer in layers:
            layer.train()
        for x, _ in inputs.batches(batch_size, seed=seed, augment=augment):
            if len(x) < batch_size or used + len(x) > images:
                break
            model(x.to(device))
            used += len(x)
    return used


@contextmanager
def _cumulative(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Statistics from zero and as plain averages (momentum None), for the time being."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _statistics(layer: _BatchNorm) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer for name, buffer in layer.named_buffers() if name in names}


def _put_back(layers: Sequence[_BatchNorm], old: list[dict[str, Tensor]]) -> None:
    for layer, statistics in zip(layers, old, strict=True):
        for name, buffer in _statistics(layer).items():
            buffer.copy_(statistics[name])
