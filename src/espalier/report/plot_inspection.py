"""The figures of an inspection."""

from typing import TYPE_CHECKING

import numpy as np

from espalier.report.page import new_figure, svg

if TYPE_CHECKING:
    from espalier.inspection import Inspection

LEAF, BARK, SKY = "#2f6b46", "#9a4a12", "#4477aa"
MOST = 60
"""Tensors drawn one by one; of more, the first and last of the file and those that keep least."""


def curve_figure(found: "Inspection") -> str:
    """Cosine over sparsity: network, nulls, random pruning, amounts, utopia band."""
    figure, axes = new_figure(9, 5)
    sparsity, cosine = found.curve.points(201)
    axes.plot(sparsity, cosine, color=LEAF, linewidth=2.4, label="this network")
    styles = {"gaussian": ("--", BARK), "initial": ("-.", SKY)}
    for name, null in found.nulls.items():
        if name in styles:
            x, y = null.curve.points(201)
            axes.plot(x, y, styles[name][0], color=styles[name][1], linewidth=1.4, label=null.description)
    axes.plot(
        sparsity,
        np.sqrt(1 - sparsity),
        ":",
        color="#888888",
        linewidth=1.2,
        label="random pruning, on average",
    )
    band = found.choices["utopia"].amount.band
    if band is not None:
        axes.axvspan(*band, color=LEAF, alpha=0.09, linewidth=0)
    before, level = -1.0, 0
    for key, choice in sorted(found.choices.items(), key=lambda item: item[1].amount.sparsity):
        at, value = choice.amount.sparsity, choice.amount.cosine
        level = level + 1 if at - before < 0.16 else 0  # labels of neighbors go below each other
        before = at
        axes.plot([at], [value], "o", color=LEAF, markersize=6)
        axes.annotate(
            f"{key} {100 * at:.1f} %",
            (at, value),
            xytext=(-10, -16 - 15 * level),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": "#aab5ad", "linewidth": 0.7},
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="sparsity", ylabel="cosine to the parent")
    axes.legend(frameon=False, loc="lower left")
    return svg(figure)


def kept_figure(found: "Inspection") -> str:
    """Share kept of each tensor at each amount, in file order."""
    names = _drawn(found)
    figure, axes = new_figure(9, 1.4 + 0.2 * len(names))
    keys = list(found.choices)
    colors = [SKY, BARK, "#117733", "#aa3377", "#88aa22", "#555555", "#bb8800"]
    for number, key in enumerate(keys):
        shares = [found.kept_fraction(key, name) or 0.0 for name in names]
        axes.plot(
            shares,
            [
                row + 0.14 * (number - (len(keys) - 1) / 2) for row in range(len(names))
            ],  # equal shares stay visible
            "o",
            color=colors[number % len(colors)],
            markersize=4.5,
            alpha=0.85,
            label=key,
        )
    axes.axvline(0.01, color="#cc3311", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(-0.01, 1.01), xlabel="share of the tensor kept (dashed: 1 %)")
    axes.legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.6 / (1.4 + 0.2 * len(names))), ncols=6
    )
    return svg(figure)


def scale_figure(found: "Inspection") -> str:
    """Root mean square against kurtosis, one point a tensor, area by size."""
    tensors = {name: t for name, t in found.profile.tensors.items() if t.kurtosis is not None and t.rms > 0}
    if not tensors:
        return ""
    figure, axes = new_figure(9, 4)
    area = [12 + 400 * t.entries / found.profile.entries for t in tensors.values()]
    axes.scatter(
        [t.rms for t in tensors.values()],
        [t.kurtosis for t in tensors.values()],
        s=area,
        color=LEAF,
        alpha=0.55,
        linewidths=0,
    )
    axes.axhline(3, color=BARK, linewidth=1, linestyle="--")
    axes.annotate(
        "Gaussian: 3",
        (0.995, 3),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=BARK,
        fontsize=9,
    )
    axes.set(xscale="log", yscale="log", xlabel="root mean square of the weights", ylabel="kurtosis")
    smallest = sorted(tensors, key=lambda name: tensors[name].rms)[:2]
    for name in {*smallest, *sorted(tensors, key=lambda name: -(tensors[name].kurtosis or 0))[:2]}:
        axes.annotate(
            name,
            (tensors[name].rms, tensors[name].kurtosis),
            fontsize=7,
            xytext=(5, 4),
            textcoords="offset points",
        )
    return svg(figure)


def _drawn(found: "Inspection") -> list[str]:
    names = list(found.profile.tensors)
    if len(names) <= MOST:
        return names
    least = sorted(names, key=lambda name: found.kept_fraction("utopia", name) or 0.0)[: MOST - 20]
    chosen = {*names[:10], *names[-10:], *least}
    return [name for name in names if name in chosen]
