"""Densities from shapes alone: Erdős-Rényi and its extension to kernels."""

from dataclasses import dataclass

from espalier._types import Counts, Tensors
from espalier.allocate._base import AbstractAllocation, budget, check_fraction, least, survey
from espalier.allocate.apportion import apportion


@dataclass(frozen=True)
class ERK(AbstractAllocation):
    r"""Keep fractions in proportion to the sum of a tensor's dimensions over their product.

    A convolution is kept at density \(\varepsilon (c_{in} + c_{out} + k_h + k_w) / (c_{in} c_{out} k_h
    k_w)\), a linear layer at \(\varepsilon (n_{in} + n_{out}) / (n_{in} n_{out})\), with \(\varepsilon\)
    such that the total is the budget. Where that exceeds 1 the tensor is kept whole and \(\varepsilon\)
    found anew for the others, until none does. A tensor is thus kept to the number \(\varepsilon \sum_d
    \text{shape}_d\): small tensors stay dense, large ones carry the sparsity.

    Depthwise kernels (one input channel), one-dimensional and scalar tensors follow the same formula and
    are dense at all but extreme sparsities (the reference keeps biases dense always; they are not selected
    by default here). Differs from the reference in that counts are exact whole numbers, and that a tensor
    with existing zeros is bounded by its nonzeros instead of its size.

    Args:
        floor: fraction of each tensor that is kept at least; in [0, 1].

    References:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity
        inspired by
            network science, Nature Communications 9, 2018 (Erdős-Rényi, equation 1).
        Evci, Gale, Menick, Castro and Elsen, Rigging the lottery, ICML 2020, arXiv 1911.11134 (section 3,
        kernels).
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.floor, "floor")

    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Counts in proportion to the sum of the dimensions."""
        room = survey(scores)
        kept = budget(room, kept)
        lower = least(room, kept, dict.fromkeys(room.shapes, self.floor), f"`floor`={self.floor:g}")
        # Density times entries: the product of the dimensions cancels. A scalar counts as one dimension of 1.
        shares = {name: float(sum(shape) or 1) for name, shape in room.shapes.items() if room.nonzeros[name]}
        return dict.fromkeys(room.shapes, 0) | apportion(shares, lower, dict(room.nonzeros), kept)
