"""Lottery tickets: train, prune a fifth of what is left, rewind, and so on until the sparsity is reached."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.scores import Magnitude


@dataclass(frozen=True)
class Iterative(AbstractMethod):
    r"""Iterative magnitude pruning with rewinding of weights and learning rate, or of the learning rate alone.

    A round trains and then prunes the fraction `prune` of the weights left, those of smallest magnitude over all
    tensors; the last round prunes to the sparsity s asked for, which takes
    :math:`\lceil \log(1 - s) / \log(1 - \mathrm{prune}) \rceil` rounds (11 for 90 %, 18 for 98 %), and one more
    training follows. After each pruning the optimizer starts anew, the learning rate goes back to where it was at
    `to`, and with `rewind="weights"` so do the weights, norms and statistics of the network.

    Differs from the papers in the budget: there every round is a whole training, here all trainings share the
    steps of one run equally and each goes through the whole learning-rate schedule.

    Args:
        rewind: "weights" is the lottery ticket, "rate" keeps the weights.
        prune: fraction of the weights left that a round prunes, in (0, 1).
        to: how much of the first training is kept when rewinding, in [0, 1); 0 is its start.
        allocation: how the budget is spread over the tensors.

    Raises:
        EspalierError: a value outside its range.

    References:
        Frankle, Carbin (2019), "The lottery ticket hypothesis", ICLR. Frankle, Dziugaite, Roy, Carbin (2020), "Linear
            mode connectivity and the lottery ticket hypothesis", ICML (rewinding to an early step). Renda, Frankle,
            Carbin (2020), "Comparing rewinding and fine-tuning in neural network pruning", ICLR (rates).
    """

    rewind: Literal["weights", "rate"] = "weights"
    prune: float = 0.2
    to: float = 0.0
    allocation: AbstractAllocation = Global()

    def __post_init__(self) -> None:
        if self.rewind not in ("weights", "rate"):
            raise EspalierError(f'`rewind` is "weights" or "rate", got {self.rewind!r}')
        if not 0 < self.prune < 1:
            raise EspalierError(f"`prune` is a fraction of the weights left, in (0, 1), got {self.prune:g}")
        if not 0 <= self.to < 1:
            raise EspalierError(f"`to` is a fraction of the first training, in [0, 1), got {self.to:g}")

    def rounds(self, sparsity: float) -> int:
        """How many prunings lead to a sparsity."""
        # The small number takes back what rounding may add to a whole number of rounds.
        return math.ceil(math.log(1 - sparsity) / math.log(1 - self.prune) - 1e-9)

    def rule(self, model: nn.Module, plan: Plan) -> "_Rounds":
        """A rule that prunes after each round."""
        return _Rounds(self, model, plan)


class _Rounds(MaskRule):
    def __init__(self, method: Iterative, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.count = method.rounds(self.target)
        if 0 < plan.steps <= self.count:
            raise EspalierError(
                f"a sparsity of {self.target} takes {self.count} rounds with a training after each, and the run has "
                f"{plan.steps} steps: give more epochs, or prune more at once than {method.prune:g}"
            )
        # A later training lacks the steps before `to`. Rounds begin after so many steps:
        lengths = [1.0, *[1 - method.to] * self.count]
        ends = [sum(lengths[: i + 1]) / sum(lengths) for i in range(self.count)]
        self.starts = [0, *(round(end * plan.steps) for end in ends)]
        self.whole = plan.steps / sum(lengths)  # steps of a training without rewinding
        self.first = round(method.to * self.whole)
        self.early: dict[str, Tensor] = {}

    def begin(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.keep(0)
        if self.plan.steps == 0 or not self.count:
            self.hold(self.chosen(self.target))

    def after_step(self, step: int) -> None:
        self.keep(step)
        for number in range(1, self.count + 1):
            if self.starts[number] == step:
                self.turn(number)

    def keep(self, step: int) -> None:
        """Remember the network that is rewound to."""
        if self.method.rewind == "weights" and step == self.first and not self.early:
            self.early = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def turn(self, number: int) -> None:
        """Prune for the round `number`, and rewind."""
        sparsity = 1 - (1 - self.method.prune) ** number if number < self.count else self.target
        masks = self.chosen(sparsity)
        assert self._optimizer is not None
        self._optimizer.state.clear()
        if self.early:
            self.model.load_state_dict(self.early)
        self.hold(masks)

    def chosen(self, sparsity: float) -> Any:
        """Masks that keep the largest magnitudes."""
        return choose(Magnitude(), self.method.allocation, self.evidence(), sparsity)

    def position(self, step: int) -> int:
        if not self.plan.steps:
            return step
        number = bisect_right(self.starts, step) - 1
        inside = step - self.starts[number] + (self.first if number else 0)
        return min(round(inside * self.plan.steps / self.whole), self.plan.steps - 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "early": self.early}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        super().load_state_dict(state, optimizer)
        device = next(iter(self.parameters.values())).device
        self.early = {name: tensor.to(device) for name, tensor in state["early"].items()}
