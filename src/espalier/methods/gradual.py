"""Prune a little at a time while training."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.methods.ramp import changes, check_ramp, sparsity_at
from espalier.optim import CUBIC, AbstractSchedule
from espalier.scores import AbstractScore, Magnitude


@dataclass(frozen=True)
class Gradual(AbstractMethod):
    r"""Raises the sparsity along a schedule; what is pruned stays pruned.

    .. math:: s_t = s_0 + (s - s_0)\,\phi\Big(\frac{t - t_0}{t_1 - t_0}\Big)

    with the cubic ramp :math:`\phi(p) = 1 - (1 - p)^3` this is Zhu and Gupta's formula. Differs from their code in
    that the steps t_0, t_1 are fractions of the run, that one ranking of all tensors is the default, and that the
    last update gives the count asked for, exactly.

    `Gradual(allocation=UniformPlus())` is Gale, Elsen and Hooker's second variant of magnitude pruning ("magnitude
    v2"): the first convolution dense, the last layer at most 80 % sparse, all others alike.

    Args:
        score: what makes an entry worth keeping, asked anew at every update; a score that reads gradients gathers them
            in eval mode each time, so give it fewer `updates`.
        allocation: how the budget is spread over the tensors.
        schedule: the ramp phi.
        begin: fraction of the run where the ramp starts, in [0, 1).
        end: fraction of the run where it ends, in (begin, 1].
        updates: how many times the mask changes on the way, at least 1.

    Raises:
        EspalierError: a value outside its range.

    References:
        Zhu, Gupta (2017), "To prune, or not to prune".
        Gale, Elsen, Hooker (2019), "The state of sparsity in deep neural networks", section 6.
    """

    score: AbstractScore = Magnitude()
    allocation: AbstractAllocation = Global()
    schedule: AbstractSchedule = CUBIC
    begin: float = 0.0
    end: float = 0.7
    updates: int = 100

    def __post_init__(self) -> None:
        check_ramp(self.begin, self.end, self.updates)

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that updates its mask after some of the steps."""
        return _Ramp(self, model, plan)


class _Ramp(MaskRule):
    def __init__(self, method: Gradual, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.at = changes(plan, method.begin, method.end, method.updates)
        self.start = 0.0

    def begin(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.start = self.sparsity
        if self.plan.steps == 0:
            self.update(1.0)

    def after_step(self, step: int) -> None:
        if step in self.at:
            self.update(self.at[step])

    def update(self, progress: float) -> None:
        """Prune to the sparsity of the schedule."""
        method = self.method
        sparsity = sparsity_at(progress, self.start, self.target, method.schedule)
        self.hold(choose(method.score, method.allocation, self.evidence(method.score), sparsity))

    def state_dict(self) -> dict[str, object]:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: dict[str, object], optimizer: Optimizer) -> None:
        super().load_state_dict(state, optimizer)
        self.start = float(state["start"])  # type: ignore[arg-type]
