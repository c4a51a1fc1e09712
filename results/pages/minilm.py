"""A sentence encoder, pruned in one shot."""

from typing import Any

from espalier.report.page import new_figure
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, grouped, markdown, percent


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


CHAPTER = Chapter("A sentence encoder, one shot", "minilm", minilm_section, minilm_figure)
