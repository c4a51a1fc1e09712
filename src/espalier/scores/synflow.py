"""Synaptic flow: how much of the paths through the network runs through a weight; needs no data."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier._types import Tensors
from espalier.scores._base import AbstractScore, Evidence, elementwise


@dataclass(frozen=True)
class SynFlow(AbstractScore):
    r"""Keep the weights that carry most of the flow of ones through the network of absolute weights.

    .. math:: s = \frac{\partial R}{\partial |w|} \odot |w|, \qquad
              R = \mathbf 1^\top \Big(\prod_l |W_l|\Big) \mathbf 1

    The scores of a layer sum to R in every layer that all paths cross (Tanaka et al., theorem 2), so pruned in many
    small rounds, as in the paper (`OneShot(SynFlow(), rounds=100)`), no layer is emptied while another has weights to
    give; in a single round it easily happens.

    For ReLU networks with batch norm in eval mode, whose running variances and absolute scales are part of the product.
    Differs from the reference, which takes the absolute value of every number in the state dict, in that biases and
    running means are zero for the pass: they belong to no product, and with them the scores of a layer no longer sum
    to R. The pass runs in float64, because R overflows float32 in deep networks.

    References:
        Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively conserving synaptic
            flow, NeurIPS 2020, arXiv 2006.05467 (equation 3, algorithm 1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights", "synaptic_flow"})

    def scores(self, evidence: Evidence) -> Tensors:
        """Absolute weights times derivatives, one tensor at a time."""
        return elementwise(evidence, evidence.synaptic_flow, _flow)


def _flow(weight: Tensor, derivative: Tensor) -> Tensor:
    return weight.abs().mul_(derivative)
