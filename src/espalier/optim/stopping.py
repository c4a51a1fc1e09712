"""When the zeros have settled: the rule for freezing them, and for ending a training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from espalier._errors import EspalierError
from espalier._types import is_number, is_whole, plain
from espalier.optim.report import MaskReport


@dataclass(frozen=True)
class Settled:
    """The mask hardly changed from report to report.

    A law of the clock (gRDA, RDA) never stops growing, so it never stops pruning; what ends is regrowth. For those
    `regrown=0.0` asks that not one entry came back, and `churn` bounds what is still being pruned. Only the fixed
    mask that follows makes the sparsity final.

    Args:
        churn: in [0, 1], most (pruned + regrown) / entries from one report to the next.
        reports: >= 1, calm reports in a row. A level that is reached once may be luck.
        regrown: in [0, 1], most regrown / entries; the default adds nothing to `churn`.

    Raises:
        EspalierError: a value is out of range.

    Example:
        >>> from espalier.optim import MaskReport, Settled, TensorMask
        >>> rule = Settled(churn=0.01, reports=2)
        >>> calm = MaskReport({"w": TensorMask(1000, 900, 5, 3)}, first=False, frozen=False)
        >>> rule.reached([calm]), rule.reached([calm, calm])
        (False, True)
    """

    churn: float
    reports: int = 1
    regrown: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("churn", self.churn), ("regrown", self.regrown)):
            if not is_number(value) or not 0 <= value <= 1:
                raise EspalierError(
                    f"`{name}` of Settled is {value!r}; it is a fraction of the entries, in [0, 1]"
                )
        if not is_whole(self.reports) or self.reports < 1:
            raise EspalierError(
                f"`reports` of Settled is {self.reports!r}; it counts reports in a row, from 1"
            )
        for name in ("churn", "regrown", "reports"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def calm(self, report: MaskReport) -> bool:
        """Whether this report alone is calm; one without zeros, or without a report before it, never is."""
        if report.first or not report.zeros:
            return False
        return report.churn <= self.churn and report.regrown <= math.floor(self.regrown * report.entries)

    def reached(self, reports: Sequence[MaskReport]) -> bool:
        """Whether the last `self.reports` reports are calm."""
        last = reports[-self.reports :]
        return len(last) == self.reports and all(map(self.calm, last))
