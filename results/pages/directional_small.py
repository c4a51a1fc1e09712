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

{markdown(directional_simulation_rows(result))}"""


CHAPTER = Chapter(
    "A small network without retraining: directional path, surgeon, magnitude",
    "directional_small",
    directional_section,
    directional_figure,
)
