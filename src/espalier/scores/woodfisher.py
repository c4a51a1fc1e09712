"""Optimal brain surgeon in its tractable form: blocks of the inverse of the empirical Fisher matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import LazyTensors, Tensors
from espalier.scores._base import AbstractScore, Evidence, Sampling

_SAMPLING = Sampling(examples=1000, group=10)


@dataclass(frozen=True)
class WoodFisher(AbstractScore):
    r"""Keep the weights whose removal is dear even after the others of their block have adapted.

    .. math:: s_q = \frac{w_q^2}{2 \, [F^{-1}]_{qq}}, \qquad F = \lambda I + \frac1m \sum_{i=1}^m g_i g_i^\top

    :math:`g_i` is the mean gradient of one group of examples with their own labels, and F is cut into blocks of
    consecutive entries of a tensor. Woodbury's identity gives the diagonal of the inverse from m x m matrices,

    .. math:: [F^{-1}]_{qq} = \frac1\lambda - \frac1{\lambda^2} \, g_q^\top
              \Big(m I + \frac1\lambda G G^\top\Big)^{-1} g_q, \qquad G \in \mathbb R^{m \times B},

    with :math:`g_q` column q of G: the matrix that the paper builds with one rank-one update after another, at
    :math:`m^2 B + m^3` instead of :math:`m B^2`, without ever storing B x B numbers. In float64.

    Differs from the authors' code in that, and in that the sum of costs is not corrected by a weight update: what
    follows here is training at the mask, which is a better one.

    Args:
        block: entries of a block, at least 1; None is one block for each tensor.
        damping: lambda, positive, in units of squared gradients.
        sampling: which examples; the m gradients are held together, 4 m bytes a weight.

    Raises:
        EspalierError: a value outside its range.

    References:
        Hassibi, Stork, Second order derivatives for network pruning: optimal brain surgeon, NeurIPS 1992.
        Singh, Alistarh, WoodFisher: efficient second-order approximation for neural network compression,
            NeurIPS 2020, arXiv 2004.14340 (equations 4 and 9).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "gradient_samples"})

    block: int | None = 2048
    damping: float = 1e-5
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise EspalierError(f"`block` counts entries, at least 1, got {self.block}")
        if not 0 < self.damping < float("inf"):
            raise EspalierError(f"`damping` must be a positive number, got {self.damping:g}")

    def scores(self, evidence: Evidence) -> Tensors:
        """Squares over twice the diagonal of the inverse, one tensor at a time."""
        weights, gathered = evidence.weights, evidence.gradient_samples
        assert gathered is not None

        def load(name: str) -> Tensor:
            weight, samples = weights[name].detach(), gathered[name]
            inverse = inverse_diagonal(samples.reshape(len(samples), -1), self.damping, self.block)
            return weight.double().square().div_(inverse.mul_(2).view(weight.shape))

        return LazyTensors(list(weights), load)


def inverse_diagonal(samples: Tensor, damping: float, block: int | None) -> Tensor:
    r"""Diagonal of :math:`(\lambda I + G^\top G / m)^{-1}`, block by block of the columns of G.

    Args:
        samples: G, (m, n); converted to float64 a block at a time.
        damping: lambda, positive.
        block: columns of a block; None takes all together.

    Returns:
        A float64 vector (n,) of numbers in (0, 1 / lambda].
    """
    m = len(samples)
    parts = []
    for piece in samples.split(block or max(1, samples.shape[1]), dim=1):  # type: ignore[no-untyped-call]
        g = piece.double()
        # By eigenvectors, because with large equal gradients rounding leaves the matrix not positive definite.
        values, vectors = torch.linalg.eigh(g @ g.T)
        scale = values.clamp_(min=0).div_(damping).add_(m).rsqrt_()
        half = (vectors * scale).T @ g
        # 1 / lambda minus a number close to it where the curvature is large; rounding must not make it negative.
        left = (1 - half.square_().sum(0) / damping).clamp_(min=torch.finfo(g.dtype).eps)
        parts.append(left / damping)
    return torch.cat(parts) if parts else samples.new_empty(0, dtype=torch.float64)
