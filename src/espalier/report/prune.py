"""How a pruned file is shown."""

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.pruned_file import PrunedFile

HEADS = ("tensor", "shape", "entries", "kept", "kept share", "cosine")


def as_json(result: "PrunedFile") -> str:
    """The whole record as one JSON object."""
    return dump(result.to_dict())


def as_text(result: "PrunedFile") -> str:
    """A summary, the tensors, and what one should be told."""
    lines = [
        f"{result.source or 'a module'}, by {result.how}",
        f"{result.path}: {result.zeros:,} of {result.entries:,} selected entries are zero "
        f"({percent(result.sparsity, 2)}; {percent(result.zeros / result.parameters, 2)} of all {result.parameters:,} "
        f"parameters), cosine to the parent {result.cosine:.4f}",
        f"size: {size(result.bytes_after)}"
        + (
            f", {percent(result.bytes_after / result.bytes_before)} of the source"
            if result.bytes_before
            else ""
        ),
        "",
        table(HEADS, _rows(result), numeric=(2, 3, 4, 5)),
        *(["", *(f"note: {note}" for note in result.notes)] if result.notes else []),
    ]
    return "\n".join(lines)


def write_html(result: "PrunedFile", path: Path) -> None:
    """A self-contained page."""
    names = [t.name for t in result.tensors]
    figure, axes = new_figure(height=0.8 + 0.22 * len(names))
    axes.barh(range(len(names)), [t.kept / t.entries for t in result.tensors], color="#2f6b46")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of entries kept")
    cards = [
        Card(
            "sparsity",
            percent(result.sparsity, 2),
            f"{result.zeros:,} of {result.entries:,} selected entries",
        ),
        Card("cosine to the parent", f"{result.cosine:.4f}", "selected entries, before and after"),
        Card(
            "size on disk",
            size(result.bytes_after),
            f"{percent(result.bytes_after / result.bytes_before)} of the source"
            if result.bytes_before
            else "",
        ),
    ]
    sections = [
        *([Section("What to know", warnings=result.notes)] if result.notes else []),
        Section(
            "What is left of each tensor", figure=svg(figure), caption="Share of entries that are not zero."
        ),
        Section("Tensors", table=Table(HEADS, _rows(result), frozenset({2, 3, 4, 5}))),
    ]
    write_page(
        Page("Pruned checkpoint", f"{result.path}, from {result.source} by {result.how}", cards, sections),
        path,
    )


def _rows(result: "PrunedFile") -> list[tuple[str, ...]]:
    return [
        (
            t.name,
            "×".join(map(str, t.shape)),
            f"{t.entries:,}",
            f"{t.kept:,}",
            percent(t.kept / t.entries),
            f"{t.cosine:.4f}",
        )
        for t in result.tensors
    ]
