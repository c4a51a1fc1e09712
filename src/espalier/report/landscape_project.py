"""How shares in the leading eigenspace are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.project import Share
    from espalier.landscape.spectrum import Eigenpairs

HEADS = ("vector", "norm", "share", "times chance", "curvature along it")


@dataclass(frozen=True)
class Result:
    """Vectors and one eigenspace.

    Args:
        at: the network whose curvature it is.
        subset: which examples.
        kind: of curvature.
        pairs: leading eigenpairs.
        shares: one a vector.
    """

    at: str
    subset: str
    kind: str
    pairs: "Eigenpairs"
    shares: "Sequence[Share]"


def as_json(result: Result) -> str:
    """Everything but the vectors as one JSON object."""
    return dump(
        {
            "at": result.at,
            "data": result.subset,
            "curvature": result.kind,
            "eigenpairs": result.pairs.to_dict(),
            "shares": [share.to_dict() for share in result.shares],
        }
    )


def as_text(result: Result) -> str:
    """The shares, beside chance."""
    return "\n".join(
        [table(HEADS, _rows(result), numeric=(1, 2, 3, 4)), "", *(f"note: {line}" for line in _notes(result))]
    )


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(result), png)
    if html is None:
        return
    first = result.shares[0]
    cards = [Card(f"share of {first.name}", f"{first.share:.4f}", f"{first.ratio:.1f} times chance")]
    section = Section(
        "Shares",
        points=_notes(result),
        figure=svg(figure(result)),
        caption="Length of the part in the leading eigenspace over the whole length; the band holds 95 % of random "
        "directions.",
        table=Table(HEADS, _rows(result), frozenset({1, 2, 3, 4})),
    )
    write_page(
        Page("Differences in the leading eigenspace", f"curvature at {result.at}", cards, [section]), html
    )


def figure(result: Result) -> "Figure":
    """One bar a vector, chance as a band."""
    names = [share.name for share in result.shares]
    drawn, axes = new_figure(7, 1.4 + 0.4 * len(names))
    axes.barh(range(len(names)), [share.share for share in result.shares], color=COLORS[0])
    low, high = result.shares[0].interval
    axes.axvspan(low, high, color=COLORS[1], alpha=0.25)
    axes.axvline(result.shares[0].baseline, color=COLORS[1], label="random direction")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the length in the leading eigenspace")
    axes.legend(frameon=False)
    return drawn


def _rows(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            share.name,
            f"{share.norm:.4g}",
            f"{share.share:.4f}",
            f"{share.ratio:.2f}",
            f"{share.curvature:.3g}",
        )
        for share in result.shares
    ]


def _notes(result: Result) -> list[str]:
    pairs, first = result.pairs, result.shares[0]
    kind = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}.get(result.kind, result.kind)
    lines = [
        f"top {len(pairs.values)} eigenvectors of the {kind} at {result.at}, eigenvalues "
        f"{float(pairs.values[0]):.4g} to {float(pairs.values[-1]):.4g}, {pairs.products} products",
        f"data: {result.subset}; eval mode, fixed order",
        f"chance: a random direction in {pairs.dimension:,} dimensions has a share of {first.baseline:.4f} "
        f"(95 % between {first.interval[0]:.4f} and {first.interval[1]:.4f})",
        "shares are ratios of lengths; Figure 6 of the directional pruning paper shows them divided by sqrt(10)",
    ]
    if not all(pairs.converged):
        lines.append(
            f"only {sum(pairs.converged)} of {len(pairs.values)} eigenpairs converged: allow more --products"
        )
    if not any("control" in share.name for share in result.shares):
        lines.append("no control pair: give --control C D, such as two runs of SGD, to know what is usual")
    return lines
