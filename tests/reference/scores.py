"""Slow transcriptions of published scores, for the fast ones to match."""

import torch
from torch import Tensor


def woodfisher(samples: Tensor, weight: Tensor, damping: float, block: int) -> Tensor:
    """Singh and Alistarh 2020, equations 4 and 9: one rank-one update of the inverse after another, block by block."""
    m, n = samples.shape
    scores = torch.empty(n, dtype=torch.float64)
    for start in range(0, n, block):
        g = samples[:, start : start + block].double()
        inverse = torch.eye(g.shape[1], dtype=torch.float64) / damping
        for row in g:
            v = inverse @ row
            inverse = inverse - torch.outer(v, v) / (m + row @ v)
        scores[start : start + block] = weight[start : start + block].double() ** 2 / (2 * inverse.diagonal())
    return scores


def sparsegpt(weight: Tensor, gram: Tensor, kept: Tensor, damping: float) -> Tensor:
    """Hassibi and Stork's surgeon, row by row and weight by weight in the order of columns.

    Each pruned weight is removed with the exact update of all weights that come after it, by the inverse of the
    Hessian of those not yet passed (Frantar and Alistarh 2023, section 3.2), computed anew each time.
    """
    h = gram.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    w = weight.double().clone()
    for column in range(w.shape[1]):
        inverse = torch.linalg.inv(h[column:, column:])
        for row in range(w.shape[0]):
            if not kept[row, column]:
                w[row, column:] -= w[row, column] / inverse[0, 0] * inverse[0]
                w[row, column] = 0.0
    return w
