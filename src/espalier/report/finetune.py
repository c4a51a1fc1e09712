"""How evaluation and fine-tuning are shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.budget import Budget
    from espalier.checkpoint import Written
    from espalier.finetuning import Finetuned, Stage

STAGE_HEADS = (
    "stage",
    "accuracy",
    "95 % interval",
    "drop",
    "agreement",
    "JS divergence",
    "logit cosine",
    "loss",
)
EPOCH_HEADS = (
    "epoch",
    "train loss",
    "accuracy",
    "95 % interval",
    "sparsity",
    "cosine",
    "bound",
    "agreement",
    "lr",
)


def stages_json(stages: Sequence["Stage"]) -> str:
    """Stages as one JSON object."""
    return dump({"stages": [stage.to_dict() for stage in stages]})


def stages_text(stages: Sequence["Stage"]) -> str:
    """Stages as a table."""
    n = stages[0].evaluation.n
    return "\n".join(
        [
            table(STAGE_HEADS, [_stage_row(stage) for stage in stages], numeric=range(1, 8)),
            "",
            f"n = {n:,} examples; drop: accuracy of the parent minus this one, paired, with its 95 % interval",
        ]
    )


def as_json(result: "Finetuned", written: "Written") -> str:
    """The whole record as one JSON object."""
    return dump({**result.to_dict(), "path": str(written.path), "bytes": written.bytes})


def as_text(result: "Finetuned", written: "Written") -> str:
    """Stages, epochs, what was decided on the way."""
    lines = [
        f"{written.path}: {result.zeros:,} of {result.entries:,} selected entries are zero "
        f"({percent(result.sparsity, 2)}), {size(written.bytes)}",
        "",
        "test split",
        stages_text(result.stages),
        "",
        "after each epoch, on the validation split",
        table(EPOCH_HEADS, _epoch_rows(result), numeric=range(9)),
        *(["", *_decisions(result)] if _decisions(result) else []),
    ]
    return "\n".join(lines)


def write_html(result: "Finetuned", path: str, file: Path) -> None:
    """A self-contained page."""
    write_page(page(result, path), file)


def page(result: "Finetuned", path: str) -> Page:
    """The page, for those who put it beside another."""
    figure, axes = new_figure(9, 4)
    epochs = [e for e in result.history.epochs if e.accuracy is not None]
    axes.plot(
        [e.epoch for e in epochs], [e.accuracy for e in epochs], "o-", color="#2f6b46", label="accuracy"
    )
    low = [e.accuracy_interval[0] for e in epochs if e.accuracy_interval]
    high = [e.accuracy_interval[1] for e in epochs if e.accuracy_interval]
    axes.fill_between([e.epoch for e in epochs], low, high, color="#2f6b46", alpha=0.15, linewidth=0)
    near = [e for e in result.history.epochs if e.agreement is not None]
    axes.plot(
        [e.epoch for e in near],
        [e.agreement for e in near],
        "s--",
        color="#4477aa",
        label="agreement with the parent",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch (0: before training)", ylabel="validation split")
    axes.legend(frameon=False)
    sections = [
        Section(
            "Stages, on the test split",
            paragraphs=[
                "Drop: accuracy of the parent minus this one, paired by example, with its 95 % interval."
            ],
            table=Table(STAGE_HEADS, [_stage_row(s) for s in result.stages], frozenset(range(1, 8))),
        ),
        *([Section("Decided on the way", points=_decisions(result))] if _decisions(result) else []),
        Section(
            "After each epoch",
            figure=svg(figure),
            caption="On the validation split, with 95 % Wilson intervals.",
            table=Table(EPOCH_HEADS, _epoch_rows(result), frozenset(range(9))),
        ),
        *([search_section(result.budget)] if result.budget else []),
    ]
    last = result.stages[-1]
    cards = [
        Card(
            "sparsity",
            percent(result.sparsity, 2),
            f"{result.zeros:,} of {result.entries:,} selected entries",
        ),
        Card(
            "test accuracy", percent(last.evaluation.accuracy, 2), f"n = {last.evaluation.n:,}, {last.name}"
        ),
        *(
            [
                Card(
                    "agreement with the parent",
                    percent(last.similarity.agreement, 2),
                    "same inputs, same answer",
                )
            ]
            if last.similarity
            else []
        ),
    ]
    return Page("Fine-tuned at fixed masks", path, cards, sections)


def search_section(budget: "Budget", points: Sequence[str] = ()) -> Section:
    """Every sparsity that a search tried, with its interval."""
    figure, axes = new_figure(9, 3.6)
    for point in sorted(budget.points, key=lambda p: p.sparsity):
        color = "#2f6b46" if point.inside else "#9a4a12"
        axes.plot([point.sparsity] * 2, point.interval, color=color)
        axes.plot([point.sparsity], [point.value], "o", color=color, markersize=5)
    axes.set(xlabel="sparsity", ylabel="drop or agreement, 95 % interval")
    return Section(
        "The search", points=points, figure=svg(figure), caption=f"Green is inside: {budget.rule}."
    )


def _decisions(result: "Finetuned") -> list[str]:
    """What was chosen on the validation split, and why."""
    lines = [] if result.budget is None else decisions(result.budget)
    if result.recalibration is not None:
        lines.append(f"batch norm: {result.recalibration.reason}")
    return lines


def decisions(budget: "Budget") -> list[str]:
    """What a search chose, and whether its assumption held."""
    if budget.sparsity is None:
        return []
    lines = [
        f"sparsity {percent(budget.sparsity, 2)} is the largest of {len(budget.points)} tried for which the "
        f"{budget.rule} (n = {budget.n:,} validation examples)"
    ]
    if not budget.monotone:
        lines.append(
            "the search assumed that quality falls with sparsity, and it did not everywhere: look at the points"
        )
    return lines


def _stage_row(stage: "Stage") -> tuple[str, ...]:
    e, s, d = stage.evaluation, stage.similarity, stage.drop
    return (
        stage.name,
        percent(e.accuracy, 2),
        f"{percent(e.interval[0])} – {percent(e.interval[1])}",
        f"{percent(d.difference, 2)} ({percent(d.interval[0])} – {percent(d.interval[1])})" if d else "–",
        percent(s.agreement, 2) if s else "–",
        f"{s.divergence:.4f}" if s else "–",
        f"{s.logit_cosine:.4f}" if s else "–",
        f"{e.loss:.4f}",
    )


def _epoch_rows(result: "Finetuned") -> list[tuple[str, ...]]:
    def number(value: float | None, digits: int = 4) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    return [
        (
            str(e.epoch),
            number(e.train_loss),
            "–" if e.accuracy is None else percent(e.accuracy, 2),
            "–" if e.accuracy_interval is None else " – ".join(percent(end) for end in e.accuracy_interval),
            percent(e.sparsity, 2),
            number(e.cosine),
            number(e.cosine_bound),
            "–" if e.agreement is None else percent(e.agreement, 2),
            f"{e.lr:.2g}",
        )
        for e in result.history.epochs
    ]
