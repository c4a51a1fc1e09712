"""Pruning while training: what was to be reached, what must be tuned, when to freeze, how strong the laws are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from espalier.methods import TargetGRDA
from espalier.report.plot_compare import lines, ranked
from results._common import summary
from results.pages import compared
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, Table, load, markdown, percent, spread

METHODS = (
    *("target gRDA with a steep ramp to 0.9", "target gRDA", "target gRDA to 0.9", "target gRDA rescaled"),
    "paper gRDA",
    *("gradual magnitude", "one-shot magnitude", "ST-3"),
)
ENDS = {"end 0.5": BARK, "end 0.7": SKY, "end 0.9": LEAF, "end 1": GREY}
CHANCE = 0.2  # an accuracy of ten classes below this is no learning
Rows = Sequence[dict[str, Any]]


def cell(row: dict[str, Any] | None) -> str:
    """Mean ± standard deviation (n) of the accuracy."""
    if row is None:
        return "not run"
    return f"{spread(row['accuracy'])} ({row['accuracy']['n']})"


def reached(row: dict[str, Any] | None) -> str:
    """Accuracy at the sparsity that came out."""
    if row is None:
        return "not run"
    return f"{percent(row['accuracy']['mean'])} at {percent(row['sparsity']['mean'], 1)} %"


def methods(study: dict[str, Any], teacher: bool = False) -> list[str]:
    """Those of `METHODS` that are part of the study."""
    return [label for label in METHODS if label in compared.labels(study, teacher)]


# --- when to freeze


def freezing_rows(rows: Rows) -> Table:
    asked = sorted({row["asked"] for row in rows})
    by = {(row["method"], row["asked"]): row for row in rows}
    table = [["the ramp ends at", *(f"{percent(s, 0)} % zeros" for s in asked)]]
    return table + [
        [f"{percent(float(end.split()[1]), 0)} % of the run", *(cell(by.get((end, s))) for s in asked)]
        for end in ENDS
    ]


def freezing_said(rows: Rows) -> str:
    """The best end at each sparsity against the default, paired by seed."""
    said = []
    for asked in sorted({row["asked"] for row in rows}):
        here = {row["method"]: row for row in rows if row["asked"] == asked}
        default = here.get(f"end {TargetGRDA.end:g}")
        best = max(here.values(), key=lambda row: float(row["accuracy"]["mean"]))
        if default is None or best is default:
            said.append(
                f"at {percent(asked, 0)} % no other end has a higher mean than the default, {TargetGRDA.end:g}"
            )
            continue
        theirs = dict(zip(default["seeds"], default["accuracies"]))
        pairs = [a - theirs[s] for s, a in zip(best["seeds"], best["accuracies"]) if s in theirs]
        found = summary(pairs) if pairs else {}
        text = (
            f" ({percent(found['low'])} to {percent(found['high'])}, n = {len(pairs)})"
            if "low" in found
            else ""
        )
        said.append(
            f"at {percent(asked, 0)} % `{best['method']}` has the highest mean, {percent(found['mean'])} points"
            f"{text} above the default, {TargetGRDA.end:g}"
        )
    return f"When freezing pays: {'; '.join(said)}."


# --- what has to be tuned


def grid_rows(rows: Rows) -> Table:
    """The paper's law over c and mu."""
    grid = {row["method"]: row for row in rows if row["asked"] is None}
    names = [name.split() for name in grid]
    cs, mus = (sorted({name[i] for name in names}, key=float) for i in (1, 3))
    table = [["c", *(f"mu {mu}" for mu in mus)]]
    return table + [[c, *(reached(grid.get(f"c {c} mu {mu}")) for mu in mus)] for c in cs]


def target_rows(rows: Rows) -> Table:
    targets = [row for row in rows if row["asked"] is not None]
    return [
        ["target", *(f"{percent(row['asked'], 0)} %" for row in targets)],
        ["accuracy %, at its sparsity", *map(reached, targets)],
    ]


