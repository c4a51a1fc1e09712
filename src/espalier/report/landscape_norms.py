"""How norms along checkpoints are shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.norms import Norms

HEADS = ("checkpoint", "l2/l1", "times the floor", "l2", "l1", "kurtosis", "sparsity")


def as_json(found: "Sequence[Norms]") -> str:
    """The series as one JSON object."""
    rows = [
        {
            "name": one.name,
            "entries": one.entries,
            "zeros": one.zeros,
            "sparsity": one.sparsity,
            "l1": one.l1,
            "l2": one.l2,
            "ratio": one.ratio,
            "floor": one.floor,
            "kurtosis": one.kurtosis,
        }
        for one in found
    ]
    return dump({"checkpoints": rows})


def as_text(found: "Sequence[Norms]") -> str:
    """The series as a table."""
    return "\n".join([table(HEADS, _rows(found), numeric=range(1, 7)), "", _note(found)])


def write(found: "Sequence[Norms]", png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(found), png)
    if html is not None:
        section = Section(
            "Along the series",
            paragraphs=[_note(found)],
            figure=svg(figure(found)),
            caption="Concentration and kurtosis of the selected weights, checkpoint by checkpoint.",
            table=Table(HEADS, _rows(found), frozenset(range(1, 7))),
        )
        write_page(Page("Norms of the weights", f"{len(found)} checkpoints", sections=[section]), html)


def figure(found: "Sequence[Norms]") -> "Figure":
    """l2/l1 and kurtosis over the series, each on its own scale."""
    drawn, axes = new_figure(9, 4)
    at = range(len(found))
    axes.plot(at, [one.ratio for one in found], "o-", color=COLORS[0])
    axes.axhline(found[0].floor, color=COLORS[0], linewidth=1, linestyle=":")
    axes.set_ylabel("l2 / l1 (dotted: smallest possible)", color=COLORS[0])
    axes.set_ylim(bottom=0)
    axes.set_xticks(
        at,
        [one.name for one in found],
        rotation=30 if len(found) > 4 else 0,
        ha="right" if len(found) > 4 else "center",
    )
    other = axes.twinx()
    other.plot(
        at,
        [one.kurtosis if one.kurtosis is not None else float("nan") for one in found],
        "s--",
        color=COLORS[1],
    )
    other.set_ylabel("kurtosis", color=COLORS[1])
    other.set_ylim(bottom=0)
    other.spines[["top"]].set_visible(False)
    return drawn


def _note(found: "Sequence[Norms]") -> str:
    return (
        f"{found[0].entries:,} weights, as one vector; the floor of l2/l1 is 1/sqrt({found[0].entries:,}) = "
        f"{found[0].floor:.4g}, larger means that fewer weights carry the norm"
    )


def _rows(found: "Sequence[Norms]") -> list[tuple[str, ...]]:
    return [
        (
            one.name,
            f"{one.ratio:.4g}",
            f"{one.ratio / one.floor:.3f}",
            f"{one.l2:.4g}",
            f"{one.l1:.4g}",
            "–" if one.kurtosis is None else f"{one.kurtosis:.3g}",
            percent(one.sparsity, 2),
        )
        for one in found
    ]
