"""A sentence encoder pruned with the inputs of its layers: Wanda, SparseGPT, magnitude."""

from typing import Any

from espalier.report.page import new_figure
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, markdown, percent, spread

COLORS = {
    "SparseGPT": LEAF,
    "Wanda": SKY,
    "SparseGPT's masks, weights not updated": "#aa3377",
    "magnitude, uniform": BARK,
    "magnitude, global": GREY,
}


def cell(point: dict[str, Any] | None) -> str:
    """Cosine ± standard deviation over draws / same nearest (draws)."""
    if point is None:
        return "not run"
    cosine = spread(point["embedding_cosine"], "{:.3f}".format)
    return f"{cosine} / {percent(point['same_nearest']['mean'], 0)} ({point['n']})"


def section(result: dict[str, Any]) -> str:
    curves = result["curves"]
    targets = list(dict.fromkeys(point["target"] for points in curves.values() for point in points))
    heads = [t if ":" in t else f"{percent(float(t), 0)} % zeros" for t in targets]
    rows = [["cosine of embeddings / same nearest %", *heads]]
    for way in COLORS:
        by = {point["target"]: point for point in curves.get(way, [])}
        rows.append([way, *(cell(by.get(target)) for target in targets)])
    return f"""{markdown(rows)}

One shot, no training: {result["calibration"]} sentences of docstrings to calibrate, {result["sentences"]} of the
language reference to measure; ± is the standard deviation over the draws of calibration sentences, in brackets their number. Linear layers of the encoder; every layer at the target, but for the global row.

![Embeddings of MiniLM, pruned layer by layer](minilm_layerwise.png)"""


def figure(result: dict[str, Any]) -> None:
    whole, axes = new_figure(8, 4)
    for way, color in COLORS.items():
        points = [p for p in result["curves"].get(way, []) if not p["target"].count(":")]
        x = [p["sparsity"] for p in points]
        axes.plot(
            x, [p["embedding_cosine"]["mean"] for p in points], "o-", color=color, markersize=4, label=way
        )
    axes.set(xlabel="sparsity", ylabel="mean cosine of embeddings", ylim=(0, 1.02))
    axes.legend(frameon=False)
    whole.savefig(HERE / "minilm_layerwise.png", dpi=130, bbox_inches="tight")


CHAPTER = Chapter("A sentence encoder, layer by layer", "minilm_layerwise", section, figure)
