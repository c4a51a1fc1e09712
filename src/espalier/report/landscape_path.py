"""How paths between networks are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.ways import Way

HEADS = (
    "way",
    "train loss barrier",
    "test loss barrier",
    "test error barrier",
    "above worse end",
    "at t",
    "test accuracy of ends",
    "distance",
    "arc length",
)
POINT_HEADS = ("way", "t", "train loss", "train accuracy", "test loss", "test accuracy", "zeros")
BARRIER = (
    "barrier: largest value on the way, ends included, minus the mean of the two ends (Frankle et al. 2020), so that "
    "unequal ends alone make one; above worse end: the same of the test error, minus that of the worse end"
)


@dataclass(frozen=True)
class Result:
    """The ways of one command.

    Args:
        ways: in the order measured.
        subset: which examples.
        batch_norm: how it was treated.
        written: files with networks.
    """

    ways: "Sequence[Way]"
    subset: str
    batch_norm: str
    written: tuple[str, ...] = ()


def as_json(result: Result) -> str:
    """Everything as one JSON object."""
    ways = [
        {"start": way.start, "end": way.end, "control": way.control, **way.along.to_dict()}
        for way in result.ways
    ]
    return dump(
        {
            "data": result.subset,
            "batch_norm": result.batch_norm,
            "ways": ways,
            "written": list(result.written),
        }
    )


def as_text(result: Result) -> str:
    """Barriers and lengths, then the points."""
    return "\n".join(
        [
            table(HEADS, [_row(way) for way in result.ways], numeric=range(1, 9)),
            "",
            table(POINT_HEADS, [row for way in result.ways for row in _points(way, 11)], numeric=range(1, 7)),
            "",
            *(f"note: {note}" for note in _notes(result)),
        ]
    )


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(result.ways), png)
    if html is None:
        return
    cards = [
        Card(
            "test error barrier",
            percent(way.along.barrier("test", "error").height, 2),
            f"{way.name}, at t = {way.along.barrier('test', 'error').at:.2f}",
        )
        for way in result.ways
    ]
    sections = [
        Section(
            "On the way",
            points=_notes(result),
            figure=svg(figure(result.ways)),
            caption="Above the loss, below the error, over t.",
            table=Table(HEADS, [_row(way) for way in result.ways], frozenset(range(1, 9))),
        ),
        Section(
            "Points",
            table=Table(
                POINT_HEADS,
                [row for way in result.ways for row in _points(way, 10**9)],
                frozenset(range(1, 7)),
            ),
        ),
    ]
    write_page(Page("Paths between networks", result.ways[0].name, cards, sections), html)


def figure(ways: "Sequence[Way]") -> "Figure":
    """Loss and error over t, one color a way."""
    drawn, upper = new_figure(9, 6.5)
    upper.remove()
    axes = drawn.subplots(2, 1, sharex=True)
    parts: tuple[tuple[Literal["loss", "error"], str], ...] = (
        ("loss", "loss (cross-entropy, nats)"),
        ("error", "error"),
    )
    for part, (what, word) in zip(axes, parts, strict=True):
        part.spines[["top", "right"]].set_visible(False)
        part.grid(True, color="#e7ece8", linewidth=0.8)
        for way, color in zip(ways, [*COLORS] * len(ways), strict=False):
            along = way.along
            part.plot(
                along.t,
                along.values("test", what),
                "-",
                color=color,
                linewidth=2,
                label=way.name,
            )
            part.plot(
                along.t,
                along.values("train", what),
                ":",
                color=color,
                linewidth=1.6,
            )
        part.set_ylabel(word)
        part.set_ylim(bottom=0)
    axes[1].set_xlabel("t")
    axes[0].legend(
        title="solid: test, dotted: training examples",
        title_fontsize=8,
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2 if len(ways) > 1 else 1,
    )
    return drawn


def _row(way: "Way") -> tuple[str, ...]:
    along = way.along
    ends = [along.heights[i].test for i in (0, -1)]
    error = along.barrier("test", "error")
    return (
        way.name,
        f"{along.barrier('train', 'loss').height:.4f}",
        f"{along.barrier('test', 'loss').height:.4f}",
        percent(error.height, 2),
        percent(error.above, 2),
        f"{error.at:.2f}",
        ", ".join(percent(end.accuracy, 2) for end in ends if end is not None),
        f"{along.distance:.4g}",
        f"{along.arc_length:.4g}",
    )


def _points(way: "Way", most: int) -> list[tuple[str, ...]]:
    along = way.along
    every = max(1, -(-(len(along.t) - 1) // (most - 1)))
    return [
        (
            way.name,
            f"{along.t[i]:.3f}",
            f"{along.heights[i].train.loss:.4f}",
            percent(along.heights[i].train.accuracy, 2),
            *_test(way, i),
            percent(along.sparsity[i], 2),
        )
        for i in range(len(along.t))
        if i % every == 0 or i == len(along.t) - 1
    ]


def _test(way: "Way", i: int) -> tuple[str, str]:
    level = way.along.heights[i].test
    return ("–", "–") if level is None else (f"{level.loss:.4f}", percent(level.accuracy, 2))


def _notes(result: Result) -> list[str]:
    n = result.ways[0].along.heights[0].test
    lines = [result.subset, result.batch_norm, BARRIER]
    if n is not None:
        lines.append(
            f"accuracies of {n.n:,} examples are good to about ±{98 / n.n**0.5:.1f} points at worst (95 %)"
        )
    if not any(way.control for way in result.ways):
        lines.append(
            "no control pair: trained curves join almost any two networks, so measure --control C D (two runs "
            "without pruning) before calling it one valley"
        )
    return lines + [f"written: {file}" for file in result.written]
