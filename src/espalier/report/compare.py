"""How a comparison is shown."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.checkpoint.write import atomic
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.compare import Cell, Comparison, Row
    from espalier.study import StudyRecipe

HEADS = (
    "method",
    "sparsity",
    "accuracy",
    "95 % interval",
    "n",
    "behind the best",
    "train FLOPs",
    "if sparse",
    "file",
)
CURVE_HEADS = ("method", "area under the curve", "sparsity at 1 point lost")
LEGEND = (
    "* marks the best mean at its sparsity and every method that is not surely worse: the paired intervals over seeds "
    "and over test examples both have to leave zero out. Intervals of the mean are Student's t over n runs. "
    "FLOPs: what the training computed; if sparse: without products with zero weights."
)


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
        lines += ["", title, table(HEADS, [_row(row, "*") for row in rows], numeric=range(1, 9))]
        lines += ["", table(CURVE_HEADS, _curve_rows(result, rows), numeric=(1, 2))]
    return "\n".join([*lines, "", LEGEND, *_remarks(result), "", f"report: {folder / 'report.html'}"])


def write(study: "StudyRecipe", result: "Comparison", folder: Path) -> None:
    """Write `comparison.json`, `comparison.png` and `report.html` into the folder."""
    with atomic(folder / "comparison.json") as temporary:
        temporary.write_text(as_json(study, result) + "\n")
    for i, (_, rows) in enumerate(_groups(result)):
        figure, axes = new_figure(9, 4.5)
        _draw(axes, rows, "sparsity", study)
        with atomic(folder / ("comparison.png" if i == 0 else f"comparison-{i + 1}.png")) as temporary:
            figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight")
    write_page(page(study, result), folder / "report.html")


def page(study: "StudyRecipe", result: "Comparison") -> Page:
    """The page of a study."""
    sections = [Section("How to read this", paragraphs=[LEGEND], points=_remarks(result))]
    done = sum(row.accuracy.n for row in result.rows if row.accuracy is not None)
    failed = sum(len(row.failures) for row in result.rows)
    for title, rows in _groups(result):
        numeric = frozenset(range(1, 9))
        sections.append(Section(title, table=Table(HEADS, [_row(row, "★ ") for row in rows], numeric)))
        for axis, caption in (
            (
                "sparsity",
                "Accuracy against sparsity, with 95 % intervals over runs. Hollow: numbers of others, not rerun.",
            ),
            ("flops", "Accuracy against what the training would compute without products with zero weights."),
            ("bytes", "Accuracy against the size of the sparse file."),
        ):
            figure, axes = new_figure(9, 4.5)
            _draw(axes, rows, axis, study)
            sections.append(Section("", figure=svg(figure), caption=caption))
        curves = Table(CURVE_HEADS, _curve_rows(result, rows), frozenset((1, 2)))
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
    if row.accuracy is None:
        return (row.label, asked, "failed", "–", "0", "–", "–", "–", "–")
    interval = row.accuracy.interval
    behind = "–"
    if row.behind is not None:
        low, high = row.behind.seeds or row.behind.examples
        behind = f"{percent(row.behind.mean, 2)} ({percent(low, 2)} – {percent(high, 2)})"
    return (
        f"{mark if row.tied else ''}{row.label}",
        asked,
        percent(row.accuracy.mean, 2),
        "–" if interval is None else f"{percent(interval[0])} – {percent(interval[1])}",
        str(row.accuracy.n),
        behind,
        "–" if row.flops is None else f"{row.flops:.3g}",
        "–" if row.sparse_flops is None else f"{row.sparse_flops:.3g}",
        "–" if row.bytes is None else size(round(row.bytes)),
    )


def _curve_rows(result: "Comparison", rows: "Sequence[Row]") -> list[tuple[str, ...]]:
    here = {(row.network, row.teacher) for row in rows}
    return [
        (
            curve.label,
            "–" if curve.area is None else percent(curve.area, 2),
            "–" if curve.at_one_percent is None else percent(curve.at_one_percent),
        )
        for curve in result.curves
        if (curve.network, curve.teacher) in here
    ]


def _remarks(result: "Comparison") -> list[str]:
    lines = [f"{row.label} at {row.sparsity}: {reason}" for row in result.rows for reason in row.failures]
    if lines:
        lines.insert(0, "failed runs are in no mean:")
    emptied = [f"{row.label} at {row.sparsity}: {what}" for row in result.rows for what in row.emptied]
    if emptied:
        lines += ["tensors without a weight left, which often end a network:", *emptied]
    if result.missing:
        lines.append(f"{result.missing} runs have not been done yet")
    return lines


def _draw(axes: Any, rows: "Sequence[Row]", axis: str, study: "StudyRecipe") -> None:
    from matplotlib import colormaps

    labels = list(dict.fromkeys(row.label for row in rows if row.sparsity is not None))
    colors = {label: colormaps["tab20"](i % 20) for i, label in enumerate(labels)}
    for label in labels:
        points = [
            (_place(row, axis), row.accuracy)
            for row in rows
            if row.label == label and row.sparsity is not None and row.accuracy is not None
        ]
        known = [(x, a) for x, a in points if x is not None]
        ends = [(a.mean, a.mean) if a.interval is None else a.interval for _, a in known]
        below = [a.mean - low for (_, a), (low, _) in zip(known, ends)]
        above = [high - a.mean for (_, a), (_, high) in zip(known, ends)]
        axes.errorbar(
            [x for x, _ in known],
            [a.mean for _, a in known],
            yerr=[below, above],
            fmt="o-",
            markersize=4,
            capsize=2,
            color=colors[label],
            label=label,
        )
    for row in rows:
        if row.sparsity is None and row.accuracy is not None:
            axes.axhline(row.accuracy.mean, color="#777777", linewidth=0.8)
            axes.annotate(
                f"{row.label} (dense)",
                (0.01, row.accuracy.mean),
                xycoords=("axes fraction", "data"),
                fontsize=8,
            )
    if axis == "sparsity":
        for point in study.published:
            axes.plot([point.sparsity], [point.accuracy], "s", mfc="none", color="#777777")
            axes.annotate(
                f"{point.label} (others)", (point.sparsity, point.accuracy), fontsize=7, color="#777777"
            )
    words = {
        "sparsity": "sparsity",
        "flops": "training FLOPs without zeros",
        "bytes": "bytes of the sparse file",
    }
    axes.set(xlabel=words[axis], ylabel="test accuracy")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _place(row: "Row", axis: str) -> float | None:
    return {"sparsity": row.sparsity, "flops": row.sparse_flops, "bytes": row.bytes}[axis]
