"""Variational dropout: weights with a trained variance; those whose noise drowns them are pruned."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.noisy import Noisy, check_travel
from espalier.methods.ramp import check_fraction

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""Of the approximation of the divergence, equation 14 of the paper."""


@dataclass(frozen=True)
class VariationalDropout(AbstractMethod):
    r"""Gaussian noise of a trained variance on every weight, held against a log-uniform prior.

    .. math:: \hat w = w + \sigma \epsilon, \quad \epsilon \sim N(0, 1), \quad \log\alpha = \log\sigma^2 - \log w^2
    .. math:: \mathrm{cost} = \lambda \sum \tfrac12 \log(1 + \alpha^{-1}) - k_1 \sigma(k_2 + k_3 \log\alpha) + k_1

    with k = (0.63576, 1.87320, 1.48695), the paper's approximation of the divergence from the prior. A weight with
    log alpha above 3 is off: nineteen parts of it in twenty are noise.

    Differs from the authors' code in that weights are drawn, once a batch, and not the activations of each example
    (the local reparameterization, which has less variance, needs layers of its own), and that lambda, one over the
    number of examples after a warm-up there, is steered to the asked sparsity from that value as said in
    `espalier.methods.noisy`. At `settle` exactly the weights of smallest log alpha are kept, at their means, and the
    rest of the run trains those without noise.

    Args:
        start: log sigma^2 at the start.
        travel: how far log sigma^2 can move in the run.
        settle: fraction of the run, in (0, 1].
        threshold: log alpha above which a weight is off.

    Raises:
        EspalierError: a value outside its range.

    References:
        Molchanov, Ashukha, Vetrov (2017), "Variational dropout sparsifies deep neural networks", ICML, equations
            11 and 14.
    """

    start: float = -10.0
    travel: float = 10.0
    settle: float = 0.75
    threshold: float = 3.0

    def __post_init__(self) -> None:
        check_fraction("settle", self.settle)
        check_travel(self.travel)

    def rule(self, model: nn.Module, plan: Plan) -> "_Variational":
        """A rule that trains a variance for each weight."""
        return _Variational(self, model, plan)


class _Variational(Noisy):
    def __init__(self, method: VariationalDropout, model: nn.Module, plan: Plan) -> None:
        super().__init__(method.start, method.travel, method.settle, model, plan)
        self.threshold = method.threshold

    def sample(self, weight: Tensor, gate: Tensor, noise: torch.Generator) -> Tensor:
        return weight + (0.5 * gate).exp() * torch.empty_like(gate).normal_(generator=noise)

    def cost(self, weight: Tensor, gate: Tensor) -> Tensor:
        return divergence(log_alpha(weight, gate)).sum()

    def margin(self, weight: Tensor, gate: Tensor) -> Tensor:
        return self.threshold - log_alpha(weight, gate)

    def seen(self) -> dict[str, Tensor]:
        off = {name: margin <= 0 for name, margin in self.ranks().items()}
        return {name: p.masked_fill(off[name], 0.0) for name, p in self.parameters.items()}

    def plain(self, cut: float) -> dict[str, Tensor]:
        return dict(self.parameters)


def log_alpha(weight: Tensor, log_variance: Tensor) -> Tensor:
    """How much of a weight is noise; a weight of zero counts as 1e-8."""
    return log_variance - (weight.square() + 1e-16).log()


def divergence(log_alpha: Tensor) -> Tensor:
    """The approximate divergence of each entry from the prior, with 0 as its limit where all is noise."""
    return 0.5 * F.softplus(-log_alpha) - K1 * (K2 + K3 * log_alpha).sigmoid() + K1
