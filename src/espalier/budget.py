"""The largest sparsity that stays inside a budget: of accuracy with labels, of agreement without."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier.data import AbstractSplit
from espalier.evaluation import Interval, paired_difference, score
from espalier.likeness import compare_logits

PruneAt = Callable[[float], nn.Module]
"""Sparsity in [0, 1] -> a pruned network (and fine-tuned, if wanted); the parent must stay as it is."""


@dataclass(frozen=True)
class Point:
    """One evaluated sparsity.

    Args:
        sparsity: asked for.
        value: drop of accuracy (parent minus pruned; negative is a gain), or agreement with the parent.
        interval: 95 % interval of the value.
        inside: whether the point meets the budget.
    """

    sparsity: float
    value: float
    interval: Interval
    inside: bool


@dataclass(frozen=True)
class Budget:
    """The answer of a search.

    Args:
        sparsity: the largest evaluated one inside the budget below every evaluated one outside; None if even
            the lower end of the search is outside.
        rule: the condition a point must meet, in words.
        points: every evaluated point, in the order of evaluation.
        monotone: False where a sparser point is surely better than a less sparse one (their intervals do not even
            overlap). The search assumes that quality falls with sparsity; then it was wrong to.
        n: number of examples in the evaluation.
    """

    sparsity: float | None
    rule: str
    points: tuple[Point, ...]
    monotone: bool
    n: int


def largest_sparsity(
    prune_at: PruneAt,
    parent: nn.Module,
    split: AbstractSplit,
    budget: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    resolution: float = 0.01,
    progress: Callable[[Point], None] | None = None,
) -> Budget:
    """Find the largest sparsity whose drop of accuracy surely stays inside a budget.

    A sparsity is inside if the *upper* end of the paired 95 % interval of the drop (parent minus pruned, same
    examples, Newcombe's hybrid score interval: `paired_difference`) is at most the budget. With few examples
    the interval is wide and the answer careful. Bisection between `low` and `high` until the bracket is no
    wider than `resolution`; both ends are evaluated first. The interval of one point does not account for the
    search having looked at several.

    Args:
        prune_at: makes the pruned network; called once per evaluated sparsity.
        parent: the dense network.
        split: labelled, not the test split.
        budget: tolerated drop of accuracy as a fraction, 0.01 is one percentage point; in [0, 1).
        low: smallest sparsity to consider.
        high: largest.
        resolution: width of the last bracket, positive.
        progress: called after each evaluation.

    Raises:
        EspalierError: a number outside its range, or a split that is empty or has no labels.
    """
    if not 0 <= budget < 1:
        raise EspalierError(f"accuracy budget must be a fraction in [0, 1), got {budget}: one point is 0.01")
    labels = split.labels
    reference = score(collect_logits(parent, split), labels).correct

    def at(sparsity: float) -> Point:
        correct = score(collect_logits(prune_at(sparsity), split), labels).correct
        drop = paired_difference(reference, correct)
        return Point(sparsity, drop.difference, drop.interval, drop.interval[1] <= budget)

    rule = f"upper end of the paired 95 % interval of the accuracy drop is at most {budget:g}"
    return _bisect(at, rule, len(split), low, high, resolution, progress, higher_is_worse=True)


def largest_agreeing_sparsity(
    prune_at: PruneAt,
    parent: nn.Module,
    split: AbstractSplit,
    level: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    resolution: float = 0.01,
    progress: Callable[[Point], None] | None = None,
) -> Budget:
    """Find the largest sparsity at which the network still answers like its parent; labels are not read.

    A sparsity is inside if the *lower* end of the 95 % Wilson interval of the agreement is at least the
    level. Everything else as in `largest_sparsity`.

    Args:
        prune_at: makes the pruned network; called once per evaluated sparsity.
        parent: the dense network.
        split: inputs, not the test split.
        level: smallest tolerated agreement, in (0, 1). With n inputs even full agreement shows no more than
            n / (n + 3.84).
        low: smallest sparsity to consider.
        high: largest.
        resolution: width of the last bracket, positive.
        progress: called after each evaluation.

    Raises:
        EspalierError: a number outside its range, or an empty split.
    """
    if not 0 < level < 1:
        raise EspalierError(f"agreement level must be in (0, 1), got {level}")
    reference: Tensor = collect_logits(parent, split)

    def at(sparsity: float) -> Point:
        found = compare_logits(collect_logits(prune_at(sparsity), split), reference)
        return Point(sparsity, found.agreement, found.interval, found.interval[0] >= level)

    rule = f"lower end of the 95 % interval of the agreement with the parent is at least {level:g}"
    return _bisect(at, rule, len(split), low, high, resolution, progress, higher_is_worse=False)


def _bisect(
    at: Callable[[float], Point],
    rule: str,
    n: int,
    low: float,
    high: float,
    resolution: float,
    progress: Callable[[Point], None] | None,
    *,
    higher_is_worse: bool,
) -> Budget:
    """Both ends, then halves; the trace keeps every point."""
    if not 0 <= low < high <= 1:
        raise EspalierError(f"the search needs 0 <= low < high <= 1, got low {low} and high {high}")
    if not resolution > 0:
        raise EspalierError(f"resolution must be positive, got {resolution}")
    points: list[Point] = []

    def look(sparsity: float) -> bool:
        points.append(at(sparsity))
        if progress is not None:
            progress(points[-1])
        return points[-1].inside

    best: float | None = None
    if look(low):
        best = low
        if look(high):
            best = high
        while best < high and high - best > resolution:
            middle = (best + high) / 2
            if look(middle):
                best = middle
            else:
                high = middle
    return Budget(best, rule, tuple(points), _monotone(points, higher_is_worse), n)


def _monotone(points: list[Point], higher_is_worse: bool) -> bool:
    """No sparser point has its whole interval on the better side of the interval of a less sparse one."""
    ordered = [p.interval for p in sorted(points, key=lambda p: p.sparsity)]
    if not higher_is_worse:
        ordered = [(-high, -low) for low, high in ordered]
    return all(b[1] >= a[0] for i, a in enumerate(ordered) for b in ordered[i + 1 :])
