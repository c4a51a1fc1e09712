"""A small network pruned without retraining: directional path, OBS, OBD, magnitude."""

from typing import Any

from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, markdown

PLUM = "#aa3377"
STYLES = {
    "magnitude": (GREY, "-"),
    "OBD": (SKY, "--"),
    "OBD, anew": (SKY, "-"),
    "OBS": (BARK, "--"),
    "OBS, anew": (BARK, "-"),
    "directional, one shot": (PLUM, "-"),
    "directional path": (LEAF, "--"),
    "directional path, anew": (LEAF, "-"),
}
LAYERS = ("first.weight", "last.weight")
SHOWN = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def directional_figure(result: dict[str, Any]) -> None:
    """Training loss and test accuracy over sparsity, mean and 95 % interval over the networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4))
    left, right = figure.subplots(1, 2)
    for name, points in result["curves"].items():
        color, line = STYLES[name]
        x = [p["sparsity"] for p in points]
        for axes, key in ((left, "train loss"), (right, "test accuracy")):
            axes.plot(x, [p[key]["mean"] for p in points], line, color=color, label=name, linewidth=1.8)
            low, high = ([p[key][end] for p in points] for end in ("low", "high"))
            axes.fill_between(
                x, [max(value, 1e-3) for value in low], high, color=color, alpha=0.12, linewidth=0
            )
    left.axhline(result["dense"]["train loss"]["mean"], color="black", linewidth=0.8, linestyle=":")
    right.axhline(result["dense"]["test accuracy"]["mean"], color="black", linewidth=0.8, linestyle=":")
    left.set(yscale="log", xlabel="sparsity", ylabel="training loss (nats)", ylim=(5e-3, 6))
    right.set(xlabel="sparsity", ylabel="test accuracy", ylim=(0, 1))
    right.legend(frameon=False, fontsize=8, loc="lower left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "directional_small.png", dpi=130, bbox_inches="tight")


def directional_rows(result: dict[str, Any]) -> list[list[str]]:
    """Training loss, mean over the networks; the first row is the head."""
    rows = [["training loss at sparsity %", *(f"{100 * sparsity:.0f}" for sparsity in SHOWN)]]
    for name, points in result["curves"].items():
        by = {p["sparsity"]: p for p in points}
        rows.append(
            [name, *(f"{by[s]['train loss']['mean']:.3g}" if s in by else "not possible" for s in SHOWN)]
        )
    return rows


def directional_simulation_rows(result: dict[str, Any]) -> list[list[str]]:
    """Zeros and loss of the quadratic, mean over the draws."""
    rows = [["quadratic, 40 flat directions of 60", "path", "one shot", "soft threshold"]]
    for strength, ends in result["simulation"].items():
        cells = [
            f"{100 * end['zeros']['mean']:.0f} % zeros at loss {end['loss']['mean']:.2g}"
            for end in ends.values()
        ]
        rows.append([f"strength {strength}", *cells])
    return rows


def directional_section(result: dict[str, Any]) -> str:
    """The section of the results page."""
    dense, n = result["dense"], len(result["runs"])
    return f"""A perceptron on scikit-learn's digits ({result["weights"]:,} weights, {n} seeds): training loss
{dense["train loss"]["mean"]:.4f}, test accuracy {100 * dense["test accuracy"]["mean"]:.1f} %. Nothing is trained after pruning. "Anew": the
Gauss-Newton matrix is taken again at every sparsity of the table, else it is that of the dense network. Stiff are
{result["stiff"]}.

{markdown(directional_rows(result))}

![Loss and accuracy of a small network pruned without retraining](directional_small.png)

Why the path and not the formula: on a quadratic the formula leaves the flat space with its first zero, the path does not.

{markdown(directional_simulation_rows(result))}

{cnn_section(result["digits_cnn"]) if "digits_cnn" in result else "A digits_cnn with refitting: not run."}

{grda_section(result["grda"]) if "grda" in result else "gRDA beside the scores: not run."}"""


def cnn_section(cnn: dict[str, Any]) -> str:
    """What `prune_directional` does to a network of some size."""
    trainings = cnn["trainings"]
    one = next(iter(trainings.values()))
    sparsities = [point["sparsity"] for point in next(iter(one["rows"].values()))]
    rows = [["trained", "", "dense", *(f"{100 * s:.0f} % zeros" for s in sparsities)]]
    for training, found in trainings.items():
        for way, points in found["rows"].items():
            cells = [f"{_both(p['train loss'])} / {100 * p['test accuracy']['mean']:.1f}" for p in points]
            dense = (
                f"{_both(found['dense']['train loss'])} / {100 * found['dense']['test accuracy']['mean']:.1f}"
            )
            rows.append([training, way, dense, *cells])
    return f"""`prune_directional` on a digits_cnn after {cnn["epochs"]} epochs: training loss (mean ± sd of {one["dense"]["train loss"]["n"]} seeds) / test accuracy %.
The curvature is that of {cnn["examples"]} training images along {cnn["directions"]} directions, the loss that of all training images.

{markdown(rows)}"""


def grda_section(grda: dict[str, Any]) -> str:
    """What gRDA changed, over the scores."""
    rows = [
        ["", "flat", "slope / theory: all", "correlation: all", *(f"slope / theory: {x}" for x in LAYERS)]
    ]
    for steps, found in grda["steps"].items():
        for name, lines in found["lines"].items():
            every = lines["all"]
            cells = [_both(every["slope over theory"]), _both(every["correlation"])]
            cells += [_both(lines[layer]["slope over theory"]) for layer in LAYERS]
            rows.append([f"{int(steps):,} steps", name, *cells])
    one = next(iter(grda["steps"].values()))["train loss"]["n"]
    return f"""The theory of gRDA says: what it changed lies on one line over minus the scores of the SGD network, of slope c√γ tᵘ
in every layer. The perceptron, trained from one start on the same batches (c = {grda["c"]:g}, μ = {grda["mu"]:g}, rate {grda["rate"]:g}, t = rate ×
steps; mean ± sd of {one} starts; weights that gRDA has at zero left out):

{markdown(rows)}"""


def _both(stats: dict[str, float]) -> str:
    """Mean and standard deviation."""
    return f"{stats['mean']:.3f} ± {stats['sd']:.3f}"


CHAPTER = Chapter(
    "A small network without retraining: directional path, surgeon, magnitude",
    "directional_small",
    directional_section,
    directional_figure,
)
