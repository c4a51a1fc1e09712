"""Score once, prune, then fine-tune at the fixed mask."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Batches, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.scores import AbstractScore, Magnitude


@dataclass(frozen=True)
class OneShot(AbstractMethod):
    """Prunes before the first step and trains what is left.

    Args:
        score: what makes an entry worth keeping.
        allocation: how the budget is spread over the tensors.

    References:
        Magnitude: Han, Pool, Tran, Dally (2015), "Learning both weights and connections".
    """

    score: AbstractScore = Magnitude()
    allocation: AbstractAllocation = Global()

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that acts once."""
        return _Once(self, model, plan)


class _Once(MaskRule):
    def __init__(self, method: OneShot, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target

    def begin(self, optimizer: Optimizer, batches: Batches) -> None:
        self.hold(choose(self.method.score, self.method.allocation, self.evidence(), self.target), optimizer)
