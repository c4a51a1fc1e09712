"""Movement pruning: what training draws towards zero goes, and may come back."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.methods.ramp import changes, check_ramp, sparsity_at
from espalier.optim import CUBIC, AbstractSchedule
from espalier.scores import AbstractScore, Movement

_MOVEMENT = Movement()


@dataclass(frozen=True)
class MovementPruning(AbstractMethod):
    r"""Collects for each weight how far training moves it from zero, and computes with those that moved furthest.

    .. math:: \hat w = w \odot m, \qquad m = \mathrm{Top}_{k(t)}(s), \qquad
              s \leftarrow s - w \odot \frac{\partial L}{\partial \hat w}

    The weight itself gets the gradient :math:`m \odot \partial L / \partial \hat w`: where it is pruned, it waits
    (momentum and weight decay act on it) while its score goes on changing, so that it can come back until the end of
    the ramp. From there on the mask is fixed and the rest is trained as it is.

    Differs from the authors' code in that scores start at zero and take steps of size 1, without an optimizer of their
    own (a constant rate changes no order, its decay would); that the mask changes at `updates` steps of the ramp
    instead of at all, and not after it; that one ranking of all tensors is the default, theirs being one for each
    matrix (`Uniform()`).

    Made for fine-tuning a trained network: the score says nothing of how large a weight was to begin with.

    Args:
        allocation: how the budget is spread over the tensors; LAMP takes no scores below zero.
        schedule: the ramp of sparsities, as in `Gradual`.
        begin: fraction of the run where the ramp starts, in [0, 1); scores are collected from the first step.
        end: fraction of the run where it ends, in (begin, 1].
        updates: how many times the mask changes on the way, at least 1.

    Raises:
        EspalierError: a value outside its range.

    References:
        Sanh, Wolf, Rush (2020), "Movement pruning: adaptive sparsity by fine-tuning", equations 2 to 4.
    """

    score: ClassVar[AbstractScore] = _MOVEMENT
    allocation: AbstractAllocation = Global()
    schedule: AbstractSchedule = CUBIC
    begin: float = 0.1
    end: float = 0.8
    updates: int = 100

    def __post_init__(self) -> None:
        check_ramp(self.begin, self.end, self.updates)

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that collects and masks."""
        if not plan.steps:
            raise EspalierError("movement is seen over training steps, and this run has none; give it epochs")
        return _Moving(self, model, plan)


class _Moving(MaskRule):
    def __init__(self, method: MovementPruning, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.at = changes(plan, method.begin, method.end, method.updates)
        self.start = 0.0
        self.moved = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self.gates = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        self._seen: dict[str, Tensor] = {}

    def begin(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.start = self.sparsity

    def measured(self) -> dict[str, Tensor] | None:
        if self.masks is not None:
            return None
        return {name: p * self.gates[name] for name, p in self.parameters.items()}

    def weights(self) -> dict[str, Tensor] | None:
        """The gated weights, which keep their own gradient for the scores."""
        seen = self.measured()
        self._seen = {name: tensor for name, tensor in (seen or {}).items() if tensor.requires_grad}
        for tensor in self._seen.values():
            tensor.retain_grad()
        return seen

    def before_step(self, step: int) -> None:
        for name, tensor in self._seen.items():
            if tensor.grad is not None:
                self.moved[name].addcmul_(self.parameters[name].detach(), tensor.grad, value=-1)
        self._seen = {}

    def after_step(self, step: int) -> None:
        if step not in self.at:
            return
        progress, method = self.at[step], self.method
        sparsity = sparsity_at(progress, self.start, self.target, method.schedule)
        evidence = replace(self.evidence(), movement=self.moved)
        masks = choose(method.score, method.allocation, evidence, sparsity)
        if progress == 1:
            self.hold(masks)
        else:
            self.gates = {name: masks[name].to(gate.device) for name, gate in self.gates.items()}

    def state_dict(self) -> dict[str, Any]:
        own = {"start": self.start, "moved": dict(self.moved), "gates": dict(self.gates)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        super().load_state_dict(state, optimizer)
        self._optimizer = optimizer
        self.start = float(state["start"])
        for name, tensor in self.moved.items():
            tensor.copy_(state["moved"][name])
            self.gates[name].copy_(state["gates"][name])
