"""The authors' notebook, run again."""

from typing import Any

import numpy as np

from espalier.report.page import new_figure
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, Table, markdown, percent


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


CHAPTER = Chapter("The authors' notebook, run again", "lenet5_mnist", lenet_section, lenet_figure)
