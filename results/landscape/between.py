"""First result: do gRDA and SGD share a valley, and does a control of two SGD runs look any different?"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from espalier.landscape import (
    Curvature,
    CurveTraining,
    Eigenpairs,
    Grid,
    Path,
    Plane,
    Risk,
    Surface,
    compare_functions,
    density,
    leading,
    measure_path,
    measure_plane,
    project,
    through,
    trained_path,
)
from espalier.landscape.kept import eigenpairs_once
from espalier.landscape.records import Records
from results.landscape.networks import CONTROL, RUNS, Case, Make, pruned, slug, steps, trained

SPARSE = [name for name, sparsity in RUNS.items() if sparsity]
PAIRS = [*SPARSE, CONTROL]
"""Ends of the ways that begin at SGD."""


def ways(case: Case) -> dict[str, Make]:
    """Straight line and trained Bezier curve from SGD to gRDA and to the control."""
    return {f"{kind}, {end}": partial(_way, case, end, kind) for kind in ("line", "bezier") for end in PAIRS}


def _way(case: Case, end: str, kind: str) -> dict[str, Any]:
    size, data = case.sizes, case.data()
    surface = Surface(case.start(), data.train.take(size.train), data.test.take(size.test))
    a, b = (surface.space.vector(trained(case, name)) for name in ("SGD", end))
    home, path = case.scratch / f"way-{kind}-{slug(end)}", Path("line", a, b)
    home.mkdir(parents=True, exist_ok=True)
    if kind == "bezier":
        path = trained_path(
            Surface(case.start(), data.train.take(size.curve)),
            a,
            b,
            training=CurveTraining(epochs=size.epochs),
            folder=home / "training",
            progress=steps(f"curve to {end}"),
        )
    along = measure_path(
        surface, path, points=size.points, folder=home / "points", progress=steps(f"{kind} to {end}")
    )
    return {**along.to_dict(), "batch_norm": surface.note}


def functions(case: Case) -> dict[str, Make]:
    """Agreement, divergence, logit cosine and CKA of every two networks."""

    def compare() -> dict[str, Any]:
        networks = {"start": case.start(), **{name: trained(case, name) for name in RUNS}}
        found = compare_functions(networks, case.data().test.take(case.sizes.test))
        return {
            "inputs": case.sizes.test,
            "cka_inputs": found.cka_inputs,
            "pairs": [
                {
                    "a": pair.a,
                    "b": pair.b,
                    "agreement": pair.similarity.agreement,
                    "interval": pair.similarity.interval,
                    "divergence": pair.similarity.divergence,
                    "logit_cosine": pair.similarity.logit_cosine,
                    "cka": dict(pair.cka),
                }
                for pair in found.pairs
            ],
        }

    return {"functions": compare}


def curvature(case: Case) -> dict[str, Make]:
    """Leading eigenpairs of SGD and gRDA, and what of their difference lies in those of SGD."""
    return {
        "leading, SGD": lambda: _leading(case, "SGD").to_dict(),
        "projection": partial(_projection, case),
        **{f"leading, {name}": partial(lambda name: _leading(case, name).to_dict(), name) for name in PAIRS},
    }


def spectra(case: Case) -> dict[str, Make]:
    """The density of all eigenvalues at SGD and the sparser gRDA, as numbers of eigenvalues above cut-offs."""
    return {name: partial(_density, case, name) for name in ("SGD", SPARSE[-1])}


def _risk(case: Case, network: nn.Module) -> Risk:
    return Risk(network, case.data().train.take(case.sizes.curvature))


def _leading(case: Case, name: str) -> Eigenpairs:
    risk = _risk(case, trained(case, name))
    spec = {"network": name, "examples": risk.examples, "pairs": case.sizes.pairs}

    operator = Curvature(risk, progress=_count(f"leading, {name}"))
    return eigenpairs_once(
        case.scratch / f"leading-{slug(name)}",
        spec,
        operator,
        lambda kept: leading(kept, case.sizes.pairs),
    )


def _density(case: Case, name: str) -> dict[str, Any]:
    size = case.sizes
    operator = Curvature(_risk(case, trained(case, name)), progress=_count(f"density, {name}"))
    spec = {"network": name, "examples": operator.risk.examples, "steps": size.steps}
    records = Records(case.scratch / f"density-{slug(name)}", spec)
    found = density(operator, probes=size.probes, steps=size.steps, records=records)
    cuts = (10.0 ** (power / 8) for power in range(-24, 25))
    return {
        "grid": found.grid.tolist(),
        "density": found.density.tolist(),
        "error": found.error.tolist(),
        "trace": found.trace,
        "above": [[cut, *found.above(cut)] for cut in cuts],
        "width": found.width,
        "products": found.products,
    }


def _projection(case: Case) -> dict[str, Any]:
    """Shares in the leading eigenspace of SGD: of differences, of each network, of what magnitude pruning takes away."""
    pairs = _leading(case, "SGD")
    networks = {"start": case.start(), **{name: trained(case, name) for name in RUNS}}
    networks["SGD pruned 90 %"] = copy.deepcopy(networks["SGD"])
    pruned(networks["SGD pruned 90 %"], "L1", 0.9)
    risk = _risk(case, networks["SGD"])
    flat = {name: risk.flat(dict(model.named_parameters())) for name, model in networks.items()}
    vectors: dict[str, Tensor] = {
        f"{name} - SGD": flat[name] - flat["SGD"] for name in (*PAIRS, "SGD pruned 90 %", "start")
    }
    shares = project(pairs, {**vectors, **{name: flat[name] for name in ("SGD", *PAIRS)}})
    return {
        "examples": risk.examples,
        "k": len(pairs.values),
        "shares": [share.to_dict() for share in shares],
    }


def repeats(case: Case) -> dict[str, Make]:
    """Straight lines and shares again, from other starts."""

    def measure(seed: int) -> dict[str, Any]:
        again = case.again(seed)
        lines = {name: make() for name, make in ways(again).items() if name.startswith("line")}
        return {"ways": lines, "projection": _projection(again)}

    return {f"start {seed}": partial(measure, seed) for seed in range(1, case.sizes.repeats + 1)}


def plane(case: Case) -> dict[str, Make]:
    """The plane through SGD, the control and the sparser gRDA; the others projected."""

    def measure() -> dict[str, Any]:
        surface = Surface(case.start(), case.data().train.take(case.sizes.plane))
        names = ["SGD", CONTROL, SPARSE[-1], *SPARSE[:-1]]
        points = {name: surface.space.vector(trained(case, name)) for name in names}
        points["start"] = surface.space.vector(case.start())
        return measured(case, surface, through(points), case.sizes.side, "plane")

    return {"plane": measure}


def measured(case: Case, surface: Surface, plane: Plane, side: int, word: str) -> dict[str, Any]:
    """A plane as plain numbers, resumable point by point."""
    grid = measure_plane(surface, plane, points=side, folder=case.scratch / slug(word), progress=steps(word))
    return {**record(grid), "batch_norm": surface.note}


def record(grid: Grid) -> dict[str, Any]:
    """Loss and accuracy row by row, to six digits."""

    def rounded(what: str) -> list[list[float]]:
        return [[float(f"{v:.6g}") for v in row] for row in grid.values(what).tolist()]  # type: ignore[arg-type]

    return {
        "kind": grid.plane.kind,
        "x": list(grid.x),
        "y": list(grid.y),
        "axes": list(grid.plane.axes),
        "marks": {name: vars(mark) for name, mark in grid.plane.marks.items()},
        "n": grid.heights[0][0].train.n,
        "loss": rounded("loss"),
        "error": rounded("error"),
    }


def _count(word: str) -> Callable[[], None]:
    done = [0]

    def tell() -> None:
        done[0] += 1
        if done[0] % 10 == 0:
            print(f"  {word}: {done[0]} products", flush=True)

    return tell
