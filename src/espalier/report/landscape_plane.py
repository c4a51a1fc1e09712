"""How planes through weight space are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from espalier.report.landscape_figures import write_png
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from espalier.landscape.plane import Difference, Grid

HEADS = ("surface", "points", "lowest training loss", "median", "highest", "lowest training error")
MARK_HEADS = ("network", "x", "y", "distance from the plane")
GAP_HEADS = ("surfaces", "what", "largest", "mean", "median", "median of the first")


@dataclass(frozen=True)
class Result:
    """The planes of one command.

    Args:
        grids: name -> grid.
        gaps: (names, what) -> how far two surfaces are apart.
        subset: which examples.
        batch_norm: how it was treated.
        evaluations: how many were made now, resumed ones not counted.
    """

    grids: "Mapping[str, Grid]"
    gaps: "Mapping[tuple[str, str], Difference]"
    subset: str
    batch_norm: str
    evaluations: int


def as_json(result: Result) -> str:
    """Everything as one JSON object."""
    return dump(
        {
            "data": result.subset,
            "batch_norm": result.batch_norm,
            "evaluations": result.evaluations,
            "planes": {name: grid.to_dict() for name, grid in result.grids.items()},
            "differences": [
                {"surfaces": names, "what": what, **vars(gap)} for (names, what), gap in result.gaps.items()
            ],
        }
    )


def as_text(result: Result) -> str:
    """What the surfaces span, where the networks lie, how far the surfaces are apart."""
    parts = [table(HEADS, _rows(result), numeric=range(1, 6)), ""]
    parts += [table(MARK_HEADS, _marks(result), numeric=range(1, 4)), ""]
    if result.gaps:
        parts += [table(GAP_HEADS, _gaps(result), numeric=range(2, 6)), ""]
    return "\n".join([*parts, *(f"note: {note}" for note in _notes(result))])


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(result.grids), png)
    if html is None:
        return
    cards = [
        Card("difference, median", f"{gap.median:.4g}", f"{what}, {names}")
        for (names, what), gap in result.gaps.items()
    ]
    sections = [
        Section(
            "Surfaces",
            points=_notes(result),
            figure=svg(figure(result.grids)),
            caption="Above the training loss, below the test error; logarithmic levels for the loss.",
            table=Table(HEADS, _rows(result), frozenset(range(1, 6))),
        ),
        Section("Networks in the plane", table=Table(MARK_HEADS, _marks(result), frozenset(range(1, 4)))),
    ]
    if result.gaps:
        sections.append(Section("Difference", table=Table(GAP_HEADS, _gaps(result), frozenset(range(2, 6)))))
    write_page(Page("Planes of the loss", ", ".join(result.grids), cards, sections), html)


def figure(grids: "Mapping[str, Grid]") -> "Figure":
    """Contours of training loss and test error, one column a plane, levels shared by all planes."""
    drawn, only = new_figure(5.2 * len(grids), 8.4)
    only.remove()
    axes = drawn.subplots(2, len(grids), squeeze=False)
    first = next(iter(grids.values()))
    has_test = first.heights[0][0].test is not None
    split: Literal["train", "test"] = "test" if has_test else "train"
    losses = {name: grid.values("loss").numpy() for name, grid in grids.items()}
    errors = {name: grid.values("error", split).numpy() for name, grid in grids.items()}
    levels = (_levels(list(losses.values())), np.linspace(0, max(0.05, _top(list(errors.values()))), 16))
    for column, (name, grid) in enumerate(grids.items()):
        for row, (values, what) in enumerate(
            ((losses[name], "training loss"), (errors[name], f"{'test' if has_test else 'training'} error"))
        ):
            part = axes[row][column]
            shown = np.clip(np.nan_to_num(values, nan=np.inf), levels[row][0], levels[row][-1])
            painted = part.contourf(
                grid.x, grid.y, shown, levels=levels[row], cmap="viridis_r", norm=_norm(row, levels[row])
            )
            part.contour(grid.x, grid.y, shown, levels=levels[row][::2], colors="white", linewidths=0.4)
            drawn.colorbar(painted, ax=part, format="%.3g" if row == 0 else "%.2f")
            _mark_networks(part, grid)
            part.set(title=f"{name}: {what}", xlabel=grid.plane.axes[0], ylabel=grid.plane.axes[1])
            part.title.set_fontsize(10)
    drawn.tight_layout()
    return drawn


def _mark_networks(axes: "Axes", grid: "Grid") -> None:
    """Networks of the plane as circles, those off it as triangles; names inside the frame, legible on any color."""
    from matplotlib.patheffects import withStroke

    for number, (name, at) in enumerate(grid.plane.marks.items()):
        form = "o" if at.residual == 0 else "^"
        axes.plot([at.x], [at.y], form, color="black", markersize=6, markerfacecolor="white")
        right = at.x > (grid.x[0] + grid.x[-1]) / 2
        axes.annotate(
            name,
            (at.x, at.y),
            xytext=(-6 if right else 6, 6 if number % 2 == 0 else -13),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def _norm(row: int, levels: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> object:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if row == 0 else Normalize)(levels[0], levels[-1])


def _levels(
    surfaces: "list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]",
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Logarithmic levels from the lowest loss to the highest, at most 10 nats or 1,000 times the lowest."""
    values = np.concatenate([s[np.isfinite(s)] for s in surfaces]) if surfaces else np.ones(1)
    low = max(float(values.min()), 1e-4) if values.size else 1e-4
    high = float(values.max()) if values.size else 1.0
    return np.geomspace(low, max(low * 1.05, min(high, max(10.0, low * 10))), 24)


def _top(surfaces: "list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]") -> float:
    return float(max(s[np.isfinite(s)].max(initial=0.0) for s in surfaces))


def _rows(result: Result) -> list[tuple[str, ...]]:
    rows = []
    for name, grid in result.grids.items():
        loss, error = grid.values("loss"), grid.values("error")
        finite = loss[loss.isfinite()]
        numbers = (finite.min(), finite.median(), finite.max()) if len(finite) else (float("nan"),) * 3
        rows.append(
            (
                name,
                f"{len(grid.x)} × {len(grid.y)}",
                *(f"{float(v):.4g}" for v in numbers),
                percent(float(error.min()), 2),
            )
        )
    return rows


def _marks(result: Result) -> list[tuple[str, ...]]:
    marks = {name: mark for grid in result.grids.values() for name, mark in grid.plane.marks.items()}
    return [(name, f"{m.x:.4g}", f"{m.y:.4g}", f"{m.residual:.4g}") for name, m in marks.items()]


def _gaps(result: Result) -> list[tuple[str, ...]]:
    return [
        (names, what, f"{g.largest:.4g}", f"{g.mean:.4g}", f"{g.median:.4g}", f"{g.scale:.4g}")
        for (names, what), g in result.gaps.items()
    ]


def _notes(result: Result) -> list[str]:
    notes = [result.subset, result.batch_norm, f"{result.evaluations:,} evaluations"]
    if result.gaps:
        notes.append(
            "the largest difference hangs on one point of the grid and on its reach: read the median first"
        )
    return notes
