"""Means with intervals, and when one method may be called better than another."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from espalier._errors import EspalierError
from espalier.evaluation import Interval, paired_difference


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Args:
        mean: of the runs.
        interval: 95 %, Student's t over runs; None for one run.
        n: number of runs.
    """

    mean: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus that of another, over the seeds both have.

    Args:
        mean: of the differences by seed.
        seeds: 95 % interval over seeds, Student's t on the differences; None for one seed. (A percentile bootstrap
            of so few is no 95 % interval: of two or three differences it is their range, which covers the mean in 50
            and 75 % of studies, of ten in 90 %.)
        examples: 95 % interval from the test examples alone, seeds pooled (Newcombe's paired interval, mean over
            seeds of the ends, which is wider than pooling them as if they were independent).
        p: McNemar's exact two-sided p-value on the examples, the largest of the seeds.
        n: number of seeds.
    """

    mean: float
    seeds: Interval | None
    examples: Interval
    p: float
    n: int

    @property
    def better(self) -> bool:
        """Whether the first is better: both intervals lie above zero. One seed says nothing of methods."""
        return self.seeds is not None and min(self.seeds[0], self.examples[0]) > 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t-interval of independent runs.

    Raises:
        EspalierError: no runs.
    """
    if not values:
        raise EspalierError("a mean needs at least one run")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, (mean - half, mean + half), n)


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """Compare two methods by the same seeds on the same examples.

    Args:
        one: for each seed, bool (examples,): what the first method has right.
        other: the same for the second, in the same order of seeds.

    Raises:
        EspalierError: no seeds, or different numbers of them.
    """
    if len(one) != len(other) or not one:
        raise EspalierError(f"a comparison needs the same seeds twice, got {len(one)} and {len(other)}")
    pairs = [paired_difference(a, b) for a, b in zip(one, other)]
    by_seed = estimate([pair.difference for pair in pairs])
    ends = [statistics.fmean(pair.interval[end] for pair in pairs) for end in (0, 1)]
    p = max(mcnemar(int((a & ~b).sum()), int((~a & b).sum())) for a, b in zip(one, other))
    return Difference(by_seed.mean, by_seed.interval, (ends[0], ends[1]), p, by_seed.n)


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p-value that two classifiers err equally often, from the examples one of them has right.

    The binomial test of McNemar (1947): under the null, each such example falls to either side with probability 1/2.
    """
    from scipy.stats import binomtest

    n = only_one + only_other
    return float(binomtest(only_one, n, 0.5).pvalue) if n else 1.0


def area(points: Sequence[tuple[float, float]]) -> float | None:
    """Area under accuracy over sparsity by trapezoids, divided by the width: a mean accuracy; None for one point."""
    ordered = sorted(points)
    width = ordered[-1][0] - ordered[0][0] if ordered else 0.0
    if width == 0:
        return None
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(ordered)) / width


@dataclass(frozen=True)
class Crossing:
    """Where the accuracy falls a given number of points below that of the dense control.

    Args:
        sparsity: linear between two sparsities that were measured; else the end of what was.
        side: "at" it; "below" it, where the least sparsity measured has lost more already (from the dense network to
            there nothing was measured, so nothing is said); "above" it, where the largest has not lost as much.
    """

    sparsity: float
    side: Literal["at", "below", "above"]


def crossing(points: Sequence[tuple[float, float]], dense: float, drop: float) -> Crossing:
    """First sparsity at which the accuracy is `drop` below the dense one.

    Args:
        points: (sparsity, accuracy), at least one.
        dense: accuracy of the control.
        drop: how much less, a fraction.
    """
    ordered = sorted(points)
    if dense - ordered[0][1] >= drop:
        return Crossing(ordered[0][0], "at" if math.isclose(dense - ordered[0][1], drop) else "below")
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if dense - y1 >= drop:
            return Crossing(x0 + (drop - (dense - y0)) / (y0 - y1) * (x1 - x0), "at")
    return Crossing(ordered[-1][0], "above")
