"""The LC algorithm: weights that train and sparse weights beside them are drawn together until they are the same."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._types import Tensors
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.ramp import check_fraction
from espalier.methods.settling import Settling
from espalier.threshold import top_counts, top_mask


@dataclass(frozen=True)
class LC(AbstractMethod):
    r"""Learning-compression with a constraint on the number of nonzeros, by the augmented Lagrangian.

    .. math:: \min_w L(w) \;\text{ s.t. }\; w = \theta, \; \|\theta\|_0 \le \kappa

    L steps train the network with a quadratic pull towards the sparse copy, C steps project, and the multipliers
    remember what is left between the two:

    .. math:: w \leftarrow \arg\min L(w) + \tfrac{\mu}{2} \|w - \theta - \lambda/\mu\|^2, \qquad
              \theta \leftarrow \Pi_\kappa(w - \lambda/\mu), \qquad \lambda \leftarrow \lambda - \mu (w - \theta)

    where the projection keeps the kappa largest magnitudes of all tensors. mu grows geometrically.

    Differs from the authors' code in that an L step is a share of one run with the run's own learning rates instead
    of a training with rates clipped at 1/mu, and that mu is given free of the scale of the rates: as the fraction
    by which a step of plain gradient descent at the full rate, or all of its echoes by momentum, pulls w towards
    theta. At `settle`, theta takes the place of w, and the rest of the run trains its nonzeros.

    Args:
        first: the pull in the first L step, in (0, last].
        last: the pull in the last one, less than 1.
        rounds: C steps, at least 2, evenly spread until `settle`.
        settle: fraction of the run, in (0, 1].
        multipliers: False is the quadratic penalty alone.

    Raises:
        EspalierError: a value outside its range.

    References:
        Carreira-Perpinan, Idelbayev (2018), "'Learning-compression' algorithms for neural net pruning", CVPR,
            section 3 and figure 1.
    """

    first: float = 1e-3
    last: float = 0.3
    rounds: int = 30
    settle: float = 0.75
    multipliers: bool = True

    def __post_init__(self) -> None:
        check_fraction("settle", self.settle)
        if not 0 < self.first <= self.last < 1:
            raise EspalierError(
                f"the pull must grow with 0 < first <= last < 1, got {self.first:g} and {self.last:g}"
            )
        if self.rounds < 2:
            raise EspalierError(f"`rounds` counts C steps, at least 2, got {self.rounds}")

    def rule(self, model: nn.Module, plan: Plan) -> "_Drawn":
        """A rule that adds a pull to the loss."""
        return _Drawn(self, model, plan)


class _Drawn(Settling):
    def __init__(self, method: LC, model: nn.Module, plan: Plan) -> None:
        super().__init__(method.settle, model, plan)
        self.method = method
        training = plan.training
        echo = 1 - training.momentum if training.optimizer == "sgd" else 1.0
        self.unit = echo / training.lr
        self.sparse: dict[str, Tensor] = {}
        self.multiplier: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            self.sparse[name] = torch.zeros_like(parameter, requires_grad=False)
            self.multiplier[name] = torch.zeros_like(parameter, requires_grad=False)

    @property
    def strength(self) -> float:
        """Mu in the L step that is going on."""
        rounds = min(self.method.rounds, self.settle)
        index = self.done * rounds // self.settle
        growth = (self.method.last / self.method.first) ** (index / max(1, rounds - 1))
        return float(self.unit * self.method.first * growth)

    def begin(self, optimizer: Optimizer) -> None:
        self.project(self.strength)
        super().begin(optimizer)

    def weights(self) -> dict[str, Tensor] | None:
        return None

    def measured(self) -> dict[str, Tensor] | None:
        return None

    def seen(self) -> dict[str, Tensor]:
        return dict(self.parameters)

    def penalty(self) -> Tensor | None:
        if self.settled:
            return None
        mu = self.strength
        pulls = [
            (p - self.sparse[name] - self.multiplier[name] / mu).square().sum()
            for name, p in self.parameters.items()
        ]
        return mu / 2 * torch.stack(pulls).sum()

    def advance(self, step: int) -> None:
        rounds = min(self.method.rounds, self.settle)
        if step * rounds // self.settle > (step - 1) * rounds // self.settle:
            self.done = step - 1  # the mu of the L step that ends here
            mu = self.strength
            self.done = step
            self.project(mu)

    @torch.no_grad()
    def project(self, mu: float) -> None:
        """The C step, then that of the multipliers."""
        moved = self.shifted(mu)
        ranks = {name: tensor.abs() for name, tensor in moved.items()}
        counts = top_counts(ranks, self.kept)
        for name, parameter in self.parameters.items():
            self.sparse[name].copy_(moved[name].where(top_mask(ranks[name], counts[name], name), 0.0))
            if self.method.multipliers and self.done:
                self.multiplier[name].sub_(mu * (parameter - self.sparse[name]))

    def shifted(self, mu: float) -> dict[str, Tensor]:
        """What is projected."""
        return {name: p.detach() - self.multiplier[name] / mu for name, p in self.parameters.items()}

    def ranks(self) -> Tensors:
        return {name: tensor.abs() for name, tensor in self.sparse.items()}

    def plain(self, cut: float) -> dict[str, Tensor]:
        return self.sparse

    def latents(self) -> dict[str, Tensor]:
        both = ("sparse", self.sparse), ("multiplier", self.multiplier)
        return {f"{kind} {name}": tensor for kind, tensors in both for name, tensor in tensors.items()}