def sensitivity_said(rows: Rows) -> str:
    grid = [row for row in rows if row["asked"] is None]
    targets = [row for row in rows if row["asked"] is not None]
    if not grid or not targets:
        return ""
    zeros = [row["sparsity"]["mean"] for row in grid]
    lost = sum(row["accuracy"]["mean"] < CHANCE for row in grid)
    off = max(abs(row["sparsity"]["mean"] - row["asked"]) for row in targets)
    learned = [row["sparsity"]["mean"] for row in grid if row["accuracy"]["mean"] >= CHANCE]
    most = f"the most zeros of a run that learns are {percent(max(learned), 1)} %; " if learned else ""
    return (
        f"Over the {len(grid)} pairs of c and mu the zeros run from {percent(min(zeros), 1)} to {percent(max(zeros), 1)} %, "
        f"and {lost} of them end at chance; {most}a target misses its own sparsity by {100 * off:.3f} points at most."
    )


def lenet(result: dict[str, Any]) -> str:
    parts = []
    if study := load("compared-lenet5"):
        parts += [
            markdown(compared.accuracy_rows(study, methods(study))),
            "From the runs of the comparison above.",
        ]
    if rows := result["freezing"]:
        parts += [
            "When the mask freezes: target gRDA whose ramp ends earlier or later (mean ± standard deviation, n):"
        ]
        parts += [markdown(freezing_rows(rows)), freezing_said(rows)]
    if rows := result["sensitivity"]:
        parts += ["What has to be tuned: the paper's law (accuracy % at the sparsity reached),"]
        parts += [markdown(grid_rows(rows)), "and the target, which is the sparsity:"]
        parts += [markdown(target_rows(rows)), sensitivity_said(rows)]
    parts.append("![Pruning while training, LeNet5 from scratch](training-lenet5-mnist.png)")
    return "\n\n".join(part for part in parts if part)


# --- what was to be reached


def sketch_rows(result: dict[str, Any]) -> Table:
    """Numbers of others beside ours, the dense parent's teaching apart."""
    table = [["sketch (one seed, not rerun)", "sparsity", "sketch %", "here %"]]
    for point in result["published"]:
        label, _, taught = point["label"].removeprefix("sketch: ").partition(", ")
        row = compared.found(result["rows"], label, point["sparsity"], bool(taught))
        table.append(
            [
                f"{label}{', with teacher' if taught else ''}",
                f"{percent(point['sparsity'], 0)} %",
                percent(point["accuracy"], 1),
                compared.cell(row),
            ]
        )
    return table


def resnet(result: dict[str, Any]) -> str:
    parts = [
        "From the runs of the comparison above.",
        markdown(compared.accuracy_rows(result, methods(result))),
        "With the dense parent as teacher (KL divergence, T = 4, weight 0.9):",
        markdown(compared.accuracy_rows(result, methods(result, teacher=True), teacher=True)),
    ]
    if result["published"]:
        parts += ["What was to be reached:", markdown(sketch_rows(result))]
    parts.append("![Pruning while training, ResNet-20](training-resnet20-prepared.png)")
    return "\n\n".join(parts)


# --- how strong the laws are


def strength_rows(rows: Rows) -> Table:
    table = [
        ["network", "law", "asked", "c or penalty", "rule", "zeros of the law alone", "validation % there"]
    ]
    return table + [
        [
            row["network"],
            row["law"],
            f"{percent(row['asked'], 0)} %",
            f"{row['strength']:.4g}",
            rule(row),
            f"{percent(row['sparsity'], 1)} %",
            percent(row["accuracy"], 1),
        ]
        for row in rows
    ]


def rule(row: dict[str, Any]) -> str:
    """How the strength was chosen; a pilot whose density is a quarter off does not reach what was asked."""
    if row["rule"] != "reaches the sparsity":
        return str(row["rule"])
    off = abs((1 - row["sparsity"]) / (1 - row["asked"]) - 1)
    return "reaches the sparsity" if off < 0.25 else "the nearest pilot"


def fading_rows(runs: Rows) -> Table:
    """Spread of the logits along the first epoch, a row for each c."""
    table = [["c", *(f"step {at['step']}" for at in runs[0]["steps"])]]
    return table + [
        [f"{run['c']:g}", *(f"{at['spread']:.2g} ({percent(at['zeros'], 0)} %)" for at in run["steps"])]
        for run in runs
    ]


