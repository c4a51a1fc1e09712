"""Wanda: weights times the norms of their inputs, compared within each output."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from espalier.layerwise._base import NM, AbstractLayerRule, LayerInputs, highest_of_groups


@dataclass(frozen=True)
class Wanda(AbstractLayerRule):
    r"""Keep in each output row the weights that contribute most, by the size of what comes in.

    .. math:: s_{ij} = |w_{ij}| \, \|X_j\|_2

    with column j of the calibration inputs X. Nothing is updated. Each row keeps the same number of weights, up to
    one: row r loses round(s (r + 1) c) - round(s r c) of its c weights, so that the layer loses exactly what is asked,
    where the reference rounds every row down. Zeros that are there come first.

    References:
        Sun, Liu, Bair, Kolter, A simple and effective pruning approach for large language models, ICLR 2024,
            arXiv 2306.11695 (equation 1).
    """

    def prune(self, weight: Tensor, inputs: LayerInputs, target: float | NM) -> tuple[Tensor, Tensor]:
        """The highest scores of each row, or of each group."""
        scores = weight.abs().double().mul_(inputs.squares.sqrt()).masked_fill_(weight == 0, -torch.inf)
        kept = (
            highest_of_groups(scores, target) if isinstance(target, NM) else highest_of_rows(scores, target)
        )
        return weight.masked_fill(~kept, 0.0), kept


def highest_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """True at the highest of each row; all rows together lose exactly round(sparsity * entries), or more to -inf.

    Args:
        scores: (rows, cols), without NaN; -inf is never kept; equal ones go to the smaller column.
        sparsity: in [0, 1).
    """
    rows, cols = scores.shape
    ends = [round(sparsity * (cols * r)) for r in range(rows)] + [round(sparsity * scores.numel())]
    counts = torch.tensor([cols - (b - a) for a, b in pairwise(ends)], device=scores.device)
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(cols, device=scores.device) < counts.unsqueeze(1)
    return torch.zeros_like(first).scatter_(1, order, first) & (scores != -torch.inf)
