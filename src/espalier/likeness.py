"""How alike two networks are: in what they answer (inputs only, no labels) and in their weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier._types import Tensors
from espalier.data import AbstractSplit
from espalier.evaluation import Interval, wilson


@dataclass(frozen=True)
class Similarity:
    """A network beside its parent on the same inputs, both in eval mode.

    Args:
        agreement: fraction of inputs on which both choose the same class, in [0, 1].
        interval: 95 % Wilson interval of the agreement.
        divergence: mean Jensen-Shannon divergence of the class probabilities, in nats: 0 (equal) to ln 2.
        logit_cosine: mean over inputs of the cosine between the two logit vectors, in [-1, 1]; an all-zero
            vector counts as 0. Logits are taken as they come, not centered.
        n: number of inputs.
    """

    agreement: float
    interval: Interval
    divergence: float
    logit_cosine: float
    n: int


def similarity(
    model: nn.Module, parent: nn.Module, split: AbstractSplit, *, batch_size: int = 100
) -> Similarity:
    """Compare a network with its parent on the inputs of a split; labels are not read.

    Eval mode and no gradient; modes are restored and each network stays on its device.

    Raises:
        EspalierError: the split is empty, or the networks return no logits or different numbers of classes.
    """
    return compare_logits(*(collect_logits(m, split, batch_size=batch_size) for m in (model, parent)))


def compare_logits(logits: Tensor, parent: Tensor) -> Similarity:
    """Compare logits (n, classes) that are at hand; float64 inside.

    Raises:
        EspalierError: no inputs, or different shapes.
    """
    if logits.shape != parent.shape or not len(logits):
        raise EspalierError(
            f"similarity needs the same inputs and classes for both networks, got logits "
            f"{tuple(logits.shape)} and "
            f"{tuple(parent.shape)}"
        )
    n = len(logits)
    agree = int((logits.argmax(1) == parent.argmax(1)).sum())
    a, b = logits.double(), parent.double()
    cosine = F.cosine_similarity(a, b, dim=1, eps=1e-30).mean().item()
    return Similarity(agree / n, wilson(agree, n), jensen_shannon(a, b).mean().item(), cosine, n)


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence between the softmax of two logit tensors, per row.

    .. math:: \tfrac12 KL(p \| m) + \tfrac12 KL(q \| m), \quad m = (p + q)/2

    Args:
        a: logits (n, classes).
        b: logits (n, classes).

    Returns:
        Float64 (n,), in nats, clipped to [0, ln 2] against rounding.
    """
    log_p, log_q = a.double().log_softmax(1), b.double().log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    left = (log_p.exp() * (log_p - log_m)).sum(1)
    right = (log_q.exp() * (log_q - log_m)).sum(1)
    return ((left + right) / 2).clamp(0.0, math.log(2))


def weight_cosine(weights: Tensors, parent: Tensors, names: Iterable[str]) -> float:
    """Cosine between the named weights of two networks, as one vector each; sums in float64.

    Args:
        weights: name -> tensor.
        parent: name -> tensor of the same shape.
        names: the selection.

    Returns:
        In [-1, 1]; 0.0 if either vector is all zero.
    """
    products = [_products(weights[name], parent[name]) for name in names]
    dot, own, other = (math.fsum(p[i] for p in products) for i in range(3))
    if not own or not other:
        return 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(own) / math.sqrt(other)))


def _products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """<a, b>, <a, a> and <b, b> in float64, element by element whatever the memory layout."""
    x, y = a.detach().double(), b.detach().to(a.device).double()
    return (x * y).sum().item(), (x * x).sum().item(), (y * y).sum().item()


def cosine_bound(parent: Tensors, masks: Mapping[str, Tensor]) -> float:
    """The largest cosine to the parent that any weights on the masks' support can have: ||m∘w|| / ||w||.

    By Cauchy-Schwarz; reached by the pruned parent itself, so fine-tuning at a fixed mask can only lower it.

    Args:
        parent: name -> weights w; must contain the masks' names.
        masks: name -> bool, True = kept.

    Returns:
        In [0, 1]; 0.0 for a parent that is all zero.
    """
    kept = total = 0.0
    for name, mask in masks.items():
        squares = parent[name].detach().double() ** 2
        kept += (squares * mask.to(squares.device)).sum().item()
        total += squares.sum().item()
    return math.sqrt(kept / total) if total else 0.0
