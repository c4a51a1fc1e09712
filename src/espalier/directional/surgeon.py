r"""Optimal Brain Damage and Surgeon, exact where the Hessian fits in memory: what directional pruning is compared with.

LeCun, Denker, Solla (1990); Hassibi, Stork (1993). Both take the loss to be quadratic around a minimum.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from espalier._errors import EspalierError


@dataclass(frozen=True, eq=False)
class Surgery:
    """Weights after pruning.

    Args:
        weights: float64 (d,).
        order: int64 (zeros,), removed first to last.
        saliency: float64 (zeros,), what the quadratic model says each removal adds to the loss.
    """

    weights: Tensor = field(repr=False)
    order: Tensor = field(repr=False)
    saliency: Tensor = field(repr=False)


def brain_damage(weights: Tensor, diagonal: Tensor, zeros: int) -> Surgery:
    r"""Remove the weights of least :math:`\frac12 H_{qq} w_q^2`, ties by index; the others stay.

    Args:
        weights: (d,).
        diagonal: of the Hessian (d,).
        zeros: how many are zero afterwards, existing ones included.
    """
    _check(weights, zeros)
    w = weights.double()
    saliency = 0.5 * diagonal.double() * w**2
    order = torch.where(w == 0, -torch.inf, saliency).argsort(stable=True)[:zeros]
    pruned = w.clone()
    pruned[order] = 0.0
    return Surgery(pruned, order, saliency[order])


def brain_surgeon(
    weights: Tensor,
    hessian: Tensor | Callable[[Tensor], Tensor],
    zeros: int,
    *,
    damping: float = 1e-4,
    refresh: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Surgery:
    r"""Remove weights one at a time, each time the one that costs least when all others make up for it.

    .. math:: L_q = \frac{w_q^2}{2 [H^{-1}]_{qq}}, \qquad \delta w = -\frac{w_q}{[H^{-1}]_{qq}} H^{-1} e_q

    The inverse is taken once and then of the remaining weights by elimination, O(d^2) a weight.

    Args:
        weights: (d,); zeros are taken out first.
        hessian: (d, d), or a function that computes it at given weights.
        zeros: how many are zero afterwards, existing ones included.
        damping: added to the diagonal, as a share of its mean: a Hessian has flat directions and no inverse.
        refresh: compute the Hessian again after so many removals (needs a function); None never.
        progress: called with the number of zeros.

    Raises:
        EspalierError: more zeros than weights, no damping for a Hessian that is not positive definite.
    """
    _check(weights, zeros)
    w = weights.detach().double().clone()
    compute = hessian if callable(hessian) else (lambda _: hessian)
    active = w != 0
    inverse = _inverse(compute(w), active, damping)
    order, saliencies = (
        (~active).nonzero().flatten().tolist()[:zeros],
        [0.0] * min(zeros, int((~active).sum())),
    )
    since = 0
    while len(order) < zeros:
        if refresh is not None and since >= refresh:
            inverse, since = _inverse(compute(w), active, damping), 0
        costs = torch.where(active, w**2 / (2 * inverse.diagonal().clamp_min(1e-300)), torch.inf)
        q = int(costs.argmin())
        column = inverse[:, q].clone()
        w -= w[q] / column[q] * column
        active[q] = False
        w.masked_fill_(~active, 0.0)
        inverse -= torch.outer(column, column) / column[q]
        order.append(q)
        saliencies.append(float(costs[q]))
        since += 1
        if progress is not None:
            progress(len(order))
    return Surgery(w, torch.tensor(order), torch.tensor(saliencies, dtype=torch.float64))


def _inverse(hessian: Tensor, active: Tensor, damping: float) -> Tensor:
    """Inverse of the damped Hessian of the active weights, with zeros elsewhere."""
    where = active.nonzero().flatten()
    small = hessian.double()[where][:, where]
    small = (small + small.T) / 2
    small.diagonal().add_(damping * small.diagonal().abs().mean())
    factor, failed = torch.linalg.cholesky_ex(small)
    if bool(failed):
        least = float(torch.linalg.eigvalsh(small)[0])
        raise EspalierError(
            f"the Hessian is not positive definite (least eigenvalue {least:.2g} after damping), so OBS has no "
            "inverse to work with: use more damping, or the Gauss-Newton matrix"
        )
    inverse = torch.zeros(len(active), len(active), dtype=torch.float64, device=small.device)
    inverse[where[:, None], where] = torch.cholesky_inverse(factor)
    return inverse


def _check(weights: Tensor, zeros: int) -> None:
    if not 0 <= zeros <= len(weights):
        raise EspalierError(f"{len(weights):,} weights cannot have {zeros:,} zeros")
