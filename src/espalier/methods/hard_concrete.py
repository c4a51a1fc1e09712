"""L0 regularization: a random gate on every weight, whose probability of being open is trained."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.noisy import Noisy, check_travel
from espalier.methods.ramp import check_fraction

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretched interval of the hard-concrete distribution, as in the paper."""
CLOSED = math.log(-GAMMA / ZETA)
"""The log alpha up to which a gate is closed when nothing is drawn."""


@dataclass(frozen=True)
class L0(AbstractMethod):
    r"""Weights times hard-concrete gates, with a cost on the expected number of gates that are open.

    .. math:: \hat w = w z, \quad
              z = \mathrm{clip}_{[0,1]}(y (\zeta - \gamma) + \gamma), \quad
              y = \sigma((\log u - \log(1 - u) + \log\alpha) / \beta), \quad u \sim U(0, 1)
    .. math:: \mathrm{cost} = \lambda \sum P(z \ne 0) = \lambda \sum \sigma(\log\alpha - \beta \log(-\gamma / \zeta))

    with beta = 2/3, gamma = -0.1, zeta = 1.1. Measured are the gates without noise,
    :math:`\mathrm{clip}_{[0,1]}(\sigma(\log\alpha)(\zeta - \gamma) + \gamma)`.

    Differs from the authors' code in that every weight has a gate (theirs gates units; the paper allows both), gates
    start nearly open, for networks that are trained already, and lambda is steered to the asked sparsity as said in
    `espalier.methods.noisy`. At `settle` exactly as many weights as asked are kept, those whose gates are likeliest
    to be open, multiplied by their gates; where too many had closed, all log alpha are first raised by the same
    amount. The rest of the run trains those weights without noise.

    Args:
        start: log alpha at the start.
        travel: how far log alpha can move in the run.
        settle: fraction of the run, in (0, 1].

    Raises:
        EspalierError: a value outside its range.

    References:
        Louizos, Welling, Kingma (2018), "Learning sparse neural networks through L0 regularization", ICLR,
            equations 10 to 13.
    """

    start: float = 2.0
    travel: float = 20.0
    settle: float = 0.75

    def __post_init__(self) -> None:
        check_fraction("settle", self.settle)
        check_travel(self.travel)

    def rule(self, model: nn.Module, plan: Plan) -> "_Gated":
        """A rule that trains a gate for each weight."""
        return _Gated(self, model, plan)


class _Gated(Noisy):
    def __init__(self, method: L0, model: nn.Module, plan: Plan) -> None:
        super().__init__(method.start, method.travel, method.settle, model, plan)

    def sample(self, weight: Tensor, gate: Tensor, noise: torch.Generator) -> Tensor:
        uniform = torch.empty_like(gate).uniform_(1e-6, 1 - 1e-6, generator=noise)
        return weight * stretched((uniform.logit() + gate) / BETA)

    def cost(self, weight: Tensor, gate: Tensor) -> Tensor:
        return (gate - BETA * CLOSED).sigmoid().sum()

    def margin(self, weight: Tensor, gate: Tensor) -> Tensor:
        return gate - CLOSED

    def present(self, weight: Tensor, gate: Tensor) -> Tensor:
        return stretched(gate)

    def seen(self) -> dict[str, Tensor]:
        return {name: p * stretched(self.gates[name]) for name, p in self.parameters.items()}

    def plain(self, cut: float) -> dict[str, Tensor]:
        # At the lowest, the gate of the best that has to go is just closed.
        rise = max(0.0, -cut)
        return {name: p * stretched(self.gates[name] + rise) for name, p in self.parameters.items()}


def stretched(logit: Tensor) -> Tensor:
    """A sigmoid stretched to (gamma, zeta) and clipped to [0, 1]."""
    return (logit.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
