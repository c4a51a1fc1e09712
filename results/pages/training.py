"""Pruning while training: which method, what must be tuned, when to freeze."""

from functools import partial
from typing import Any

from matplotlib.figure import Figure

from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, Table, markdown, percent

NETWORKS = {
    "lenet5-mnist": "LeNet5 on MNIST from scratch",
    "resnet20-prepared": "ResNet-20 on cifar10_jpeg from the trained network",
}
COLORS = {
    "target gRDA": LEAF,
    "paper gRDA": SKY,
    "gradual magnitude": BARK,
    "one-shot magnitude": GREY,
}


def cell(row: dict[str, Any] | None) -> str:
    """Mean ± sd (n) of the accuracy; the sparsity where it is not the one asked for."""
    if row is None:
        return "not run"
    found, sparsity = row["accuracy"], row["sparsity"]["mean"]
    spread = f" ± {percent(found['sd'])}" if "sd" in found else ""
    off = "" if abs(sparsity - row["asked"]) < 1e-3 else f", at {percent(sparsity, 1)} % zeros"
    return f"{percent(found['mean'])}{spread} (n = {found['n']}{off})"


def table_rows(rows: list[dict[str, Any]], methods: list[str]) -> Table:
    asked = (0.9, 0.95, 0.98)
    found = [["test accuracy %", *(f"{percent(s, 0)} % zeros" for s in asked)]]
    by = {(row["method"], row["asked"]): row for row in rows}
    return found + [[method, *(cell(by.get((method, s))) for s in asked)] for method in methods]


def sensitivity_rows(rows: list[dict[str, Any]]) -> tuple[Table, Table]:
    """The grid of c and mu, and the targets."""
    grid = {row["method"]: row for row in rows if row["asked"] is None}
    names = [name.split() for name in grid]
    cs = sorted({name[1] for name in names}, key=float)
    mus = sorted({name[3] for name in names}, key=float)
    table = [["c", *(f"mu {mu}" for mu in mus)]]
    for c in cs:
        cells = []
        for mu in mus:
            row = grid.get(f"c {c} mu {mu}")
            cells.append(
                "not run"
                if row is None
                else f"{percent(row['accuracy']['mean'])} at {percent(row['sparsity']['mean'], 1)} %"
            )
        table.append([c, *cells])
    targets = [["target", *(f"{percent(row['asked'], 0)} %" for row in rows if row["asked"] is not None)]]
    targets.append(
        [
            "accuracy %, at its sparsity",
            *(
                f"{percent(row['accuracy']['mean'])} at {percent(row['sparsity']['mean'], 1)} %"
                for row in rows
                if row["asked"] is not None
            ),
        ]
    )
    return table, targets


def section(network: str, result: dict[str, Any]) -> str:
    parts = []
    if table := result.get("table"):
        parts += [markdown(table_rows(table, list(COLORS))), "Mean ± standard deviation over the seeds (n)."]
    if teacher := result.get("teacher"):
        parts += ["With the dense parent as teacher:", markdown(table_rows(teacher, list(COLORS)[::2]))]
    if freezing := result.get("freezing"):
        parts.append("When the mask freezes (the ramp of target gRDA ends at this share of the run):")
        rows = table_rows(freezing, list(dict.fromkeys(row["method"] for row in freezing)))
        parts.append(markdown([[row[0], *row[2:]] for row in rows]))
    if sensitivity := result.get("sensitivity"):
        grid, targets = sensitivity_rows(sensitivity)
        parts += ["What has to be tuned: the paper's law over c and mu (accuracy % at the sparsity reached),"]
        parts += [markdown(grid), "and the target, which is the sparsity:", markdown(targets)]
    parts.append(f"![Pruning while training, {NETWORKS[network]}](training-{network}.png)")
    return "\n\n".join(parts)


def figure(network: str, result: dict[str, Any]) -> None:
    whole = Figure(figsize=(13, 4))
    left, middle, right = whole.subplots(1, 3)
    for row in result.get("table", []):
        color = COLORS[row["method"]]
        first = row["asked"] == 0.9
        left.errorbar(
            [row["sparsity"]["mean"]],
            [row["accuracy"]["mean"]],
            yerr=[row["accuracy"].get("sd", 0.0)],
            fmt="o",
            color=color,
            label=row["method"] if first else None,
        )
        if row["asked"] == 0.95:
            epochs = [e["epoch"] for e in row["epochs"]]
            middle.plot(epochs, [1 - e["sparsity"] for e in row["epochs"]], "o-", color=color, markersize=3)
            churn = [e["turnover"]["churn"] if e["turnover"] else None for e in row["epochs"]]
            right.plot(epochs[1:], churn[1:], "o-", color=color, markersize=3)
    left.set(xlabel="sparsity", ylabel="test accuracy")
    middle.set(xlabel="epoch", ylabel="density, 95 % asked for")
    right.set(xlabel="epoch", ylabel="churn of the zeros over the epoch")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e7ece8")
    for axes in (middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    whole.tight_layout()
    whole.savefig(HERE / f"training-{network}.png", dpi=130, bbox_inches="tight")


CHAPTERS = [
    Chapter(
        f"Pruning while training: {title}",
        f"training-{network}",
        partial(section, network),
        partial(figure, network),
    )
    for network, title in NETWORKS.items()
]
