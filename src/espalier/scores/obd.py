"""Optimal brain damage: the second-order cost of removing a weight, with a diagonal curvature."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier._types import Tensors
from espalier.scores._base import AbstractScore, Evidence, Sampling, elementwise

_EXAMPLES = Sampling(examples=512, group=1)
_GROUPS = Sampling(examples=1000, group=50)


@dataclass(frozen=True)
class OBD(AbstractScore):
    r"""Keep the weights that are dear by a quadratic model of the loss whose curvature is the diagonal Fisher.

    .. math:: s = \tfrac12 h w^2, \qquad h = \frac1m \sum_{i=1}^m \Big(\frac{\partial L_i}{\partial w}\Big)^2

    :math:`L_i` is the loss of one example with its own label (the empirical Fisher matrix, which equals the Hessian
    in expectation at a minimum where the model is right). LeCun et al. take the diagonal of the Hessian by a
    backward recursion for squared errors (Gauss-Newton); the Fisher is its counterpart for cross-entropy, never
    negative, and needs gradients only. `HessianOBD` takes the Hessian's own diagonal. With a group of b > 1
    examples, h mixes the diagonal with the squared mean gradient: (diagonal + (b - 1) mean²) / b.

    Args:
        sampling: which examples; every one of them costs a forward and a backward pass by default.

    References:
        LeCun, Denker, Solla, Optimal brain damage, NeurIPS 1989 (equation 5).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "squared_gradients"})

    sampling: Sampling = _EXAMPLES

    def scores(self, evidence: Evidence) -> Tensors:
        """Half of curvature times square, one tensor at a time."""
        return elementwise(evidence, evidence.squared_gradients, _cost)


@dataclass(frozen=True)
class HessianOBD(AbstractScore):
    r"""Optimal brain damage with the diagonal of the Hessian, estimated from products with random signs.

    .. math:: s = \tfrac12 h w^2, \qquad h = \frac1m \sum_{i=1}^m z_i \odot H_i z_i

    :math:`H_i` is the Hessian of the mean loss of group i, :math:`z_i` a vector of independent signs, one for each
    group, fixed by the name of the tensor and i (Bekas et al.). The estimate is unbiased and noisy; its entries may be
    negative, and so may the scores, which LAMP refuses. Differs from LeCun et al. in that no term of the Hessian is
    dropped.

    Args:
        sampling: which examples; as many estimates are averaged as there are groups.

    References:
        LeCun, Denker, Solla, Optimal brain damage, NeurIPS 1989 (equation 5).
        Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, Applied Numerical Mathematics 57, 2007.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "hessian_diagonal"})
    signed: ClassVar[bool] = True

    sampling: Sampling = _GROUPS

    def scores(self, evidence: Evidence) -> Tensors:
        """Half of curvature times square, one tensor at a time."""
        return elementwise(evidence, evidence.hessian_diagonal, _cost)


def _cost(weight: Tensor, curvature: Tensor) -> Tensor:
    return weight.square().mul_(curvature).div_(2)
