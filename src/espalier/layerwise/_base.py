"""What a layer-wise rule sees of one linear layer, and what it answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier._errors import EspalierError


@dataclass(frozen=True)
class NM:
    """Keep n of every m consecutive inputs of each output, as sparse hardware wants it.

    Args:
        n: kept in a group, 1 to m - 1.
        m: entries of a group.

    Raises:
        EspalierError: numbers that do not fit.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise EspalierError(f"cannot keep {self.n} of every {self.m} entries; N:M needs 1 <= N < M")


@dataclass(frozen=True)
class LayerInputs:
    """What is known of the inputs X of a linear layer, one row for each position of each example.

    Args:
        rows: how many there were.
        squares: sum of squares of each input, float64 (cols,).
        gram: X^T X, float64 (cols, cols); None where no rule reads it.
    """

    rows: int
    squares: Tensor
    gram: Tensor | None = None

    def plus(self, x: Tensor) -> "LayerInputs":
        """With more inputs, (..., cols); sums grow in place."""
        x = x.detach().reshape(-1, x.shape[-1])
        x = x if x.dtype == torch.float64 else x.float()
        self.squares.add_(x.double().square_().sum(0) if x.dtype != torch.float64 else x.square().sum(0))
        if self.gram is not None:
            self.gram.add_(x.T @ x)
        return LayerInputs(self.rows + len(x), self.squares, self.gram)


class AbstractLayerRule(ABC):
    """How one linear layer is pruned, given its weight and its inputs: a frozen value without state."""

    reads_gram: ClassVar[bool] = False

    @abstractmethod
    def prune(self, weight: Tensor, inputs: LayerInputs, target: float | NM) -> tuple[Tensor, Tensor]:
        """The pruned weight, and what of it is kept.

        Args:
            weight: (out, in), float32 or float64, finite; zeros in it stay zero. Left as it is.
            inputs: of the layer.
            target: a sparsity in [0, 1): round(sparsity * entries) are pruned, exactly; or a pattern, whose m divides
                the number of inputs.

        Returns:
            A tensor like the weight with +0.0 where pruned, and a bool tensor, True where kept.
        """


def highest_of_groups(scores: Tensor, pattern: NM) -> Tensor:
    """True at the n highest of every m consecutive entries of each row; equal ones go to the smaller column.

    Args:
        scores: (rows, cols), without NaN; -inf is never kept.
        pattern: its m divides the columns.
    """
    groups = scores.unflatten(1, (-1, pattern.m))  # type: ignore[no-untyped-call]
    # Counting what comes before an entry costs less than sorting groups that are this small.
    before = torch.zeros(groups.shape, dtype=torch.int16, device=scores.device)
    for j in range(pattern.m):
        other = groups[..., j : j + 1]
        before[..., : j + 1] += other > groups[..., : j + 1]
        before[..., j + 1 :] += other >= groups[..., j + 1 :]
    return (before < pattern.n).flatten(1) & (scores != -torch.inf)
