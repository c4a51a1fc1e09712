r"""Scores, objective and one-shot solution of directional pruning.

Chao, Wang, Xing, Cheng, "Directional Pruning of Deep Neural Networks" (NeurIPS 2020). Vectors are flat (d,), float64
where it matters; what is flat comes from `espalier.directional.subspace`.
"""

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.directional.subspace import FlatSubspace


def scores(weights: Tensor, flat: FlatSubspace) -> Tensor:
    r"""How freely each weight may shrink.

    .. math:: s_j = \mathrm{sign}(w_j)\, (\Pi\, \mathrm{sign}(w))_j

    s > 0: the weight may shrink without raising the loss; s < 0: it has to grow to make up for the others. The sum
    is :math:`\|\Pi\,\mathrm{sign}(w)\|^2 \ge 0` for an orthogonal projection.

    Args:
        weights: (d,); zeros have score 0.
        flat: the flat subspace at these weights.

    Returns:
        float64 (d,).
    """
    signs = weights.double().sign()
    return signs * flat.project(signs)


def objective(weights: Tensor, start: Tensor, s: Tensor, strength: float) -> Tensor:
    r"""What directional pruning minimizes over the weights.

    .. math:: \tfrac12 \|w - w^{SGD}\|^2 + \lambda \sum_j s_j |w_j|

    Args:
        weights: w, (..., d).
        start: w^SGD, (d,).
        s: scores, (d,).
        strength: lambda, positive.
    """
    w, start, s = weights.double(), start.double(), s.double()
    return 0.5 * ((w - start) ** 2).sum(-1) + strength * (s * w.abs()).sum(-1)


def closed_form(start: Tensor, s: Tensor, strength: float) -> Tensor:
    r"""The minimizer of `objective`, a generalized soft threshold.

    .. math:: w_j = \mathrm{sign}(w^{SGD}_j)\, [\,|w^{SGD}_j| - \lambda s_j\,]_+

    With s_j < 0 the weight grows. The objective is not convex then, but separable, and its minimizer unique unless
    w^SGD_j = 0, where :math:`\pm\lambda|s_j|` are equally good; a zero stays zero here.

    Args:
        start: (d,).
        s: (d,).
        strength: at least 0.
    """
    if not strength >= 0:
        raise EspalierError(f"the strength of directional pruning must be 0 or more, got {strength}")
    start = start.double()
    return start.sign() * (start.abs() - strength * s.double()).clamp_min(0)


def strength_for(start: Tensor, s: Tensor, zeros: int) -> float:
    """The smallest strength at which the one-shot formula has at least so many zeros, existing ones included.

    Raises:
        EspalierError: fewer weights than that can reach zero (those with s > 0).
    """
    already = int((start == 0).sum())
    if zeros <= already:
        return 0.0
    shrinking = (s > 0) & (start != 0)
    times = (start.double().abs()[shrinking] / s.double()[shrinking]).sort().values
    if zeros - already > len(times):
        raise EspalierError(
            f"the one-shot formula can zero at most {already + len(times):,} of {len(start):,} weights "
            f"(those with a positive score), and {zeros:,} were asked: use the path"
        )
    return float(times[zeros - already - 1])


def one_shot(start: Tensor, flat: FlatSubspace, zeros: int) -> Tensor:
    """The one-shot formula with exactly so many zeros.

    Ties are broken by (time, index), as everywhere; a weight that would be zero by a tie alone keeps the smallest
    magnitude there is.
    """
    s = scores(start, flat)
    strength = strength_for(start, s, zeros)
    found = closed_form(start, s, strength)
    times = torch.where(s > 0, start.double().abs() / s.clamp_min(1e-300), torch.inf)
    times = torch.where(start == 0, -torch.inf, times)
    removed = torch.zeros_like(start, dtype=torch.bool)
    removed[times.argsort(stable=True)[: max(zeros, int((start == 0).sum()))]] = True
    tiny = torch.finfo(torch.float32).tiny
    found = torch.where(~removed & (found == 0), start.double().sign() * tiny, found)
    return torch.where(removed, 0.0, found)
