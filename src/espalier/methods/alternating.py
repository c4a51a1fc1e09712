"""AC/DC: phases in which the network is sparse alternate with phases in which all weights train."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.allocate import AbstractAllocation, Global
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose
from espalier.scores import Magnitude


@dataclass(frozen=True)
class ACDC(AbstractMethod):
    """Alternating compressed / decompressed training.

    After a dense warm-up, phases of equal length alternate: at the start of a compressed one, all but the largest
    magnitudes are pruned and stay pruned through it; at the start of a decompressed one every weight may train
    again, the pruned ones from zero and without momentum. A longer decompressed phase and a longer compressed one end
    the run. The default fractions are those of the authors' 100 epochs on ImageNet: warm-up 10, phases of 5 until
    75, decompressed until 85.

    Differs from the authors' code in that phases begin at steps, not epochs, and pruning is exact.

    Args:
        warmup: fraction of the run that is dense at first, in [0, last).
        phase: length of a phase, a fraction of the run.
        last: fraction of the run where the last decompressed phase begins, in (warmup, final).
        final: fraction where the final compressed phase begins, in (last, 1].
        allocation: how the budget is spread over the tensors.

    Raises:
        EspalierError: a value outside its range.

    References:
        Peste, Iofinova, Vladu, Alistarh (2021), "AC/DC: alternating compressed/decompressed training of deep neural
            networks", NeurIPS, algorithm 1.
    """

    warmup: float = 0.1
    phase: float = 0.05
    last: float = 0.75
    final: float = 0.85
    allocation: AbstractAllocation = Global()

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.last < self.final <= 1:
            raise EspalierError(
                "phases are fractions of the run with 0 <= warmup < last < final <= 1, got "
                f"{self.warmup:g}, {self.last:g} and {self.final:g}"
            )
        if not 0 < self.phase <= self.last - self.warmup:
            raise EspalierError(
                f"a phase lasts more than 0 and at most the {self.last - self.warmup:g} of the run between warm-up and "
                f"the last decompression, got {self.phase:g}"
            )

    def rule(self, model: nn.Module, plan: Plan) -> "_Alternating":
        """A rule that compresses and decompresses."""
        return _Alternating(self, model, plan)

    def phases(self, steps: int) -> dict[int, bool]:
        """Number of steps done -> whether the phase that begins then is compressed."""
        marks, count = {}, round((self.last - self.warmup) / self.phase)
        for index in range(count):
            at = self.warmup + index * (self.last - self.warmup) / count
            marks[round(at * steps)] = index % 2 == 0
        # In a short run phases fall together: the later one counts.
        return {**marks, round(self.last * steps): False, round(self.final * steps): True}


class _Alternating(MaskRule):
    def __init__(self, method: ACDC, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.phases = method.phases(plan.steps)

    def begin(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.turn(0)

    def after_step(self, step: int) -> None:
        self.turn(step)

    def turn(self, step: int) -> None:
        """Begin the phase of this step, if there is one."""
        compressed = self.phases.get(step)
        if compressed is None:
            return
        masks = None
        if compressed:
            masks = choose(Magnitude(), self.method.allocation, self.evidence(), self.target)
        self.hold(masks)
