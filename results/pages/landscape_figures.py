"""Pictures of what lies around and between trained and pruned networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from results.landscape.networks import CONTROL, RUNS
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY

COLORS = {"SGD": "black", CONTROL: SKY, "gRDA 90 %": LEAF, "gRDA 95 %": BARK, "start": GREY}
GROUPS = {"L1": LEAF, "random": BARK}


def valley(name: str, result: dict[str, Any]) -> None:
    """First result, saved beside the page."""
    _save(valley_figure(result), f"landscape-{name}-valley")


def pruning(name: str, result: dict[str, Any]) -> None:
    """Second result, saved beside the page."""
    _save(pruning_figure(result), f"landscape-{name}-pruning")


def _save(figure: Figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")


def valley_figure(result: dict[str, Any]) -> Figure:
    """Ways, plane, projection, spectrum, functions; what was not run says so."""
    found = result["parts"]
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    ways, curvature = found.get("ways", {}), found.get("curvature", {})
    _ways(axes[0], ways, "train", "loss")
    _ways(axes[1], ways, "test", "error")
    _plane(axes[2], found.get("plane", {}).get("plane"), "training loss, plane through three", figure)
    _shares(axes[3], curvature.get("projection"))
    _spectrum(axes[4], curvature, found.get("density", {}))
    _cka(axes[5], found.get("functions", {}).get("functions"))
    return figure


def pruning_figure(result: dict[str, Any]) -> Figure:
    """t-SNE, accuracy against sparsity and cosine, radial slice, planes of L1 and random pruning."""
    found = result["parts"]
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    family = found.get("family", {}).get("family")
    _embedding(axes[0], family)
    for at, key in ((axes[1], "sparsity"), (axes[2], "cosine")):
        _collapse(at, family, key)
    _plane(
        axes[3],
        found.get("slice", {}).get("radial slice"),
        "training loss, radial slice",
        figure,
    )
    planes = next(iter(found.get("around", {}).values()), None)
    for at, score in ((axes[4], "L1"), (axes[5], "random")):
        _gap(at, planes, score, figure)
    return figure


def _missing(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, f"{what}: not run", ha="center", va="center", color=GREY)
    axes.set_axis_off()


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e7ece8")


def _ways(axes: Axes, ways: Mapping[str, Any], split: str, what: str) -> None:
    if not ways:
        _missing(axes, "ways")
        return
    for title, way in ways.items():
        kind, end = title.split(", ", 1)
        t = [p["t"] for p in way["points"]]
        y = [p[split]["loss"] if what == "loss" else 100 * (1 - p[split]["accuracy"]) for p in way["points"]]
        straight = kind == "line"
        axes.plot(
            t,
            y,
            "-" if straight else "--",
            color=COLORS[end],
            label=end if straight else None,
            marker="o",
            markersize=3,
        )
    axes.plot([], [], "--", color=GREY, label="along the trained curve")
    axes.set_yscale("log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.set(
        xlabel="from SGD (0) to the other (1)", ylabel=f"{split} {what}{' %' if what == 'error' else ''}, log"
    )
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _plain(axes)


def _plane(axes: Axes, plane: Mapping[str, Any] | None, title: str, figure: Figure) -> None:
    if plane is None:
        _missing(axes, title)
        return
    loss = np.array(plane["loss"], dtype=float)
    levels = np.geomspace(np.nanmin(loss), np.nanmax(loss), 16)
    filled = axes.contourf(
        plane["x"],
        plane["y"],
        loss,
        levels=levels,
        norm=LogNorm(levels[0], levels[-1]),
        cmap="viridis",
        extend="both",
    )
    bar = figure.colorbar(filled, ax=axes, ticks=levels[::3], format="%.2g")
    bar.minorticks_off()
    axes.set_title(title, fontsize=11)
    axes.set(xlabel=plane["axes"][0], ylabel=plane["axes"][1])
    axes.set(xlim=(min(plane["x"]), max(plane["x"])), ylim=(min(plane["y"]), max(plane["y"])))
    for name, mark in plane["marks"].items():
        _mark(axes, name, mark)


def _mark(axes: Axes, name: str, mark: Mapping[str, float]) -> None:
    """A network in a plane: hollow where it lies off it; names of pruned ones would hide the picture."""
    group = name.split()[0] if name.startswith(tuple(GROUPS)) else None
    color = GROUPS[group] if group else "white"
    marker = "*" if "tuned" in name else "o"
    on = mark["residual"] == 0
    axes.plot(
        mark["x"],
        mark["y"],
        marker,
        color=color if on or group else "none",
        markeredgecolor="white",
        markersize=9 if marker == "*" else 6,
    )
    if group is None:
        text = name if on else f"{name} ({mark['residual']:.1f} off)"
        low, high = axes.get_xlim()
        right = mark["x"] > low + 0.7 * (high - low)
        axes.annotate(
            text,
            (mark["x"], mark["y"]),
            xytext=(-6 if right else 6, 5 if on else -11),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=8,
            color="white",
        )


def _shares(axes: Axes, projection: Mapping[str, Any] | None) -> None:
    if projection is None:
        _missing(axes, "projection")
        return
    shares = projection["shares"][::-1]
    colors = [COLORS.get(s["name"].removesuffix(" - SGD"), GREY) for s in shares]
    axes.barh([s["name"] for s in shares], [s["share"] for s in shares], color=colors, zorder=2)
    axes.axvspan(*shares[0]["interval"], color=GREY, alpha=0.4, zorder=3, label="95 % of random directions")
    axes.set(xlabel=f"share of the length in {projection['k']} leading directions")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _spectrum(axes: Axes, curvature: Mapping[str, Any], densities: Mapping[str, Any]) -> None:
    if not curvature:
        _missing(axes, "spectrum")
        return
    for name in RUNS:
        if density := densities.get(name):
            rows = [row for row in density["above"] if row[1] >= 1]
            x, y, error = (np.array(column) for column in zip(*rows, strict=True))
            axes.plot(x, y, color=COLORS[name], label=f"{name}: by Lanczos quadrature")
            axes.fill_between(x, np.maximum(y - error, 0.5), y + error, color=COLORS[name], alpha=0.2)
        if pairs := curvature.get(f"leading, {name}"):
            count = range(1, len(pairs["values"]) + 1)
            axes.plot(pairs["values"], count, "o", markersize=4, color=COLORS[name], label=f"{name}: leading")
    axes.set(xscale="log", yscale="log", xlabel="c", ylabel="eigenvalues of the Hessian above c")
    axes.legend(frameon=False, fontsize=7)
    _plain(axes)


def _cka(axes: Axes, functions: Mapping[str, Any] | None) -> None:
    if functions is None:
        _missing(axes, "functions")
        return
    for pair in functions["pairs"]:
        if pair["a"] == "SGD" or (pair["a"], pair["b"]) == ("start", "SGD"):
            other = pair["b"] if pair["a"] == "SGD" else "start"
            values = [np.nan if v is None else v for v in pair["cka"].values()]
            axes.plot(range(1, len(values) + 1), values, "o-", markersize=3, color=COLORS[other], label=other)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="linear CKA with SGD", ylim=(None, 1.02))
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _embedding(axes: Axes, family: Mapping[str, Any] | None) -> None:
    if family is None:
        _missing(axes, "predictions")
        return
    for group, cmap in (("L1", "Greens"), ("random", "Oranges")):
        members = [n for n in family["networks"] if n["group"] == group]
        axes.scatter(
            [n["x"] for n in members],
            [n["y"] for n in members],
            c=[0.25 + 0.75 * n["sparsity"] for n in members],
            cmap=cmap,
            vmin=0,
            vmax=1,
            s=14,
            label=f"{group}, 0 % (light) to 99 %",
        )
    named = [n for n in family["networks"] if n["group"] not in ("L1", "random")]
    for i, network in enumerate(named):
        tuned = network["group"].endswith("tuned")
        color = GROUPS[network["group"].split(",")[0]] if tuned else "black"
        at = network["x"], network["y"]
        axes.plot(*at, "*" if tuned else "o", color=color, markeredgecolor="black", markersize=10)
        offset, side = (((9, 7), "left"), ((9, -11), "left"), ((-9, 7), "right"))[i % 3]
        axes.annotate(network["name"], at, xytext=offset, ha=side, textcoords="offset points", fontsize=7)
    axes.margins(x=0.35)
    axes.set(title="predictions, t-SNE", xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=7)


def _collapse(axes: Axes, family: Mapping[str, Any] | None, key: str) -> None:
    if family is None:
        _missing(axes, f"accuracy against {key}")
        return
    for group, color in GROUPS.items():
        members = [n for n in family["networks"] if n["group"] == group]
        axes.plot([n[key] for n in members], [n["accuracy"] for n in members], ".-", color=color, label=group)
    axes.set(xlabel="cosine to the parent" if key == "cosine" else key, ylabel="test accuracy, pruned")
    if key == "cosine":
        axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _gap(axes: Axes, planes: Mapping[str, Any] | None, score: str, figure: Figure) -> None:
    """How far the surface of a pruned network is from the parent's, at the smallest cosine; one scale for both."""
    if planes is None or not planes["pruned"]:
        _missing(axes, f"{score} at equal cosine")
        return
    cosine = min(entry["target"] for entry in planes["pruned"])
    parent = np.array(planes["parent"]["loss"], dtype=float)
    gaps = {
        entry["score"]: np.abs(np.array(entry["loss"], dtype=float) - parent)
        for entry in planes["pruned"]
        if entry["target"] == cosine
    }
    top = max(float(np.nanmax(gap)) for gap in gaps.values())
    image = axes.imshow(
        gaps[score],
        origin="lower",
        extent=(
            planes["parent"]["x"][0],
            planes["parent"]["x"][-1],
            planes["parent"]["y"][0],
            planes["parent"]["y"][-1],
        ),
        cmap="magma",
        norm=LogNorm(max(top / 1e4, 1e-6), top),
    )
    figure.colorbar(image, ax=axes)
    axes.set(title=f"{score} at cosine {cosine:g}: |loss - parent's|")
    axes.set(xlabel="first direction", ylabel="second", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
