"""Accuracy of CIFAR ResNets against sparsity and cosine."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, Table, grouped, markdown, percent

NETWORKS = {
    "resnet20-prepared": "ResNet-20, trained on cifar10_jpeg",
    "resnet56-public": "ResNet-56, public checkpoint",
    "resnet20-public": "ResNet-20, public checkpoint",
}


def sparsity_at_drop(points: Sequence[dict[str, Any]], dense: float, drop: float) -> float | None:
    """First sparsity at which accuracy has fallen by `drop`, linear between the points; None if it never does."""
    x = [0.0, *(p["sparsity"] for p in points)]
    y = [0.0, *(dense - p["accuracy"] for p in points)]
    for i in range(1, len(x)):
        if y[i] >= drop:
            share = (drop - y[i - 1]) / (y[i] - y[i - 1])
            return float(x[i - 1] + share * (x[i] - x[i - 1]))
    return None


def collapse(curves: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """Rank correlation of accuracy with sparsity and with cosine, magnitude and random together."""
    points = [p for score in ("magnitude", "random") for p in curves.get(f"{stage} {score}", [])]
    if not all(curves.get(f"{stage} {score}") for score in ("magnitude", "random")):
        return None
    accuracy = [p["accuracy"] for p in points]
    return {
        "n": len(points),
        **{
            key: float(spearmanr([p[key] for p in points], accuracy).statistic)
            for key in ("sparsity", "cosine", "agreement")
        },
    }


def resnet_rows(name: str, result: dict[str, Any]) -> Table:
    dense = result["dense"]["accuracy"]
    rows = [
        [
            "sparsity %",
            "cosine",
            "agreement %",
            "accuracy %",
            "after one epoch %",
            "random: accuracy %",
            "cosine",
        ]
    ]
    curves = result["curves"]
    by = {key: {round(p["sparsity"], 3): p for p in points} for key, points in curves.items()}
    tuned = result.get("dense after")
    rows.append(
        ["0", "1", "100", f"**{percent(dense)}**", percent(tuned["accuracy"]) if tuned else "not run", "", ""]
    )
    for point in curves["before magnitude"]:
        at = round(point["sparsity"], 3)
        after, random = by.get("after magnitude", {}).get(at), by.get("before random", {}).get(at)
        rows.append(
            [
                percent(point["sparsity"], 0),
                f"{point['cosine']:.3f}",
                percent(point["agreement"], 1),
                percent(point["accuracy"]),
                percent(after["accuracy"]) if after else "not run",
                percent(random["accuracy"]) if random else "not run",
                f"{random['cosine']:.3f}" if random else "",
            ]
        )
    return rows


def equal_cosine_rows(result: dict[str, Any]) -> Table:
    """Random pruning beside magnitude pruning of the same cosine, both before tuning."""
    rows = [["cosine", "random: sparsity %", "accuracy %", "magnitude: sparsity %", "accuracy %"]]
    magnitude = sorted(result["curves"].get("before magnitude") or [], key=lambda p: p["cosine"])
    if not magnitude:
        return rows
    cosines = [p["cosine"] for p in magnitude]
    for point in result["curves"].get("before random") or []:
        if cosines[0] <= point["cosine"] <= cosines[-1] and point["accuracy"] > 0:
            there = [
                float(np.interp(point["cosine"], cosines, [p[key] for p in magnitude]))
                for key in ("sparsity", "accuracy")
            ]
            rows.append(
                [
                    f"{point['cosine']:.3f}",
                    percent(point["sparsity"], 1),
                    percent(point["accuracy"]),
                    percent(there[0], 1),
                    percent(there[1]),
                ]
            )
    return rows


def accuracy_at(points: Sequence[dict[str, Any]], dense: float, sparsity: float) -> str:
    """Accuracy at a sparsity, linear between the points; outside them nothing is said."""
    if not points or sparsity > max(p["sparsity"] for p in points):
        return "not run"
    ordered = sorted(points, key=lambda p: p["sparsity"])
    x, y = [0.0, *(p["sparsity"] for p in ordered)], [dense, *(p["accuracy"] for p in ordered)]
    return percent(float(np.interp(sparsity, x, y)), 1)


def rule_rows(result: dict[str, Any]) -> Table:
    """Every rule with the accuracy it really gets, and the sparsities at which accuracy has really fallen."""
    rows = [["", "sparsity %", "cosine", "accuracy % there, pruned", "after one epoch"]]
    dense = result["dense"]["accuracy"]
    curves = {stage: result["curves"].get(f"{stage} magnitude") or [] for stage in ("before", "after")}
    for name, rule in result["rules"].items():
        there = [accuracy_at(curves[stage], dense, rule["sparsity"]) for stage in ("before", "after")]
        rows.append(
            [f"{name} ({rule['regime']})", percent(rule["sparsity"], 1), f"{rule['cosine']:.3f}", *there]
        )
    for stage, word in (("before", "before tuning"), ("after", "after one epoch")):
        points = curves[stage]
        for drop in (0.01, 0.05):
            reference = (
                (result.get("dense after") or result["dense"])["accuracy"] if stage == "after" else dense
            )
            found = sparsity_at_drop(points, reference, drop) if points else None
            last = max((p["sparsity"] for p in points), default=0.0)
            text = (
                percent(found, 1) if found is not None else (f"> {percent(last, 0)}" if points else "not run")
            )
            rows.append(
                [
                    f"*measured: {percent(drop, 0)} point{'s' if drop > 0.01 else ''} lost {word}*",
                    text,
                    "",
                    "",
                    "",
                ]
            )
    return rows


def resnet_section(name: str, result: dict[str, Any]) -> str:
    parts = [markdown(resnet_rows(name, result)), markdown(rule_rows(result))]
    same = equal_cosine_rows(result)
    if len(same) > 1:
        parts += ["At equal cosine (magnitude between its two nearest points):", markdown(same)]
    for stage, word in (("before", "before tuning"), ("after", "after one epoch")):
        found = collapse(result["curves"], stage)
        if found:
            parts.append(
                f"Spearman correlation of accuracy {word}, magnitude and random together (n = {found['n']}): with "
                f"sparsity {found['sparsity']:.2f}, with cosine {found['cosine']:.2f}, with agreement {found['agreement']:.2f}."
            )
    if result.get("dense after"):
        gain = result["dense after"]["accuracy"] - result["dense"]["accuracy"]
        parts.append(
            f"The same epoch without pruning changes the dense network by {100 * gain:+.2f} points"
            + (
                ": the public checkpoint has never seen JPEG images, and learns that in it."
                if "public" in name
                else "."
            )
            + " Points lost after one epoch are counted from there."
        )
    if "prepared" in name:
        parts.append(
            "The public checkpoint behind this network was trained on all 50,000 training images, so our validation split "
            "is not held out from it: agreement and divergence, measured there, look better than on new inputs. The "
            "accuracies are from the test split."
        )
    parts.append(f"![Accuracy of {NETWORKS[name]}]({name}.png)")
    return "\n\n".join(parts)


def resnet_figure(name: str, result: dict[str, Any]) -> None:
    figure = Figure(figsize=(11, 4.4))
    left, right = figure.subplots(1, 2, sharey=True)
    styles = {"magnitude": LEAF, "random": BARK}
    for score, color in styles.items():
        for stage, line in (("before", "o--"), ("after", "s-")):
            points = result["curves"].get(f"{stage} {score}") or []
            for axes, key in ((left, "sparsity"), (right, "cosine")):
                axes.plot(
                    [p[key] for p in points],
                    [p["accuracy"] for p in points],
                    line,
                    color=color,
                    markersize=4,
                    label=f"{score}, {'pruned' if stage == 'before' else 'one epoch later'}"
                    if points
                    else None,
                )
    near = result["curves"].get("before magnitude") or []
    left.plot(
        [p["sparsity"] for p in near],
        [p["agreement"] for p in near],
        ":",
        color=SKY,
        label="agreement, magnitude pruned",
    )
    for at, rules in grouped({rule: choice["sparsity"] for rule, choice in result["rules"].items()}):
        left.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
        left.annotate(
            ", ".join(rules), (at, 1.02), xycoords=("data", "axes fraction"), fontsize=7, rotation=30
        )
    for axes in (left, right):
        axes.axhline(result["dense"]["accuracy"], color=GREY, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e7ece8")
    left.set(xlabel="sparsity", ylabel="test accuracy", xlim=(0, 1))
    right.set(xlabel="cosine to the parent", xlim=(1, 0))
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(1.1, -0.14), ncols=3)
    figure.savefig(HERE / f"{name}.png", dpi=130, bbox_inches="tight")


CHAPTERS = [
    Chapter(
        f"{title}: accuracy against sparsity and cosine",
        name,
        partial(resnet_section, name),
        partial(resnet_figure, name),
    )
    for name, title in NETWORKS.items()
]
