"""The arithmetic of a step on lists of tensors that are updated alike; it knows no groups and no laws."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from espalier.optim.prox import soft_threshold

Threshold = float | Tensor

_SMALL = 1 << 16  # entries below which a Python call costs more than the arithmetic
_VECTORS = 64  # entries; a multiple of every machine's vector length
_CHUNK = 1 << 19  # entries of a piece whose few tensors stay in the cache between the passes


class Kind(Enum):
    """How weights follow from the tensor that the base step moves."""

    DENSE = "weights = moved"
    LATENT = "weights = prox(moved), moved is kept"
    LAST = "weights = moved = prox(moved)"
    MASKED = "weights = moved = moved where the mask is True"


@dataclass(frozen=True)
class Base:
    """Hyper-parameters of a base step, in torch's letters."""

    lr: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float] | None
    eps: float
    coupled: float  # added to the gradient times the weights
    shrink: float  # factor on the moved tensor before the step; 1.0 = none
    ridge: float  # divisor of the prox minus 1; 0.0 = none
    maximize: bool


@dataclass(frozen=True)
class Batch:
    """Tensors of parameters that share kind, device and dtypes, in one order.

    All but grads are changed in place. `moved` is what the base step moves: the latent, a float32 master copy, or
    the weights themselves; in the last case `weights` is None.
    """

    kind: Kind
    moved: list[Tensor]
    grads: list[Tensor]
    weights: list[Tensor] | None
    momentum: list[Tensor] | None
    first: list[Tensor] | None
    second: list[Tensor] | None
    masks: list[Tensor] | None
    ages: list[int]  # updates so far including this one, for Adam's bias correction
    thresholds: list[Threshold]


def step_all(batch: Batch, base: Base) -> None:
    """Update every tensor of the batch, operation by operation over the whole list."""
    grads = list(torch._foreach_neg(batch.grads)) if base.maximize else batch.grads
    if grads[0].dtype != batch.moved[0].dtype:
        grads = [grad.to(batch.moved[0].dtype) for grad in grads]
    if base.coupled:
        grads = list(torch._foreach_add(grads, batch.weights or batch.moved, alpha=base.coupled))
    if base.shrink != 1.0:
        torch._foreach_mul_(batch.moved, base.shrink)
    if base.betas is not None:
        _adam(batch, grads, base)
    elif batch.momentum is not None and _fused(batch, grads):
        _heavy_ball_at_once(batch.moved[0], grads[0], batch.momentum[0], base)
    else:
        torch._foreach_add_(batch.moved, _direction(batch, grads, base), alpha=-base.lr)
    _weights(batch, base.ridge)


def step_each(batch: Batch, base: Base) -> None:
    """The same, tensor by tensor and large ones piece by piece, which is kinder to a CPU's cache."""
    small, large = by_size(batch)
    if small is not None:
        step_all(small, base)
    if large is not None:
        for i in range(len(large.moved)):
            for piece in _pieces(_pick(large, [i])):
                step_all(piece, base)


def by_size(batch: Batch) -> tuple[Batch | None, Batch | None]:
    """The batch's tensors that are not worth a kernel of their own, and the others; None for none."""
    small = [i for i, moved in enumerate(batch.moved) if moved.numel() <= _SMALL]
    large = [i for i, moved in enumerate(batch.moved) if moved.numel() > _SMALL]
    return _pick(batch, small) if small else None, _pick(batch, large) if large else None


def _fused(batch: Batch, grads: list[Tensor]) -> bool:
    """Whether torch's fused SGD can move this one piece with the bits of the loop.

    It reads and writes each entry once where the loop passes over it three times. Off whole vectors its last
    entries are rounded once instead of twice.
    """
    moved = batch.moved[0]
    return (
        len(batch.moved) == 1
        and moved.numel() > _SMALL
        and moved.numel() % _VECTORS == 0
        and moved.device.type == "cpu"
        and moved.is_contiguous()
        and grads[0].is_contiguous()
        and moved.dtype in {torch.float32, torch.float64}
        and _fused_has_the_loops_bits()
    )


@lru_cache
def _fused_has_the_loops_bits() -> bool:
    """Whether this machine's fused kernel rounds like the loop; asked once."""
    generator = torch.Generator().manual_seed(0)
    for dtype, nesterov in product((torch.float32, torch.float64), (False, True)):
        start = [torch.randn(64 * _VECTORS, generator=generator, dtype=dtype) for _ in range(3)]
        fused, loop = [tensor.clone() for tensor in start], [tensor.clone() for tensor in start]
        base = Base(0.1, 0.9, nesterov, None, 1e-8, 0.0, 1.0, 0.0, maximize=False)
        _heavy_ball_at_once(fused[0], fused[1], fused[2], base)
        loop[2].mul_(base.momentum).add_(loop[1])
        direction = loop[1].add(loop[2], alpha=base.momentum) if nesterov else loop[2]
        loop[0].add_(direction, alpha=-base.lr)
        if not all(torch.equal(a, b) for a, b in zip(fused, loop, strict=True)):
            return False
    return True


