"""What the `WatchMask` callbacks do, whichever loop calls them."""

from collections.abc import Sequence
from typing import Literal

from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.optim import DualAveraging, MaskReport, Settled, TargetSparsity

Action = Literal["freeze", "stop"]


class Watch:
    """Looks at the mask once an epoch.

    Args:
        settled: when the mask has settled; a number is the churn of `Settled`; None only watches.
        then: fix the mask and train on, or stop training.

    Raises:
        EspalierError: a value outside its range.
    """

    def __init__(self, settled: float | Settled | None, then: Action) -> None:
        if then not in ("freeze", "stop"):
            raise EspalierError(f"`then` is 'freeze' or 'stop', got {then!r}")
        self.settled = settled if isinstance(settled, Settled | None) else Settled(settled)
        self.then = then
        self.calm = 0
        self.report: MaskReport | None = None

    def check(self, optimizers: Sequence[Optimizer]) -> DualAveraging:
        """The optimizer that is watched.

        Raises:
            EspalierError: it is another, or freezing contradicts its law.
        """
        found = [optimizer for optimizer in optimizers if isinstance(optimizer, DualAveraging)]
        if len(found) != 1:
            given = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
            raise EspalierError(
                f"WatchMask watches one optimizer of espalier.optim (DualAveraging, GRDA, ...), the trainer has {given}"
            )
        if self.settled is not None and self.then == "freeze" and _targets(found[0]):
            raise EspalierError(
                "TargetSparsity freezes by itself at its end: give WatchMask no `settled`, or then='stop'"
            )
        return found[0]

    def look(self, optimizer: DualAveraging) -> tuple[dict[str, float], bool]:
        """Counts since the last look, to be logged; freezes where it is time to.

        Returns:
            The values by name, and whether training should stop.
        """
        report = self.report = optimizer.mask_report()
        # A target that is still on its way only pauses.
        on_its_way = _targets(optimizer) and not report.frozen
        calm = self.settled is not None and self.settled.calm(report) and not on_its_way
        self.calm = self.calm + 1 if calm else 0
        settled = self.settled is not None and self.calm >= self.settled.reports
        if settled and self.then == "freeze" and not optimizer.frozen:
            optimizer.freeze()
        values = {
            "sparsity": report.sparsity,
            "churn": report.churn,
            "regrown": float(report.regrown),
            "overlap": report.overlap,
            "frozen": float(optimizer.frozen),
        }
        return values, settled and self.then == "stop"


def _targets(optimizer: DualAveraging) -> bool:
    return any(isinstance(group["law"], TargetSparsity) for group in optimizer.param_groups)
