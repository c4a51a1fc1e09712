"""How a training from a recipe is shown."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier._errors import plural
from espalier.checkpoint.atomic import atomic, made
from espalier.report.finetune import decisions, search_section
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, size, table

if TYPE_CHECKING:
    from espalier.budget import Budget
    from espalier.checkpoint import Written
    from espalier.pruned_training import TrainedNetwork
    from espalier.recipe import Recipe
    from espalier.train import Epoch

HEADS = ("seed", "test accuracy", "95 % interval", "drop", "sparsity", "zeros / all", "train loss", "file")
EPOCH_HEADS = ("epoch", "train loss", "accuracy", "sparsity", "pruned", "regrown", "churn", "overlap", "lr")


@dataclass(frozen=True)
class Run:
    """One seed.

    Args:
        seed: of the run.
        result: None if the run failed.
        failure: why it failed, or None.
        written: the file of the trained network.
    """

    seed: int
    result: "TrainedNetwork | None"
    failure: str | None
    written: "Written | None"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = {"seed": self.seed, "failure": self.failure}
        if self.result is not None and self.written is not None:
            found |= self.result.to_dict()
            found |= {"path": str(self.written.path), "bytes": self.written.bytes}
        return found


def list_text(recipes: "Mapping[str, Recipe]") -> str:
    """The recipes of the package."""
    rows = [(name, recipe.title) for name, recipe in recipes.items()]
    return table(("recipe", "what"), rows)


def list_json(recipes: "Mapping[str, Recipe]") -> str:
    """The recipes of the package, whole."""
    return dump({name: recipe.model_dump(mode="json") for name, recipe in recipes.items()})


def as_json(recipe: "Recipe", runs: Sequence[Run], budget: "Budget | None") -> str:
    """The recipe as it was run, every run, and their mean."""
    return dump(
        {
            "recipe": recipe.model_dump(mode="json"),
            "runs": [run.to_dict() for run in runs],
            "mean": _mean(runs),
            "budget": None if budget is None else asdict(budget),
        }
    )


def as_text(recipe: "Recipe", runs: Sequence[Run], budget: "Budget | None", folder: Path) -> str:
    """A row a seed, the mean, where to look."""
    lines = [
        recipe.title,
        "",
        table(HEADS, [_row(run) for run in runs], numeric=range(1, 8)),
        "",
        *_remarks(runs),
    ]
    last = next((run.result for run in reversed(runs) if run.result is not None), None)
    if last is not None:
        lines += ["", "after each epoch of the last run, on the validation split"]
        lines += [table(EPOCH_HEADS, _epoch_rows(last.history.epochs), numeric=range(9))]
    return "\n".join([*lines, "", f"report: {folder / 'report.html'}"])


def write(recipe: "Recipe", runs: Sequence[Run], budget: "Budget | None", folder: Path) -> None:
    """Write `result.json` and `report.html` into the folder."""
    made(folder)
    with atomic(folder / "result.json") as temporary:
        temporary.write_text(as_json(recipe, runs, budget) + "\n")
    write_page(page(recipe, runs, budget), folder / "report.html")


def page(recipe: "Recipe", runs: Sequence[Run], budget: "Budget | None" = None) -> Page:
    """The page of a recipe's runs."""
    mean = _mean(runs)
    cards = []
    if mean["accuracy"] is not None:
        runs_of = plural(mean["n"], "run")
        spread = runs_of if mean["sd"] is None else f"± {percent(mean['sd'], 2)} over {runs_of}"
        cards = [
            Card("test accuracy", percent(mean["accuracy"], 2), spread),
            Card("sparsity", percent(mean["sparsity"], 2), "zeros / pruned parameters' entries"),
        ]
    sections = [
        Section(
            "Runs, on the test split",
            paragraphs=[recipe.source] if recipe.source else [],
            points=_remarks(runs),
            table=Table(HEADS, [_row(run) for run in runs], frozenset(range(1, 8))),
        )
    ]
    if budget is not None:
        sections.append(search_section(budget, decisions(budget)))
    done = [run for run in runs if run.result is not None]
    if done:
        sections += [
            Section("Accuracy", figure=_over_epochs(done, lambda e: e.accuracy, "validation accuracy")),
            Section("Sparsity", figure=_over_epochs(done, lambda e: e.sparsity, "zeros / entries")),
        ]
        if any(e.turnover is not None and e.turnover.churn for run in done for e in _epochs(run)):
            sections.append(
                Section(
                    "Churn of the zeros",
                    figure=_over_epochs(
                        done, lambda e: None if e.turnover is None else e.turnover.churn, "churn an epoch"
                    ),
                    caption="Weights that became or stopped being zero over an epoch, as a fraction of all.",
                )
            )
        for run in done:
            rows = _epoch_rows(_epochs(run))
            sections.append(
                Section(
                    f"Seed {run.seed}, after each epoch", table=Table(EPOCH_HEADS, rows, frozenset(range(9)))
                )
            )
    return Page(recipe.title, f"{recipe.model}, {recipe.data.name}, {recipe.method.name}", cards, sections)


