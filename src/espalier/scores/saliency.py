"""First-order saliency: how much the loss changes, to first order, when a weight becomes zero."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier._types import Tensors
from espalier.scores._base import AbstractScore, Evidence, Sampling, elementwise

_SOME = Sampling()
_ONE_BATCH = Sampling(examples=128, group=128, batch_statistics=True)


@dataclass(frozen=True)
class Saliency(AbstractScore):
    r"""Keep the weights whose removal changes the loss most, to first order.

    .. math:: s = \Big|w \frac{\partial L}{\partial w}\Big| \qquad\text{or squared}\qquad
              s = \Big(w \frac{\partial L}{\partial w}\Big)^2

    L is the mean cross-entropy over the sampled examples, the network in eval mode. Squaring changes no order within
    or between tensors, only the ratios that LAMP reads. Molchanov et al. square before they average over batches
    instead, which up to a factor of 2 is `OBD` with as large a group. At a minimum of the loss the gradient is noise;
    use `OBD` or `WoodFisher` there.

    Args:
        sampling: which examples.
        squared: the square instead of the absolute value.

    References:
        Mozer, Smolensky, Skeletonization, NeurIPS 1988.
        Molchanov et al., Importance estimation for neural network pruning, CVPR 2019, arXiv 1906.10771 (equation 8).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "gradients"})

    sampling: Sampling = _SOME
    squared: bool = False

    def scores(self, evidence: Evidence) -> Tensors:
        """Absolute or squared products, one tensor at a time."""
        return elementwise(evidence, evidence.gradients, _squared if self.squared else _absolute)


@dataclass(frozen=True)
class SNIP(AbstractScore):
    r"""Connection sensitivity, meant for an untrained network and one batch of examples.

    .. math:: s = \frac{|w \, \partial L / \partial w|}{\sum |w \, \partial L / \partial w|}

    where the derivative by the connection's own factor c at c = 1 is :math:`w \, \partial L / \partial w`. Differs
    from the reference in that the common denominator, which changes no order, is left out, and in that one batch of
    128 examples is the default for every data set. As in the reference, batch norm uses the batch's statistics.

    Args:
        sampling: which examples.

    References:
        Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity, ICLR 2019,
            arXiv 1810.02340 (equations 4 to 6).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "gradients"})

    sampling: Sampling = _ONE_BATCH

    def scores(self, evidence: Evidence) -> Tensors:
        """Absolute products, one tensor at a time."""
        return elementwise(evidence, evidence.gradients, _absolute)


def _absolute(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).abs_()


def _squared(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).square_()
