"""How spectra of curvature are shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Card, Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.density import Density
    from espalier.landscape.spectrum import Eigenpairs
    from espalier.landscape.trace import Trace

HEADS = ("", "eigenvalue", "residual", "converged")


@dataclass(frozen=True)
class Result:
    """The spectrum of one network.

    Args:
        name: of the network.
        subset: which examples.
        kind: of curvature.
        weights: how many are variables.
        loss: mean loss on the examples.
        gradient: norm of its gradient.
        pairs: leading eigenpairs.
        density: of all eigenvalues; None if not asked.
        trace: None if not asked.
    """

    name: str
    subset: str
    kind: str
    weights: int
    loss: float
    gradient: float
    pairs: "Eigenpairs"
    density: "Density | None" = None
    trace: "Trace | None" = None


def as_json(result: Result) -> str:
    """Everything but the vectors as one JSON object."""
    trace = result.trace
    return dump(
        {
            "name": result.name,
            "data": result.subset,
            "curvature": result.kind,
            "weights": result.weights,
            "loss": result.loss,
            "gradient_norm": result.gradient,
            "eigenpairs": result.pairs.to_dict(),
            "density": None if result.density is None else result.density.to_dict(),
            "trace": None if trace is None else dict(vars(trace)),
        }
    )


def as_text(result: Result) -> str:
    """The eigenvalues, then what else is known."""
    return "\n".join(
        [
            f"{result.name}: {_kind(result)} of the mean loss in {result.weights:,} weights",
            "",
            table(HEADS, _rows(result), numeric=(0, 1, 2)),
            "",
            *_facts(result),
        ]
    )


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for."""
    if png is not None:
        write_png(figure(result), png)
    if html is None:
        return
    cards = [
        Card("largest eigenvalue", f"{float(result.pairs.values[0]):.4g}", _kind(result)),
        Card(
            "converged",
            f"{sum(result.pairs.converged)} of {len(result.pairs.values)}",
            f"{result.pairs.products} products",
        ),
    ]
    section = Section(
        "Spectrum",
        points=_facts(result),
        figure=svg(figure(result)),
        caption="Left: leading eigenvalues with their residuals. Right: density of all eigenvalues, mean and standard "
        "error over probes, logarithmic."
        if result.density
        else "Leading eigenvalues with their residuals.",
        table=Table(HEADS, _rows(result), frozenset({0, 1, 2})),
    )
    write_page(Page("Spectrum of the curvature", result.name, cards, [section]), html)


def figure(result: Result) -> "Figure":
    """Leading eigenvalues, and the density beside them."""
    drawn, axes = new_figure(9 if result.density else 5, 3.8)
    axes.remove()
    parts: Any = drawn.subplots(1, 2 if result.density else 1, squeeze=False)[0]
    k = len(result.pairs.values)
    parts[0].errorbar(
        range(1, k + 1),
        result.pairs.values.tolist(),
        result.pairs.residuals.tolist(),
        fmt="o",
        color=COLORS[0],
        capsize=2,
    )
    parts[0].set(xlabel="i", ylabel="eigenvalue")
    if found := result.density:
        low = (found.density - found.error).clamp_min(1e-12).tolist()
        parts[1].fill_between(
            found.grid.tolist(), low, (found.density + found.error).tolist(), color=COLORS[2], alpha=0.3
        )
        parts[1].plot(found.grid.tolist(), found.density.clamp_min(1e-12).tolist(), color=COLORS[2])
        peak = float(found.density.max())
        parts[1].set(yscale="log", ylim=(peak * 1e-8, peak * 3), xlabel="eigenvalue", ylabel="density")
    for part in parts:
        part.spines[["top", "right"]].set_visible(False)
        part.grid(True, color="#e7ece8", linewidth=0.8)
    drawn.tight_layout()
    return drawn


def _kind(result: Result) -> str:
    return {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}.get(result.kind, result.kind)


def _rows(result: Result) -> list[tuple[str, ...]]:
    pairs = result.pairs
    return [
        (str(i + 1), f"{value:.6g}", f"{residual:.1e}", "yes" if ok else "NO")
        for i, (value, residual, ok) in enumerate(
            zip(pairs.values.tolist(), pairs.residuals.tolist(), pairs.converged, strict=True)
        )
    ]


def _facts(result: Result) -> list[str]:
    pairs = result.pairs
    lines = [
        f"data: {result.subset}; eval mode, fixed order",
        f"loss {result.loss:.6g}, gradient norm {result.gradient:.3g}",
        f"{pairs.products} products; an eigenvalue lies within its residual, converged means below "
        f"{pairs.tolerance:g} of the largest",
    ]
    if not all(pairs.converged):
        lines.append("eigenvalues marked NO have not converged: allow more --products")
    if trace := result.trace:
        lines.append(
            f"trace {trace.value:.5g} ± {trace.error:.2g} (standard error of {trace.repeats} repeats of "
            f"{trace.method}, {trace.products} products)"
        )
    if density := result.density:
        value, error = density.trace
        below, spread = density.above(float(pairs.values[-1]))
        lines += [
            f"density: trace {value:.5g} ± {error:.2g}; {below:.3g} ± {spread:.2g} eigenvalues above the last one "
            f"listed ({len(density.nodes)} probes, {density.products} products)",
            f"smallest eigenvalue at most {min(float(x.min()) for x in density.nodes):.4g}",
        ]
    return lines
