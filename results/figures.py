"""Draw the results and write them up: results/*.png, results/README.md, and the table of the README.

    python -m results.figures

Reads the JSON files of this folder and nothing else. A result that is not there is said to be missing.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from espalier.report.page import new_figure

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
LEAF, BARK, SKY, GREY = "#2f6b46", "#9a4a12", "#4477aa", "#777777"
NETWORKS = {
    "resnet20-prepared": "ResNet-20, trained on cifar10_jpeg",
    "resnet56-public": "ResNet-56, public checkpoint",
    "resnet20-public": "ResNet-20, public checkpoint",
}
Table = list[list[str]]


def load(name: str) -> Any | None:
    """A result, or None."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def markdown(rows: Table) -> str:
    """Rows of text as a Markdown table; the first is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


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


def lenet_rows(result: dict[str, Any]) -> Table:
    rows = [["LeNet5 on MNIST, test accuracy %", "published (one run)", "here (5 seeds, mean ± sd)"]]
    words = {
        "trained": "trained",
        "utopia sparsity": "utopia point: sparsity %",
        "utopia pruned": "— pruned",
        "utopia fine-tuned": "— one epoch later",
        "safe sparsity": "safe amount: sparsity %",
        "safe pruned": "— pruned ",
        "safe fine-tuned": "— one epoch later ",
    }
    for key, word in words.items():
        ours = result["summary"][key]
        rows.append(
            [word, percent(result["published"][key]), f"{percent(ours['mean'])} ± {percent(ours['sd'])}"]
        )
    return rows


def lenet_section(result: dict[str, Any]) -> str:
    runs = result["runs"]
    factor = [run["safe sparsity"] / run["utopia sparsity"] for run in runs]
    last = [run["along"][-1]["paper"]["kurtosis_of_kurtoses"] for run in runs]
    start = [run["along"][0]["weights"]["utopia"] for run in runs]
    end = [run["along"][-1]["weights"]["utopia"] for run in runs]
    rise = [run["along"][-1]["weights"]["kurtosis"] / run["along"][0]["weights"]["kurtosis"] for run in runs]
    return f"""{markdown(lenet_rows(result))}

The published run is one run without a seed. The safe amount depends on the kurtosis of kurtoses, which varies from
seed to seed ({min(last):.2f} to {max(last):.2f} here, 2.49 there), through a factor that jumps at e = 2.718:
{min(factor):.2f} to {max(factor):.2f} here, 0.76 there. Their fine-tune runs in eval mode by accident; nothing in LeNet5
depends on the mode.

![Kurtosis and amounts along training](lenet5_mnist.png)

**Why not prune at the start?** Before training the utopia rule already says {percent(min(start), 1)} to
{percent(max(start), 1)} %, at the end {percent(min(end), 1)} to {percent(max(end), 1)} %. The kurtosis of the network
rises by a factor of {np.mean(rise):.1f} in training (mean of the seeds), the amount hardly: what the rule sees of
training is a few points of sparsity."""


def lenet_figure(result: dict[str, Any]) -> None:
    figure, axes = new_figure(9, 3.8)
    right = axes.twinx()
    right.spines[["top"]].set_visible(False)
    for run in result["runs"]:
        epochs = [point["epoch"] for point in run["along"]]
        axes.plot(epochs, [p["weights"]["kurtosis"] for p in run["along"]], color=BARK, alpha=0.6)
        for key, color in (("utopia", LEAF), ("cosinetarget", SKY), ("effectivesize", GREY)):
            right.plot(epochs, [p["weights"][key] for p in run["along"]], color=color, alpha=0.6)
    for key, color in (("utopia", LEAF), ("cosine 0.99", SKY), ("effective size", GREY)):
        right.plot([], [], color=color, label=key)
    right.set(ylim=(0, 1), ylabel="sparsity of the amount")
    axes.set(xlabel="epoch (0: before training)", ylim=(0, None))
    axes.set_ylabel("kurtosis of the weights", color=BARK)
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    figure.savefig(HERE / "lenet5_mnist.png", dpi=130, bbox_inches="tight")


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
    rows.append(["0", "1", "100", f"**{percent(dense)}**", "", "", ""])
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
            found = sparsity_at_drop(points, dense, drop) if points else None
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
    if "prepared" in name:
        parts.append(
            "The public checkpoint behind this network was trained on all 50,000 training images, so our validation split "
            "is not held out from it: agreement and divergence, measured there, look better than on new inputs. The "
            "accuracies are from the test split."
        )
    parts.append(f"![Accuracy of {NETWORKS[name]}]({name}.png)")
    return "\n\n".join(parts)


def grouped(amounts: dict[str, float]) -> list[tuple[float, list[str]]]:
    """Rules whose answers lie within two hundredths of the first share a label."""
    groups: list[tuple[float, list[str]]] = []
    for rule, at in sorted(amounts.items(), key=lambda item: item[1]):
        if groups and at - groups[-1][0] < 0.02:
            groups[-1][1].append(rule)
        else:
            groups.append((at, [rule]))
    return groups


def resnet_figure(name: str, result: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

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


def minilm_section(result: dict[str, Any]) -> str:
    curves = result["curves"]
    rows = [["sparsity %", *(f"{way}: cosine / same nearest %" for way in curves)]]
    for i, point in enumerate(next(iter(curves.values()))):
        cells = [curves[way][i] for way in curves]
        rows.append(
            [
                percent(point["sparsity"], 0),
                *(f"{c['embedding_cosine']:.3f} / {percent(c['same_nearest'], 0)}" for c in cells),
            ]
        )
    amounts = result["inspect"]["amounts"]
    said = ", ".join(f"{key} {percent(value['sparsity'], 1)} %" for key, value in amounts.items())
    return f"""{markdown(rows)}

