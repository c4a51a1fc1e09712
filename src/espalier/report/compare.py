"""How a comparison is shown."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.checkpoint.write import atomic
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.plot_compare import Mark, dots, lines
from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.compare import Cell, Comparison, Row
    from espalier.study import StudyRecipe

HEADS = (
    "method",
    "sparsity",
    "accuracy",
    "95 % interval",
    "n",
    "behind the best",
    "McNemar p",
    "train FLOPs",
    "if sparse",
    "file",
)
CURVE_HEADS = ("method", "sparsities", "area under the curve", "1 point lost at")
SIDES = {"at": "", "below": "< ", "above": "> "}
"""How a crossing outside what was measured is marked."""
WORDS = {
    "sparse_flops": "training FLOPs if products with zeros were left out (scores not counted)",
    "bytes": "bytes of the sparse file",
}
SCALE = "Scales are logarithmic in the distance from 100 %."
CAPTIONS = {
    "sparsity": f"Accuracy over sparsity, with 95 % intervals over runs. {SCALE} Hollow: numbers of others, not rerun.",
    "sparse_flops": "Accuracy over what the training would compute without products with zero weights, which no "
    f"hardware here leaves out: the table's “if sparse”, not its “train FLOPs”, alike for most methods. {SCALE}",
    "bytes": f"Accuracy over the size of the sparse file. {SCALE}",
}
DOTS = f"The best on top, with 95 % intervals over runs; in brackets how many. {SCALE}"
LEGEND = (
    "{mark} marks the best mean at its sparsity and every method that is not surely worse: the paired 95 % intervals "
    "over seeds (Student's t of the differences by seed, shown) and over test examples both have to leave zero out. "
    "Each pair is judged by itself, so of many methods as good as the best some may be called worse by chance. With "
    "one seed nothing is said of methods: what is shown then is two networks. Nor is anything said of a method with "
    "failed runs, which are in no mean: what is left of it may be its luckier seeds. McNemar's p-value is of the "
    "examples on which they differ (of several seeds, the largest). FLOPs: what the training computed, + what scores "
    "that read data computed besides, counted as they ran; if sparse: the training without products with zero weights."
)
STAR = LEGEND.format(mark="*")
BOLD = LEGEND.format(mark="Bold")


def plan_text(cells: "Sequence[Cell]", reasons: dict[str, str]) -> str:
    """Every run of a study, and why it cannot be done where it cannot."""
    rows = [(cell.digest, str(cell), reasons.get(cell.digest, "")) for cell in cells]
    heads = ("run", "what", "cannot be done")
    return f"{table(heads, rows, wrap=(2,))}\n\n{len(cells)} runs, {len(reasons)} of them cannot be done"


def as_json(study: "StudyRecipe", result: "Comparison") -> str:
    """Everything as one JSON object."""
    return dump({"study": study.model_dump(mode="json"), **asdict(result)})


def as_text(study: "StudyRecipe", result: "Comparison", folder: Path) -> str:
    """A table for each network and teacher."""
    lines = [study.title]
    for title, rows in _groups(result):
        lines += ["", title, table(HEADS, [_row(row, "*") for row in rows], numeric=range(1, 10))]
        lines += ["", table(CURVE_HEADS, _curve_rows(result, rows), numeric=(1, 2, 3))]
    return "\n".join([*lines, "", STAR, *_remarks(result), "", f"report: {folder / 'report.html'}"])


def write(study: "StudyRecipe", result: "Comparison", folder: Path) -> None:
    """Write `comparison.json`, `comparison.png` and `report.html` into the folder."""
    with atomic(folder / "comparison.json") as temporary:
        temporary.write_text(as_json(study, result) + "\n")
    for i, (_, rows) in enumerate(_groups(result)):
        with atomic(folder / ("comparison.png" if i == 0 else f"comparison-{i + 1}.png")) as temporary:
            _over(rows, "sparsity", study).savefig(temporary, format="png", dpi=130, bbox_inches="tight")
    write_page(page(study, result), folder / "report.html")


def page(study: "StudyRecipe", result: "Comparison") -> Page:
    """The page of a study."""
    sections = [Section("How to read this", paragraphs=[BOLD], points=_remarks(result))]
    done = sum(row.accuracy.n for row in result.rows if row.accuracy is not None)
    failed = sum(len(row.failures) for row in result.rows)
    for title, rows in _groups(result):
        bold = frozenset(i for i, row in enumerate(rows) if row.tied)
        drawn_up = Table(HEADS, [_row(row, "") for row in rows], frozenset(range(1, 10)), bold)
        sections.append(Section(title, table=drawn_up))
        for axis, caption in CAPTIONS.items():
            if axis == "sparsity" or _placed(rows, axis):
                sections.append(Section("", figure=svg(_over(rows, axis, study)), caption=caption))
        drawn = _marks(rows)
        for sparsity in dict.fromkeys(mark.sparsity for mark in drawn):
            marks = [mark for mark in drawn if mark.sparsity == sparsity]
            figure, axes = new_figure(9, 1.2 + 0.24 * len(marks))
            dots(axes, marks)
            sections.append(Section(f"At {percent(sparsity)} zeros", figure=svg(figure), caption=DOTS))
        curves = Table(CURVE_HEADS, _curve_rows(result, rows), frozenset((1, 2, 3)))
        sections.append(Section("Over all sparsities", table=curves))
    if study.published:
        rows_ = [(p.label, percent(p.sparsity), percent(p.accuracy, 2), p.source) for p in study.published]
        sections.append(
            Section(
                "Numbers of others",
                paragraphs=["Published, not rerun: other settings, other networks, other rules."],
                table=Table(("what", "sparsity", "accuracy", "source"), rows_, frozenset((1, 2))),
            )
        )
    cards = [
        Card("runs", str(done), f"{failed} failed, {result.missing} not run"),
        Card("methods", str(len({row.label for row in result.rows})), "under equal conditions"),
    ]
    return Page(study.title, "Every method in the same training, on the same batches", cards, sections)


def _groups(result: "Comparison") -> "list[tuple[str, list[Row]]]":
    keys = dict.fromkeys((row.network, row.teacher) for row in result.rows)
    return [
        (
            f"{network}{', the dense parent teaches' if teacher else ''}",
            [row for row in result.rows if (row.network, row.teacher) == (network, teacher)],
        )
        for network, teacher in keys
    ]


def _row(row: "Row", mark: str) -> tuple[str, ...]:
    asked = "dense" if row.sparsity is None else percent(row.sparsity)
    failed, n = len(row.failures), 0 if row.accuracy is None else row.accuracy.n
    runs = f"{n} of {n + failed}, {failed} failed" if failed else str(n)
    if row.accuracy is None:
        return (row.label, asked, "failed", "–", runs, *5 * ("–",))
    interval = row.accuracy.interval
    behind = "–" if row.tied is not None or failed else "no common seed"
    if row.behind is not None:
        ends = row.behind.seeds
        within = "one seed" if ends is None else f"{percent(ends[0], 2)} – {percent(ends[1], 2)}"
        behind = f"{percent(row.behind.mean, 2)} ({within})"
    return (
        f"{mark if row.tied else ''}{row.label}",
        asked,
        percent(row.accuracy.mean, 2),
        "–" if interval is None else f"{percent(interval[0])} – {percent(interval[1])}",
        runs,
        behind,
        "–" if row.behind is None else f"{row.behind.p:.2g}",
        "–" if row.flops is None else f"{row.flops:.3g}" + (f" + {row.scoring:.3g}" if row.scoring else ""),
        "–" if row.sparse_flops is None else f"{row.sparse_flops:.3g}",
        "–" if row.bytes is None else size(round(row.bytes)),
    )


def _curve_rows(result: "Comparison", rows: "Sequence[Row]") -> list[tuple[str, ...]]:
    here = {(row.network, row.teacher) for row in rows}
    return [
        (
            curve.label,
            ", ".join(f"{100 * sparsity:.4g}" for sparsity in curve.sparsities) + " %",
            "–" if curve.area is None else percent(curve.area, 2),
            "–" if (at := curve.one_point) is None else f"{SIDES[at.side]}{percent(at.sparsity)}",
        )
        for curve in result.curves
        if (curve.network, curve.teacher) in here
    ]


def _remarks(result: "Comparison") -> list[str]:
    def at(row: "Row") -> str:
        return row.label if row.sparsity is None else f"{row.label} at {row.sparsity}"

    lines = [f"{at(row)}: {reason}" for row in result.rows for reason in row.failures]
    if lines:
        lines.insert(0, "failed runs are in no mean:")
    emptied = [f"{at(row)}: {what}" for row in result.rows for what in row.emptied]
    if emptied:
        lines += ["tensors without a weight left, which often end a network:", *emptied]
    if result.missing:
        lines.append(f"{result.missing} runs have not been done yet")
    return lines


def _marks(rows: "Sequence[Row]") -> list[Mark]:
    return [
        Mark(
            row.label, row.sparsity, row.accuracy.mean, row.accuracy.interval, bool(row.tied), row.accuracy.n
        )
        for row in rows
        if row.sparsity is not None and row.accuracy is not None
    ]


def _placed(rows: "Sequence[Row]", axis: str) -> dict[tuple[str, float], float]:
    """Where on a logarithmic axis methods stand at their sparsities; without those that have no place there."""
    found = {(row.label, row.sparsity): getattr(row, axis) for row in rows if row.sparsity is not None}
    return {key: value for key, value in found.items() if value}  # nothing is trained in no epochs


def _over(rows: "Sequence[Row]", axis: str, study: "StudyRecipe") -> "Figure":
    """Accuracy over sparsity, training FLOPs or file size."""
    marks = _marks(rows)
    dense = {
        row.label: row.accuracy.mean for row in rows if row.sparsity is None and row.accuracy is not None
    }
    figure, axes = new_figure(9, 5.5)
    if axis == "sparsity":
        lines(axes, marks, dense, others=[(p.label, p.sparsity, p.accuracy) for p in study.published])
    else:
        values = _placed(rows, axis)
        lines(axes, [mark for mark in marks if (mark.label, mark.sparsity) in values], dense, values)
        axes.set(xscale="log", xlabel=WORDS[axis])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