def strength(result: dict[str, Any]) -> str:
    parts = [
        "c of the paper's gRDA (mu = 0.51) and the penalties of classical RDA and of proximal SGD with a lasso, as the "
        "comparison uses them; no test image was read. The rule: the strength with which the law alone reaches the sparsity "
        "in a pilot with seed 0 (LeNet5: the whole training; ResNet-20: one epoch, what the whole adds predicted for c). Where that pilot is at chance on the validation split, it is of five smaller strengths the "
        "one whose whole run, settled at the sparsity at nine tenths of it, is best on the validation split.",
        markdown(strength_rows(result["laws"])),
    ]
    if fading := result.get("fading"):
        parts += [
            "Why the paper's law with such a c stays at chance on LeNet5 from scratch: its threshold grows with the square root "
            "of the steps, so it is high before anything is learned. Standard deviation of the logits over images, and the "
            "share of zeros, along the first epoch:",
            markdown(fading_rows(fading["runs"])),
            "Four times as many epochs: "
            + "; ".join(
                f"c = {run['strength']:g} ends at {percent(run['accuracy'])} % on the validation split, with "
                f"{percent(run['sparsity'], 1)} % zeros at nine tenths of {run['epochs']} epochs"
                for run in fading["longer"]
            )
            + ".",
        ]
    return "\n\n".join(parts)


# --- figures


def along(axes: Sequence[Axes], result: dict[str, Any]) -> None:
    """Accuracy over sparsity, density and churn by epoch, of the methods of the comparison."""
    known = [mark for mark in compared.marks(result) if mark.label in METHODS]
    lines(axes[0], known, {})
    if known:
        axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    for i, label in enumerate(ranked(known)):
        row = compared.found(result["rows"], label, compared.CHOSEN)
        if row and row["n"]:
            by_epoch(axes[1:], row["by_epoch"]["sparsity"], row["by_epoch"]["churn"], f"C{i}")


def by_epoch(
    axes: Sequence[Axes], sparsity: Sequence[float], churn: Sequence[float | None], color: str
) -> None:
    epochs = range(len(sparsity))
    axes[0].plot(epochs, 1 - np.array(sparsity), "o-", color=color, markersize=3)
    axes[1].plot(epochs[1:], [c or 0.0 for c in churn[1:]], "o-", color=color, markersize=3)
    axes[0].set(
        xlabel="epoch", ylabel=f"density, {percent(compared.CHOSEN, 0)} % zeros asked for", yscale="log"
    )
    axes[1].set(xlabel="epoch", ylabel="churn of the zeros over the epoch")
    axes[1].set_yscale("symlog", linthresh=1e-4)


def frozen(axes: Sequence[Axes], rows: Rows) -> None:
    """The same for the ends of target gRDA's ramp."""
    for asked, style in ((0.95, "o-"), (0.98, "s--")):
        known = [row for row in rows if row["asked"] == asked]
        axes[0].errorbar(
            [float(row["method"].split()[1]) for row in known],
            [row["accuracy"]["mean"] for row in known],
            yerr=[row["accuracy"].get("sd", 0.0) for row in known],
            fmt=style,
            color=LEAF,
            label=f"{percent(asked, 0)} % zeros",
        )
        for row in known:
            if asked == compared.CHOSEN:
                epochs = row["epochs"]
                churn = [e["turnover"]["churn"] if e["turnover"] else None for e in epochs]
                by_epoch(axes[1:], [e["sparsity"] for e in epochs], churn, ENDS[row["method"]])
                axes[1].lines[-1].set_label(row["method"])
    axes[0].set(xlabel="the ramp ends at this share of the run", ylabel="test accuracy")
    for a in axes[:2]:
        a.legend(frameon=False, fontsize=8)


def drawn(name: str, study: dict[str, Any] | None, freezing: Rows) -> None:
    whole = Figure(figsize=(13, 8 if freezing else 4))
    grid = whole.subplots(2 if freezing else 1, 3, squeeze=False)
    if study:
        along(grid[0], study)
    if freezing:
        frozen(grid[1], freezing)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e7ece8")
    for axes in grid[:, 1:].flat:
        axes.xaxis.get_major_locator().set_params(integer=True)
    whole.tight_layout()
    whole.savefig(HERE / f"training-{name}.png", dpi=130, bbox_inches="tight")


CHAPTERS = [
    Chapter(
        "Pruning while training: ResNet-20 on cifar10_jpeg from the trained network",
        "compared-resnet20",
        resnet,
        lambda result: drawn("resnet20-prepared", result, ()),
    ),
    Chapter(
        "Pruning while training: LeNet5 on MNIST from scratch",
        "training-lenet5-mnist",
        lenet,
        lambda result: drawn("lenet5-mnist", load("compared-lenet5"), result["freezing"]),
    ),
    Chapter("How strong the threshold laws of the comparison are", "training-calibration", strength),
]