def _heavy_ball_at_once(moved: Tensor, grad: Tensor, momentum: Tensor, base: Base) -> None:
    """Heavy ball or Nesterov in one pass over the memory."""
    torch._fused_sgd_(
        [moved],
        [grad],
        [momentum],
        weight_decay=0.0,
        momentum=base.momentum,
        lr=base.lr,
        dampening=0.0,
        nesterov=base.nesterov,
        maximize=False,
        is_first_step=False,
    )


def _direction(batch: Batch, grads: list[Tensor], base: Base) -> list[Tensor]:
    """Gradient, heavy-ball or Nesterov direction; a zero buffer makes the first one the gradient, as in torch."""
    if batch.momentum is None:
        return grads
    torch._foreach_mul_(batch.momentum, base.momentum)
    torch._foreach_add_(batch.momentum, grads)
    if base.nesterov:
        return list(torch._foreach_add(grads, batch.momentum, alpha=base.momentum))
    return batch.momentum


def _adam(batch: Batch, grads: list[Tensor], base: Base) -> None:
    """Adam's step on the moved tensor (Kingma and Ba, 2015), with torch's place of eps."""
    assert base.betas is not None and batch.first is not None and batch.second is not None
    beta1, beta2 = base.betas
    torch._foreach_lerp_(batch.first, grads, 1 - beta1)
    torch._foreach_mul_(batch.second, beta2)
    torch._foreach_addcmul_(batch.second, grads, grads, 1 - beta2)
    scale = list(torch._foreach_sqrt(batch.second))
    torch._foreach_div_(scale, [math.sqrt(1 - beta2**age) for age in batch.ages])
    torch._foreach_add_(scale, base.eps)
    torch._foreach_addcdiv_(
        batch.moved, batch.first, scale, [-base.lr / (1 - beta1**age) for age in batch.ages]
    )


def _weights(batch: Batch, ridge: float) -> None:
    """Weights from the moved tensors."""
    targets = batch.weights or batch.moved
    match batch.kind:
        case Kind.DENSE:
            if ridge:
                torch._foreach_div_(batch.moved, 1 + ridge)
        case Kind.MASKED:
            assert batch.masks is not None
            if ridge:
                torch._foreach_div_(batch.moved, 1 + ridge)
            for moved, mask in zip(batch.moved, batch.masks):
                moved.masked_fill_(mask.logical_not(), 0.0)
        case Kind.LAST | Kind.LATENT:
            outputs = targets if batch.kind is Kind.LATENT else batch.moved
            for moved, out, threshold in zip(batch.moved, outputs, batch.thresholds):
                soft_threshold(moved, threshold, out=out)
            if ridge:
                torch._foreach_div_(outputs, 1 + ridge)
    if batch.kind is not Kind.LATENT and batch.weights is not None:
        torch._foreach_copy_(batch.weights, batch.moved)


_LISTS = tuple(f.name for f in fields(Batch) if f.name != "kind")


def _pick(batch: Batch, indices: list[int]) -> Batch:
    """The same batch with some of its parameters."""
    chosen: dict[str, Any] = {}
    for name in _LISTS:
        values = getattr(batch, name)
        chosen[name] = None if values is None else [values[i] for i in indices]
    return Batch(kind=batch.kind, **chosen)


def _pieces(batch: Batch) -> Iterator[Batch]:
    """A batch of one parameter cut into flat pieces; the batch itself where memory layouts differ."""
    names = [
        name for name in _LISTS if name not in {"ages", "thresholds"} and getattr(batch, name) is not None
    ]
    tensors = [getattr(batch, name)[0] for name in names]
    flat = _flattened(tensors)
    if flat is None:
        yield batch
        return
    for pieces in zip(*(torch.split(tensor, _CHUNK) for tensor in flat), strict=True):
        cut: dict[str, Any] = {name: [piece] for name, piece in zip(names, pieces, strict=True)}
        yield replace(batch, **cut)


def _flattened(tensors: list[Tensor]) -> list[Tensor] | None:
    """Views of dense tensors of one layout as vectors in memory order; None if the layouts differ."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    if any(tensor.stride() != tensors[0].stride() for tensor in tensors):
        return None
    if not torch.ops.aten.is_non_overlapping_and_dense(tensors[0]):
        return None
    return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
