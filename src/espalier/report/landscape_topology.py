"""How the topology of masks is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espalier._errors import listing, plural
from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.topology import Layer, Overlap

HEADS = ("network", "layer", "kept", "fan-in", "smallest", "units without input", "inputs without use")
OVERLAP_HEADS = ("networks", "tensor", "overlap (Jaccard)", "of independent masks", "churn", "lost")


@dataclass(frozen=True)
class Result:
    """The masks of one command.

    Args:
        layers: network -> its layers.
        overlaps: other network -> what its masks share with those of the first.
        unknown: convolutions that look grouped, and were taken as of one group.
    """

    layers: "Mapping[str, Sequence[Layer]]"
    overlaps: "Mapping[str, Sequence[Overlap]]"
    unknown: Sequence[str] = ()

    @property
    def first(self) -> str:
        """The network the others are compared with."""
        return next(iter(self.layers))


def as_json(result: Result) -> str:
    """Everything as one JSON object."""
    return dump(
        {
            "networks": {name: [vars(one) for one in layers] for name, layers in result.layers.items()},
            "overlaps": [
                {"a": result.first, "b": name, "tensors": [vars(one) for one in found]}
                for name, found in result.overlaps.items()
            ],
            "groups_unknown": list(result.unknown),
        }
    )


def as_text(result: Result) -> str:
    """Layers, and overlap of masks."""
    parts = [table(HEADS, _rows(result), numeric=range(2, 7))]
    if result.overlaps:
        parts += ["", table(OVERLAP_HEADS, _overlaps(result), numeric=range(2, 6))]
    return "\n".join([*parts, "", *(f"note: {note}" for note in _notes(result))])


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(result), png)
    if html is None:
        return
    sections = [
        Section(
            "Layers",
            points=_notes(result),
            figure=svg(figure(result)),
            caption="Share of the units that are left without a kept incoming weight, or inputs without outgoing.",
            table=Table(HEADS, _rows(result), frozenset(range(2, 7))),
        )
    ]
    if result.overlaps:
        sections.append(
            Section("Overlap", table=Table(OVERLAP_HEADS, _overlaps(result), frozenset(range(2, 6))))
        )
    write_page(Page("Topology of masks", ", ".join(result.layers), sections=sections), html)


def figure(result: Result) -> "Figure":
    """Kept share above, dead share below, over the layers."""
    names = [one.name for one in result.layers[result.first]]
    drawn, only = new_figure(max(8.0, 0.42 * len(names)), 6.4)
    only.remove()
    upper, lower = drawn.subplots(2, 1, sharex=True)
    for (name, layers), color in zip(result.layers.items(), [*COLORS] * len(result.layers), strict=False):
        at = range(len(layers))
        upper.plot(at, [one.kept / one.entries for one in layers], "o-", color=color, label=name)
        lower.plot(
            at,
            [one.no_incoming / one.units for one in layers],
            "o-",
            color=color,
            label=f"{name}: units without input",
        )
        lower.plot(
            at,
            [one.no_outgoing / one.sources for one in layers],
            "x:",
            color=color,
            label=f"{name}: inputs without use",
        )
    for part, word in ((upper, "share kept"), (lower, "share dead")):
        part.set_ylabel(word)
        part.set_ylim(-0.02, 1.02)
        part.spines[["top", "right"]].set_visible(False)
        part.grid(True, color="#e7ece8", linewidth=0.8)
        part.legend(frameon=False, fontsize=8)
    lower.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    return drawn


def _rows(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            name,
            one.name,
            percent(one.kept / one.entries),
            f"{one.fan_in:.1f} of {one.inputs}",
            f"{one.smallest_fan_in}",
            f"{one.no_incoming} of {one.units}",
            f"{one.no_outgoing} of {one.sources}",
        )
        for name, layers in result.layers.items()
        for one in layers
    ]


def _overlaps(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            f"{result.first}, {name}",
            one.name,
            f"{one.jaccard:.4f}",
            f"{one.chance:.4f}",
            percent(one.churn, 2),
            percent(one.lost, 2),
        )
        for name, found in result.overlaps.items()
        for one in found
    ]


def _notes(result: Result) -> list[str]:
    notes = [
        "a convolution kernel is one connection; with skip connections an input without use in one layer may have "
        "one in another",
    ]
    if result.unknown:
        notes.append(
            f"groups unknown, taken as 1: {plural(len(result.unknown), 'convolution')} ({listing(result.unknown, 3)}) "
            "by the shapes belong to groups, of which the file says nothing; give --model to count their inputs "
            "group by group"
        )
    if result.overlaps:
        notes.append(
            "churn: share of all weights that one of the two keeps and the other does not; lost: share of what "
            f"{result.first} keeps that the other does not"
        )
    return notes
