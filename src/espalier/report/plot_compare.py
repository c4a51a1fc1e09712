"""The figures of a comparison: error over whatever a method costs, and the methods at one sparsity."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#777777"
PALE = "#cccccc"
SHAPES = "os^Dv"
NAMED = 20
"""Lines with a color of their own, two shapes for each of ten colors; the rest are pale."""
TICKS = {0.7: (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7), 1.2: (1, 2, 3, 5, 7), 9.0: (1, 2, 5)}
"""Labeled digits of the distance from 100 %, for axes of up to so many decades."""


@dataclass(frozen=True)
class Mark:
    """A method at one sparsity, as it is drawn.

    Args:
        label: of the method.
        sparsity: zeros / entries.
        accuracy: mean over runs.
        interval: of the mean, or None.
        tied: not told apart from the best.
        n: runs.
    """

    label: str
    sparsity: float
    accuracy: float
    interval: tuple[float, float] | None
    tied: bool
    n: int


def ranked(marks: Sequence[Mark]) -> list[str]:
    """Labels, the best first at the sparsity that most methods have (of several, the largest), then the others."""
    if not marks:
        return []
    counts = Counter(mark.sparsity for mark in marks)
    at = max(counts, key=lambda sparsity: (counts[sparsity], sparsity))
    order = sorted(marks, key=lambda mark: (mark.sparsity != at, -mark.accuracy))
    return list(dict.fromkeys(mark.label for mark in order))


def lines(
    axes: "Axes",
    marks: Sequence[Mark],
    dense: Mapping[str, float],
    places: Mapping[tuple[str, float], float] | None = None,
    others: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Accuracy, on a scale logarithmic in the error, over sparsity or another place on the axis.

    Args:
        axes: to draw on.
        marks: what there is. Methods at a single sparsity are no lines: drawn only if there are none but them.
        dense: accuracies of controls by label, drawn as levels.
        places: where on the axis a mark stands, by (label, sparsity); None for its sparsity.
        others: published numbers as (label, sparsity, accuracy), drawn hollow.
    """
    several = {label for label, count in Counter(mark.label for mark in marks).items() if count > 1}
    labels = [label for label in ranked(marks) if label in several or not several]
    accuracies = [mark.accuracy for mark in marks] + [accuracy for _, _, accuracy in others]
    error = _from_one(axes, "y", [*accuracies, *dense.values()])
    if places is None:
        sparsities = sorted({mark.sparsity for mark in marks} | {sparsity for _, sparsity, _ in others})
        kept = _from_one(axes, "x", sparsities, ticks=sparsities)
        axes.set(xlabel="sparsity %")
    for i, label in enumerate(labels):
        known = sorted((m for m in marks if m.label == label), key=lambda mark: mark.sparsity)
        axes.errorbar(
            [kept(mark.sparsity) if places is None else places[label, mark.sparsity] for mark in known],
            [error(mark.accuracy) for mark in known],
            yerr=_bars(known, error),
            fmt=f"{SHAPES[i // 10 % len(SHAPES)]}-",
            color=f"C{i % 10}" if i < NAMED else PALE,
            linewidth=1.2,
            markersize=4,
            capsize=2,
            zorder=NAMED + 3 - min(i, NAMED),
            label=label if i < NAMED else None,
        )
    for label, accuracy in dense.items():
        axes.axhline(error(accuracy), color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(
            label, (0.0, error(accuracy)), xycoords=("axes fraction", "data"), fontsize=8, color=GREY
        )
    for i, name in enumerate(dict.fromkeys(label for label, _, _ in others)):
        points = [(kept(at), error(accuracy)) for label, at, accuracy in others if label == name]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            SHAPES[i % len(SHAPES)],
            mfc="none",
            color=GREY,
            markersize=7,
            label=f"{name} (others)",
        )
    axes.set(ylabel="test accuracy %")


def dots(axes: "Axes", marks: Sequence[Mark]) -> None:
    """Methods below each other, the best on top; filled where it is not told from the best."""
    known = sorted(marks, key=lambda mark: mark.accuracy)
    error = _from_one(axes, "x", [mark.accuracy for mark in marks])
    for i, mark in enumerate(known):
        axes.errorbar(
            [error(mark.accuracy)],
            [i],
            xerr=None if mark.interval is None else _bars([mark], error),
            fmt="o",
            mfc=None if mark.tied else "none",
            color="#2f6b46" if mark.tied else GREY,
            capsize=2,
        )
    axes.set_yticks(range(len(known)), [f"{mark.label} ({mark.n})" for mark in known], fontsize=8)
    axes.set(xlabel="test accuracy % (filled: not told from the best)")


def _bars(marks: Sequence[Mark], error: Callable[[float], float]) -> list[list[float]]:
    """Lengths of the bars towards small and large errors."""
    ends = [(m.accuracy, m.accuracy) if m.interval is None else m.interval for m in marks]
    towards_small = [error(mark.accuracy) - error(high) for mark, (_, high) in zip(marks, ends)]
    return [towards_small, [error(low) - error(mark.accuracy) for mark, (low, _) in zip(marks, ends)]]


def _from_one(
    axes: "Axes", letter: str, values: Sequence[float], ticks: Sequence[float] = ()
) -> Callable[[float], float]:
    """Make an axis of fractions logarithmic in their distance from one, labeled in percent.

    Args:
        axes: to change.
        letter: x or y.
        values: that it has to show.
        ticks: the values to label; empty for a choice.

    Returns:
        Where on the axis a value stands; one itself, and beyond, at the end.
    """
    away = [1 - value for value in values]
    least = min((distance for distance in away if distance > 0), default=0.01) / 1.2
    most = min(1.0, max([*away, 1.2 * least]) * 1.2)  # wider than a point, also where nothing errs
    axis = axes.xaxis if letter == "x" else axes.yaxis
    axes.set(**{f"{letter}scale": "log", f"{letter}lim": (most, least)})
    decades = math.log10(most / least)
    digits = next(digits for up_to, digits in TICKS.items() if decades <= up_to or up_to == max(TICKS))
    shown = [1 - value for value in ticks] or [
        digit * 10.0**power for power in range(-9, 1) for digit in digits
    ]
    shown = [distance for distance in shown if least <= distance <= most]
    axis.set_ticks(shown, [f"{100 * (1 - distance):.4g}" for distance in shown])
    axis.set_ticks([], minor=True)
    return lambda value: max(1 - value, least)