def _epochs(run: Run) -> "Sequence[Epoch]":
    assert run.result is not None
    return run.result.history.epochs


def _over_epochs(runs: Sequence[Run], value: "Callable[[Epoch], float | None]", label: str) -> str:
    figure, axes = new_figure(9, 3.2)
    for run in runs:
        points = [(e.epoch, y) for e in _epochs(run) if (y := value(e)) is not None]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=f"seed {run.seed}"
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch (0: before training)", ylabel=label)
    axes.legend(frameon=False)
    return svg(figure)


def _mean(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean and standard deviation over the runs that ended; failures are counted."""
    done = [run.result for run in runs if run.result is not None and run.result.stages]
    accuracies = [result.stages[-1].evaluation.accuracy for result in done]
    return {
        "n": len(done),
        "failed": sum(run.failure is not None for run in runs),
        "accuracy": statistics.fmean(accuracies) if done else None,
        "sd": statistics.stdev(accuracies) if len(done) > 1 else None,
        "sparsity": statistics.fmean(result.sparsity for result in done) if done else None,
    }


def _remarks(runs: Sequence[Run]) -> list[str]:
    mean = _mean(runs)
    lines = []
    if mean["sd"] is not None:
        lines.append(
            f"mean test accuracy {percent(mean['accuracy'], 2)} ± {percent(mean['sd'], 2)} (standard deviation over "
            f"{mean['n']} seeds), mean sparsity {percent(mean['sparsity'], 2)}"
        )
    if mean["failed"]:
        lines.append(f"{mean['failed']} of {len(runs)} runs failed and are in no mean")
    lines += [f"seed {run.seed} failed: {run.failure}" for run in runs if run.failure is not None]
    return lines


def _row(run: Run) -> tuple[str, ...]:
    result = run.result
    if result is None or run.written is None:
        return (str(run.seed), "failed", *["–"] * 6)
    whole = f"{result.all_zeros:,} / {result.all_entries:,}"
    loss = result.history.last.train_loss
    shown = "–" if loss is None else f"{loss:.4f}"
    if not result.stages:
        return (
            str(run.seed),
            "–",
            "–",
            "–",
            percent(result.sparsity, 2),
            whole,
            shown,
            size(run.written.bytes),
        )
    stage = result.stages[-1]
    low, high = stage.evaluation.interval
    return (
        str(run.seed),
        percent(stage.evaluation.accuracy, 2),
        f"{percent(low)} – {percent(high)}",
        percent(stage.drop.difference, 2) if stage.drop else "–",
        percent(result.sparsity, 2),
        whole,
        shown,
        size(run.written.bytes),
    )


def _epoch_rows(epochs: "Sequence[Epoch]") -> list[tuple[str, ...]]:
    return [
        (
            str(e.epoch),
            "–" if e.train_loss is None else f"{e.train_loss:.4f}",
            "–" if e.accuracy is None else percent(e.accuracy, 2),
            percent(e.sparsity, 2),
            "–" if e.turnover is None else f"{e.turnover.pruned:,}",
            "–" if e.turnover is None else f"{e.turnover.regrown:,}",
            "–" if e.turnover is None else percent(e.turnover.churn, 2),
            "–" if e.turnover is None else f"{e.turnover.overlap:.3f}",
            f"{e.lr:.2g}",
        )
        for e in epochs
    ]
