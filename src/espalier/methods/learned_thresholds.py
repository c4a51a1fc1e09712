"""STR: a soft threshold for each tensor, learned with the weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._types import Tensors
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.ramp import check_fraction
from espalier.methods.settling import Settling
from espalier.optim import soft_threshold


@dataclass(frozen=True)
class STR(AbstractMethod):
    r"""Soft threshold reparameterization: the network computes with the soft-thresholded tensors, and learns where.

    .. math:: \hat w_l = S_{g(s_l)}(w_l) = \mathrm{sign}(w_l)\,(|w_l| - g(s_l))_+, \qquad g(s) = 1 / (1 + e^{-s})

    Each tensor has one s, trained by the run's optimizer; an entry below its threshold gets no gradient. What drives
    the sparsity is the weight decay of s: it starts far below zero, where there is no threshold, and decays towards
    zero, where the threshold is 1/2, against the gradient of the loss.

    Differs from the authors' code, where start and decay of s are tuned for each sparsity and the sparsity is what
    comes out after 100 epochs: the decay here acts beside the optimizer, by a factor a step that takes s, on average
    over the entries, to the quantile of the magnitudes that a cubic ramp of sparsities asks for; it is found anew a
    hundred times on the way. At `settle` the entries are ranked by :math:`|w| - g(s_l)`, exactly as many as asked
    are kept (where the thresholds left fewer, all of them are lowered by the same amount), and the rest of the run
    trains those.

    Args:
        start: s at the start, negative; -10 is a threshold of 4.5e-5.
        settle: fraction of the run, in (0, 1].

    Raises:
        EspalierError: a value outside its range.

    References:
        Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade, Farhadi (2020), "Soft threshold weight
            reparameterization for learnable sparsity", ICML, equations 3 to 6.
    """

    start: float = -10.0
    settle: float = 0.75

    def __post_init__(self) -> None:
        check_fraction("settle", self.settle)
        if not -math.inf < self.start < 0:
            raise EspalierError(f"`start` of a learned threshold must be negative, got {self.start:g}")

    def rule(self, model: nn.Module, plan: Plan) -> "_Learned":
        """A rule that trains a threshold for each parameter."""
        return _Learned(self, model, plan)


class _Learned(Settling):
    def __init__(self, method: STR, model: nn.Module, plan: Plan) -> None:
        super().__init__(method.settle, model, plan)
        self.levels = {
            name: nn.Parameter(parameter.new_tensor(method.start))
            for name, parameter in self.parameters.items()
        }
        self.every = max(1, self.settle // 100)
        self.decay = 1.0

    def extra(self) -> list[nn.Parameter]:
        return list(self.levels.values())

    def latents(self) -> dict[str, Tensor]:
        return dict(self.levels)

    def seen(self) -> dict[str, Tensor]:
        return {name: soft_threshold(p, self.levels[name].sigmoid()) for name, p in self.parameters.items()}

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if not self.settled and (step - 1) % self.every == 0:
            sizes = {name: parameter.numel() / self.entries for name, parameter in self.parameters.items()}
            mean = sum(size * float(self.levels[name]) for name, size in sizes.items())
            self.decay = decay(mean, self.quantile(self.ramp(ahead=self.every)), self.every)

    @torch.no_grad()
    def advance(self, step: int) -> None:
        for level in self.levels.values():
            level.mul_(self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decay": self.decay}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        super().load_state_dict(state, optimizer)
        self.decay = float(state["decay"])

    def ranks(self) -> Tensors:
        return {
            name: p.detach().abs() - self.levels[name].detach().sigmoid()
            for name, p in self.parameters.items()
        }

    def plain(self, cut: float) -> dict[str, Tensor]:
        # Below zero, the cut says by how much the thresholds must fall for as many entries to pass.
        return {
            name: soft_threshold(p, (self.levels[name].sigmoid() + min(cut, 0.0)).clamp(min=0.0))
            for name, p in self.parameters.items()
        }


def decay(start: float, threshold: float, steps: int) -> float:
    """The factor that takes a negative s to the sigmoid's inverse of a threshold in so many steps.

    Decay only leads towards zero and never across: thresholds are taken into (0, 1/2).
    """
    threshold = min(max(threshold, 1e-12), 0.49)
    return float((math.log(threshold / (1 - threshold)) / min(start, -1e-3)) ** (1 / steps))
