"""The absolute value of the weight."""

from dataclasses import dataclass

from espalier._types import LazyTensors, Tensors
from espalier.scores._base import AbstractScore, Evidence


@dataclass(frozen=True)
class Magnitude(AbstractScore):
    r"""Keep the weights that are largest in absolute value: \(s = |w|\).

    For any number of entries kept, no other choice leaves the pruned network at a larger cosine, or a smaller
    Euclidean distance, to its parent.

    References:
        Janowsky, Pruning versus clipping in neural networks, Physical Review A 39, 1989.
        Han, Pool, Tran and Dally, Learning both weights and connections, NeurIPS 2015.
    """

    def scores(self, evidence: Evidence) -> Tensors:
        """Absolute values, one tensor at a time."""
        weights = evidence.weights
        return LazyTensors(list(weights), lambda name: weights[name].detach().abs())
