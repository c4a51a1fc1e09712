"""Score once, prune, then fine-tune at the fixed mask."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.scores import AbstractScore, Magnitude


@dataclass(frozen=True)
class OneShot(AbstractMethod):
    r"""Prunes before the first step and trains what is left.

    With several rounds the network is scored anew after each, at sparsities whose densities fall geometrically:

    .. math:: 1 - s_k = (1 - s)^{k / K}, \qquad k = 1, \dots, K

    as synaptic flow asks for with K = 100 (`OneShot(SynFlow(), rounds=100)`); what a round prunes stays pruned.

    Args:
        score: what makes an entry worth keeping.
        allocation: how the budget is spread over the tensors.
        rounds: K, at least 1; without meaning for scores of weights alone.

    Raises:
        EspalierError: fewer rounds than one.

    References:
        Magnitude: Han, Pool, Tran, Dally (2015), "Learning both weights and connections".
        Rounds: Tanaka, Kunin, Yamins, Ganguli (2020), "Pruning neural networks without any data", algorithm 1.
    """

    score: AbstractScore = Magnitude()
    allocation: AbstractAllocation = Global()
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise EspalierError(
                f"`rounds` counts how often the network is scored, at least 1, got {self.rounds}"
            )

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that acts once."""
        return _Once(self, model, plan)


class _Once(MaskRule):
    def __init__(self, method: OneShot, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target

    def begin(self, optimizer: Optimizer) -> None:
        score, allocation, rounds = self.method.score, self.method.allocation, self.method.rounds
        for k in range(1, rounds):
            sparsity = 1 - (1 - self.target) ** (k / rounds)
            choose(score, allocation, self.evidence(score), sparsity).apply_(self.model)
        self.hold(choose(score, allocation, self.evidence(score), self.target), optimizer)
