"""Movement: whether training has drawn a weight away from zero or towards it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier._types import LazyTensors, Tensors
from espalier.scores._base import AbstractScore, Evidence


@dataclass(frozen=True)
class Movement(AbstractScore):
    r"""Keep the weights that gradient descent has moved away from zero.

    .. math:: s = -\sum_t w^{(t)} \Big(\frac{\partial L}{\partial w}\Big)^{(t)}

    The sum is collected while training, by `espalier.methods.MovementPruning`; it has both signs (LAMP refuses it).

    References:
        Sanh, Wolf, Rush, Movement pruning: adaptive sparsity by fine-tuning, NeurIPS 2020, arXiv 2005.07683
            (equation 4).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "movement"})
    signed: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> Tensors:
        """The sums as they were collected."""
        moved = evidence.movement
        assert moved is not None

        def load(name: str) -> Tensor:
            return moved[name].detach().clone()

        return LazyTensors(list(evidence.weights), load)
