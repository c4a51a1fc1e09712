"""SparseGPT: optimal brain surgeon on a linear layer, column by column, with all later columns adapting."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.layerwise._base import NM, AbstractLayerRule, LayerInputs, highest_of_groups
from espalier.threshold import top_mask

_LEAF = 16
"""Columns that are swept one by one; the effect on others is then one matrix product."""


@dataclass(frozen=True)
class SparseGPT(AbstractLayerRule):
    r"""Prune a layer so that its outputs on the calibration inputs change little.

    With the Hessian :math:`H = X^\top X + \lambda I` of the layer's squared output error (the same for every row) and
    the upper Cholesky factor U of its inverse, :math:`H^{-1} = U^\top U`, the columns are passed in order. Before each
    block of columns the entries to prune in it are those of smallest

    .. math:: \frac{w_{ij}^2}{U_{jj}^2},

    over all rows together; then each pruned weight of column j is compensated in all later columns of its row by

    .. math:: w_{i,j:} \leftarrow w_{i,j:} - \frac{w_{ij}}{U_{jj}} U_{j,j:}.

    U comes from one Cholesky factorization and one triangular solve: with the order of the columns reversed, the
    lower factor's inverse is U. (The reference inverts H and factorizes the inverse, which costs half as much again
    and loses digits.) Effects on later columns are gathered and applied as matrix products, by halving within a
    block.

    Differs from the reference in that block k loses round(s e_k) - round(s e_{k-1}) entries, e_k being those up to its
    end, so that the layer loses exactly what is asked; that a weight on an input that was never active costs nothing
    but is not pruned beyond that number; and that zeros that are there stay zero.

    Args:
        block: columns of a block, at least 1; a pattern's m must divide it.
        damping: lambda as a fraction of the mean diagonal of the Hessian, positive.
        update: False leaves the other weights as they are, to see what the compensation is worth.

    Raises:
        EspalierError: a value outside its range.

    References:
        Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML 2023,
            arXiv 2301.00774 (algorithm 1).
    """

    reads_gram: ClassVar[bool] = True

    block: int = 128
    damping: float = 0.01
    update: bool = True

    def __post_init__(self) -> None:
        if self.block < 1:
            raise EspalierError(f"`block` counts columns, at least 1, got {self.block}")
        if not 0 < self.damping < float("inf"):
            raise EspalierError(f"`damping` must be a positive number, got {self.damping:g}")

    def prune(self, weight: Tensor, inputs: LayerInputs, target: float | NM) -> tuple[Tensor, Tensor]:
        """Block by block over the columns."""
        if isinstance(target, NM) and self.block % target.m:
            raise EspalierError(
                f"a block of {self.block} columns cannot be cut into groups of {target.m}; give `block` as a multiple"
            )
        assert inputs.gram is not None
        upper = inverse_factor(inputs.gram.to(weight.dtype), self.damping)
        return remove(weight, upper, target, block=self.block, update=self.update)


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    r"""The upper triangular U with :math:`U^\top U = (G + \lambda I)^{-1}`.

    Inputs that were never active get the mean of the diagonal instead of 0.

    Args:
        gram: G, symmetric (n, n), not negative; may be overwritten.
        damping: lambda as a fraction of the mean of the diagonal's entries above 0.

    Raises:
        EspalierError: the sum cannot be factorized, or nothing was ever active.
    """
    diagonal = gram.diagonal()
    alive = diagonal > 0
    if not alive.any():
        raise EspalierError("the calibration inputs of a layer are all zero; give others")
    mean = diagonal[alive].double().mean().item()
    diagonal.masked_fill_(~alive, mean).add_(damping * mean)
    lower, failed = torch.linalg.cholesky_ex(gram.flip(0, 1))
    if failed:
        raise EspalierError(
            f"the Hessian of a layer is not positive definite at damping {damping:g}; raise `damping`, or give more "
            "calibration inputs"
        )
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
    return inverse.flip(0, 1)


def remove(
    weight: Tensor, upper: Tensor, target: float | NM, *, block: int, update: bool
) -> tuple[Tensor, Tensor]:
    """Passes the columns of a weight; see `SparseGPT`.

    Args:
        weight: (rows, cols); left as it is.
        upper: U of `inverse_factor`, (cols, cols).
        target: a sparsity, or a pattern.
        block: columns whose entries compete, and after which all later columns are updated.
        update: whether they are.

    Returns:
        The new weight and what of it is kept.
    """
    rows, cols = weight.shape
    sweep = _Sweep(weight, upper, target if isinstance(target, NM) else None, update)
    for start in range(0, cols, block):
        stop = min(cols, start + block)
        if not isinstance(target, NM):
            pruned = round(target * (rows * stop)) - round(target * (rows * start))
            sweep.choose(start, stop, (stop - start) * rows - pruned)
        sweep.columns(start, stop)
        if update:
            sweep.later(start, stop, cols)
    return sweep.weight.T.contiguous(), sweep.kept.T.contiguous()


class _Sweep:
    """The state of one pass: everything transposed, so that a column lies together in memory."""

    def __init__(self, weight: Tensor, upper: Tensor, pattern: NM | None, update: bool) -> None:
        self.weight = weight.T.clone(memory_format=torch.contiguous_format)
        self.upper, self.pattern, self.update = upper, pattern, update
        self.diagonal = upper.diagonal()
        self.alive = self.weight != 0
        self.kept = torch.zeros_like(self.alive)
        self.errors = torch.zeros_like(self.weight)
        self.leaf = max(_LEAF // pattern.m, 1) * pattern.m if pattern else _LEAF

    def scores(self, start: int, stop: int) -> Tensor:
        """What removing each entry of these columns costs; -inf for zeros that stay."""
        found = (self.weight[start:stop] / self.diagonal[start:stop, None]).square_()
        return found.masked_fill_(~self.alive[start:stop], -torch.inf)

    def choose(self, start: int, stop: int, count: int) -> None:
        """Keep so many entries of these columns, where there are so many."""
        scores = self.scores(start, stop)
        self.kept[start:stop] = top_mask(scores, min(count, int(self.alive[start:stop].sum())))

    def columns(self, start: int, stop: int) -> None:
        """Pass these columns; the first half's effect on the second is one product."""
        if stop - start <= self.leaf:
            for i in range(start, stop):
                self.column(i, stop)
            return
        middle = start + max(1, (stop - start) // 2 // self.leaf) * self.leaf
        self.columns(start, middle)
        if self.update:
            self.later(start, middle, stop)
        self.columns(middle, stop)

    def column(self, i: int, stop: int) -> None:
        """Prune one column and compensate in those up to `stop`."""
        if self.pattern and i % self.pattern.m == 0:
            group = self.scores(i, i + self.pattern.m).T
            self.kept[i : i + self.pattern.m] = highest_of_groups(group, self.pattern).T
        gone = ~self.kept[i]
        torch.div(self.weight[i].masked_fill(~gone, 0.0), self.diagonal[i], out=self.errors[i])
        self.weight[i].masked_fill_(gone, 0.0)
        if self.update:
            self.weight[i + 1 : stop].addr_(self.upper[i, i + 1 : stop], self.errors[i], alpha=-1)

    def later(self, start: int, stop: int, end: int) -> None:
        """The effect of columns start to stop on those from there to `end`."""
        self.weight[stop:end].addmm_(self.upper[start:stop, stop:end].T, self.errors[start:stop], alpha=-1)