n = {result["n"]} sentences, no tuning. What `espalier inspect` says of the file: {said}.

![Embeddings of MiniLM](minilm.png)"""


def minilm_figure(result: dict[str, Any]) -> None:
    figure, axes = new_figure(9, 4)
    colors = dict(zip(result["curves"], (LEAF, SKY, "#aa3377", BARK)))
    for way, points in result["curves"].items():
        x = [p["sparsity"] for p in points]
        axes.plot(
            x, [p["embedding_cosine"] for p in points], "o-", color=colors[way], label=way, markersize=4
        )
        axes.plot(x, [p["same_nearest"] for p in points], ":", color=colors[way])
    for at, rules in grouped(
        {key: choice["sparsity"] for key, choice in result["inspect"]["amounts"].items()}
    ):
        axes.axvline(at, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            ", ".join(rules), (at, 1.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=20
        )
    axes.set(
        xlabel="sparsity",
        ylabel="mean cosine of embeddings (dotted: same nearest)",
        xlim=(0, 1),
        ylim=(-0.05, 1.02),
    )
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(HERE / "minilm.png", dpi=130, bbox_inches="tight")


def made(result: dict[str, Any]) -> str:
    env = result["environment"]
    hardware = env["cuda"] or f"{env['cpu']}, {env['threads']} threads"
    return f"Made by `{result['command']}` (torch {env['torch']}, {hardware})."


def write_up() -> str:
    """results/README.md."""
    parts = [
        "# Results",
        "<!-- Written by results/figures.py. -->",
        "Every number here was made by the command beside it and is stored, with each run, in the JSON file of the same "
        "name. The test split is read once per point and chooses nothing. `make figures` draws and writes this page anew.",
    ]
    sections: list[tuple[str, str, Callable[[Any], str]]] = [
        ("The authors' notebook, run again", "lenet5_mnist", lenet_section),
        *(
            (f"{title}: accuracy against sparsity and cosine", name, lambda r, n=name: resnet_section(n, r))
            for name, title in NETWORKS.items()
        ),
        ("A sentence encoder, one shot", "minilm", minilm_section),
    ]
    for title, name, section in sections:
        result = load(name)
        parts += [f"## {title}"]
        parts += ["Not run."] if result is None else [made(result), section(result)]
    return "\n\n".join(parts) + "\n"


def readme_table() -> str:
    """The one table of the README."""
    lenet, resnet = load("lenet5_mnist"), load("resnet20-prepared")
    parts = []
    if lenet:
        parts.append(markdown(lenet_rows(lenet)))
    if resnet:
        wanted = ("utopia", "safe", "cosine 0.99", "effective")
        rows = rule_rows(resnet)
        rows = [
            ["ResNet-20 on cifar10_jpeg", *rows[0][1:]],
            *(r for r in rows[1:] if r[0].startswith((*wanted, "*measured"))),
        ]
        parts.append(markdown(rows))
    return "\n\n".join(parts)


def with_table(text: str) -> str:
    """The README with its table replaced."""
    return re.sub(
        r"(?<=<!-- results:begin -->\n).*?(?=<!-- results:end -->)",
        lambda _: f"\n{readme_table()}\n\n",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Draw and write everything there is."""
    for name, draw in (("lenet5_mnist", lenet_figure), ("minilm", minilm_figure)):
        if result := load(name):
            draw(result)
    for name in NETWORKS:
        if result := load(name):
            resnet_figure(name, result)
    (HERE / "README.md").write_text(write_up())
    README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main()
