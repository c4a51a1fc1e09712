"""Rules whose weights are random while training, with one trained number an entry that says how much it is worth.

Hard-concrete gates and variational dropout have the same mechanism: a noisy function of weight and latent, a
differentiable cost of keeping entries, and a state of the latent in which the entry is off. The cost's strength,
which the papers tune for each sparsity, is steered here towards the ramp of sparsities that gradual methods follow.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from espalier._errors import EspalierError
from espalier._types import Tensors
from espalier.data import seeded
from espalier.methods._base import Plan
from espalier.methods.settling import Settling

_GAIN = 0.6  # a hundred times a gap of 1 % of the entries change the strength by a factor e^0.6


def check_travel(value: float) -> None:
    """Refuse a distance that is not positive."""
    if not 0 < value < math.inf:
        raise EspalierError(f"`travel` is how far a latent can move in a run, positive, got {value:g}")


class Noisy(Settling):
    """A rule with noise on the weights that is a function of (seed, step), and latents with an Adam of their own.

    Adam, which both papers train with, moves a latent by at most about its rate a step, whatever the scale of the
    gradients; a rate of `travel` / steps lets a short run go as far as a long one. The strength starts at one over the
    number of training examples. A hundred times until `settle` it is multiplied by exp(0.6 gap), where gap is the
    sparsity that the ramp asks for less the fraction of entries that are off (half open gates count as halves);
    while that fraction is ahead of the ramp, there is no cost.

    Args:
        start: of every latent.
        travel: how far a latent can move until `settle`.
        settle: fraction of the run, in (0, 1].
        model: the network.
        plan: of the run.
    """

    def __init__(self, start: float, travel: float, settle: float, model: nn.Module, plan: Plan) -> None:
        super().__init__(settle, model, plan)
        self.gates = {
            name: nn.Parameter(torch.full_like(parameter, start))
            for name, parameter in self.parameters.items()
        }
        self.adam = Adam(self.gates.values(), lr=travel / self.settle)
        self.every = max(1, self.settle // 100)
        self.ahead = False
        self.strength = 1 / max(1, plan.steps_per_epoch * plan.training.batch_size)

    # --- what a method says

    @abstractmethod
    def sample(self, weight: Tensor, gate: Tensor, noise: torch.Generator) -> Tensor:
        """A random draw of what the network computes with, differentiable in weight and gate."""

    @abstractmethod
    def cost(self, weight: Tensor, gate: Tensor) -> Tensor:
        """The differentiable cost of the entries of a tensor, summed."""

    @abstractmethod
    def margin(self, weight: Tensor, gate: Tensor) -> Tensor:
        """How far each entry is from being off; it is off at 0 and below."""

    def present(self, weight: Tensor, gate: Tensor) -> Tensor:
        """How much of each entry is not off, from 0 to 1."""
        return self.margin(weight, gate) > 0

    # --- what the run asks

    def latents(self) -> dict[str, Tensor]:
        """One number an entry."""
        return dict(self.gates)

    def weights(self) -> dict[str, Tensor] | None:
        """A draw that depends on seed and step alone."""
        if self.settled:
            return None
        draws = {}
        for name, parameter in self.parameters.items():
            seed = seeded("gates", self.plan.training.seed, self.done, name).initial_seed()
            noise = torch.Generator(parameter.device).manual_seed(seed)
            draws[name] = self.sample(parameter, self.gates[name], noise)
        return draws

    def ranks(self) -> Tensors:
        """The margins."""
        return {name: self.margin(p, self.gates[name]).detach() for name, p in self.parameters.items()}

    def penalty(self) -> Tensor | None:
        """The cost of all entries at the strength of now."""
        if self.settled or self.ahead:
            return None
        costs = [self.cost(parameter, self.gates[name]) for name, parameter in self.parameters.items()]
        return self.strength * torch.stack(costs).sum()

    def before_step(self, step: int) -> None:
        """Move the latents."""
        if not self.settled:
            self.adam.step()
            self.adam.zero_grad()

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Steer the strength towards the ramp."""
        if step % self.every == 0:
            present = [self.present(p, self.gates[name]).sum() for name, p in self.parameters.items()]
            gap = self.ramp() - 1 + float(torch.stack(present).sum()) / self.entries
            self.ahead = gap <= 0
            self.strength *= math.exp(_GAIN * gap)

    def state_dict(self) -> dict[str, Any]:
        """With Adam's state and the strength."""
        return {
            **super().state_dict(),
            "adam": self.adam.state_dict(),
            "strength": self.strength,
            "ahead": self.ahead,
        }

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Go on from there."""
        super().load_state_dict(state, optimizer)
        self.adam.load_state_dict(state["adam"])
        self.strength, self.ahead = float(state["strength"]), bool(state["ahead"])
