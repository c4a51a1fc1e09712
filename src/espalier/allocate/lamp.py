"""Scores made comparable between layers by what would be left of the layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import Counts, RankedTensors, Tensors, required_in
from espalier.allocate._base import AbstractAllocation, check_fraction, ranked_counts


@dataclass(frozen=True)
class LAMP(AbstractAllocation):
    r"""Layer-adaptive magnitude: rank each entry by its share of the energy not yet pruned in its tensor.

    With the scores of a tensor sorted ascending, \(s_1 \le \dots \le s_n\) (for magnitudes \(s = |w|\)),
    entry \(u\) is ranked by \(s_u^2 / \sum_{v \ge u} s_v^2\), over all tensors together. The last entry of
    every tensor has rank value 1, so with a budget of at least one entry per tensor none is emptied. No
    hyper-parameter, and invariant to the scale of a tensor.

    Sums run in float64, from the largest entry down, over scores divided by the largest, so that no square
    underflows. Equal scores are taken in the documented order of ties (smaller flat index = larger), where
    the paper leaves the order open; the order within a tensor is that of the scores. Costs two sorts of
    each tensor, one tensor at a time.

    Args:
        floor: fraction of each tensor that is kept at least; in [0, 1].

    Raises:
        EspalierError: if a score is negative or infinite: its square says nothing about its rank.

    References:
        Lee, Park, Mo, Ahn and Shin, Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021,
            arXiv 2010.07611 (equation 1).
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.floor, "floor")

    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Counts of the entries whose layer-adaptive rank value is highest."""
        required = required_in(scores)
        shares = RankedTensors(
            list(scores), lambda name: lamp(scores[name], name, name in required), required
        )
        return ranked_counts(shares, kept, self.floor)


def lamp(scores: Tensor, name: str = "", required: bool = False) -> Tensor:
    r"""The values \(s_u^2 / \sum_{v \ge u} s_v^2\) of one tensor, sorted descending (no longer in its shape).

    Only how many of them pass a threshold is ever asked, and sorted they need no second permutation.

    Args:
        scores: not negative; -inf marks entries that are never kept, and stays.
        name: for messages.
        required: +inf marks entries that are always kept; they stay too, and the others share the energy of the
            others.

    Returns:
        A float64 vector as long as the scores have entries.
    """
    values = _descending(scores.detach().reshape(-1))
    alive = values.numel() - int((values == -torch.inf).sum())
    first = int((values == torch.inf).sum()) if required else 0
    top = values[first:alive].double()
    if len(top) and not (top[-1] >= 0 and top[0] < torch.inf):
        raise EspalierError(
            f"LAMP needs scores that are finite and not negative, and {name!r} has others; use "
            "Global, Uniform or ERK."
        )
    energy = (top / top[:1].clamp(min=torch.finfo(torch.float64).tiny)).square_()
    shares = torch.full(values.shape, -torch.inf, dtype=torch.float64, device=values.device)
    shares[:first] = torch.inf
    shares[first:alive] = (energy / energy.cumsum(0)).nan_to_num_(0.0)
    return shares


def _descending(values: Tensor) -> Tensor:
    """Sorted values alone; on the CPU by NumPy, whose sort is vectorized and an order of magnitude faster."""
    if values.device.type != "cpu":
        return values.sort(descending=True).values
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return torch.from_numpy(np.sort(wide.numpy())[::-1].copy())
