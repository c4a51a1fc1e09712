"""Gradient signal preservation: what removing a weight does to the norm of the gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier._types import Tensors
from espalier.scores._base import AbstractScore, Evidence, Sampling, elementwise

_SAMPLING = Sampling(examples=200, group=200, batch_statistics=True, temperature=200.0)


@dataclass(frozen=True)
class GraSP(AbstractScore):
    r"""Keep the weights without which the gradient would be smallest, in an untrained network.

    .. math:: s = w \odot H g, \qquad g = \nabla L(w), \quad H = \nabla^2 L(w)

    To first order, removing a weight changes :math:`\|g\|^2` by :math:`-2 w [Hg]`; those whose removal raises it most
    go first, so scores have both signs (LAMP refuses them). L is taken at logits divided by a temperature of 200, as
    in the reference. Differs from it in sign (there, high means prune), in that the common divisor is left out, and
    in that 200 examples of the run's order are drawn instead of ten of each class.

    Args:
        sampling: which examples.

    References:
        Wang, Zhang, Grosse, Picking winning tickets before training by preserving gradient flow, ICLR 2020,
            arXiv 2002.07376 (equation 8).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "hessian_gradient"})
    signed: ClassVar[bool] = True

    sampling: Sampling = _SAMPLING

    def scores(self, evidence: Evidence) -> Tensors:
        """Products, one tensor at a time."""
        return elementwise(evidence, evidence.hessian_gradient, Tensor.mul)
