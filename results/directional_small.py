"""A small network pruned without retraining: the directional path, its one-shot formula, OBS, OBD and magnitude.

    python -m results.directional_small

A perceptron with one hidden layer on scikit-learn's digits (64 inputs, 16 hidden units, 10 classes: 1,210 parameters,
1,184 weights to prune), small enough that the Gauss-Newton matrix of all its weights fits in memory and OBS is exact.
Every method sees the same curvature: of the mean training loss, on all training images, at the dense network; a second
OBS, OBD and path take it anew at their own last point, at each sparsity listed. Nothing is trained after pruning; the
test images are read once per point and choose nothing. Also here, each a few minutes of one thread:

- the simulation on a quadratic with 40 flat directions out of 60, which says the same without a network;
- `prune_directional` as the command line calls it, on a digits_cnn after eight epochs, with and without refitting;
- gRDA and SGD from the same start on the same batches, and how their difference lies beside the scores.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from espalier import data
from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit
from espalier.directional import (
    FlatSubspace,
    brain_damage,
    brain_surgeon,
    by_cutoff,
    by_filter,
    closed_form,
    follow,
    one_shot,
    prune_directional,
    regress,
    scores,
    strength_for,
)
from espalier.evaluation import evaluate
from espalier.landscape import Curvature, Eigenpairs, Risk
from espalier.models import DigitsCNN
from espalier.optim import GRDA
from espalier.pruning import prune
from espalier.selection import select
from espalier.train import Training, fit
from results._common import HERE, command, environment, once, summary, write_json

SEEDS = range(5)
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
STIFF = 1e-3  # eigenvalues above this share of the largest are stiff
TRAINING_STEPS = 400
SIMULATED = 20
TRAINED = {  # the demonstration's training, for eight epochs
    "augmented": Training(epochs=8, lr=0.05, precision="fp32"),
    "not augmented": Training(epochs=8, lr=0.05, precision="fp32", augment=False),
}
CNN_SEEDS = range(3)
EXAMPLES, DIRECTIONS = 400, 10  # training images and eigenvectors, for the curvature of the digits_cnn
CNN_SPARSITIES = (0.5, 0.7)
C, MU, RATE = 0.002, 0.6, 0.05  # of gRDA beside SGD
STEPS = (2000, 8000)


class Perceptron(nn.Module):
    """64 - 16 - 10 with tanh: smooth, so that curvature is all there is to second order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x.flatten(1))))
        return out


def train(seed: int, split: AbstractSplit) -> Perceptron:
    """Full-batch Adam with a little weight decay, to a stationary point or near one."""
    torch.manual_seed(seed)
    model = Perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
    x, y = next(iter(split.batches(len(split))))
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        schedule.step()
    model.zero_grad()
    return model


def eigenpairs(matrix: Tensor) -> Eigenpairs:
    """All of them, by size."""
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    return Eigenpairs(
        values[order], vectors[:, order], 0 * values, 0.0, len(matrix), len(matrix), "magnitude"
    )


def flat_of(matrix: Tensor) -> FlatSubspace:
    pairs = eigenpairs(matrix)
    return by_cutoff(pairs, STIFF * float(pairs.values[0]))


def gauss_newton(model: nn.Module, split: AbstractSplit, risk: Risk, weights: Tensor) -> Tensor:
    """The whole matrix at some weights, from the Jacobian of every example: what `Curvature.dense` gives, at once."""
    x, _ = next(iter(split.batches(len(split))))
    fixed = {name: p.detach().double() for name, p in model.named_parameters() if name not in risk.names}

    def outputs(flat: Tensor, one: Tensor) -> Tensor:
        named = {**fixed, **risk.named(flat)}
        out: Tensor = torch.func.functional_call(model, named, (one[None],))[0]
        return out

    total = torch.zeros(risk.dimension, risk.dimension, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))
    for chunk in torch.split(x.double(), 250):
        slopes = jacobian(weights, chunk)
        p = torch.func.vmap(outputs, in_dims=(None, 0))(weights, chunk).softmax(1)
        # diag(p) - p p' = A A' with A = diag(sqrt p) - p sqrt(p)'
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        rows = (root.mT @ slopes).flatten(0, 1)
        total += rows.T @ rows
    return total / len(split)


Stage = Callable[[Tensor, int], Tensor]
"""(weights so far, zeros) -> weights with so many zeros."""


def methods(dense: Tensor, curvature: Callable[[Tensor], Tensor]) -> dict[str, Stage]:
    """Each goes on from its own last point; "anew": with the curvature there instead of that of the dense network."""
    d, matrix = len(dense), curvature(dense)
    flat = flat_of(matrix)

    def alive(at: Tensor) -> Tensor:
        return curvature(at) * (at != 0) * (at != 0)[:, None]

    return {
        "magnitude": lambda at, zeros: brain_damage(dense, torch.ones(d), zeros).weights,
        "OBD": lambda at, zeros: brain_damage(dense, matrix.diagonal(), zeros).weights,
        "OBD, anew": lambda at, zeros: brain_damage(at, curvature(at).diagonal(), zeros).weights,
        "OBS": lambda at, zeros: brain_surgeon(at, matrix, zeros).weights,
        "OBS, anew": lambda at, zeros: brain_surgeon(at, curvature(at), zeros).weights,
        "directional, one shot": lambda at, zeros: one_shot(dense, flat, zeros),
        "directional path": lambda at, zeros: follow(at, flat, zeros=zeros, batch=0.005).weights,
        "directional path, anew": lambda at, zeros: (
            follow(at, flat_of(alive(at)), zeros=zeros, batch=0.005).weights
        ),
    }


def run(seed: int) -> dict[str, Any]:
    """One network, every method at every sparsity, as far as it goes."""
    digits = data.digits(data.Options(validation=0.0))
    model = train(seed, digits.train)
    selection = select(open_checkpoint(model))
    risk = Risk(model, digits.train, selection=selection, batch_size=2000, dtype=torch.float64)
    record: dict[str, Any] = {
        "seed": seed,
        "dense": {"train loss": risk.loss(), "test accuracy": evaluate(model, digits.test).accuracy},
        "gradient norm": float(risk.loss_and_gradient()[1].norm()),
        "weights": risk.dimension,
        "points": [],
    }
    curvature = partial(gauss_newton, model, digits.train, risk)
    assert torch.allclose(
        Curvature(risk, kind="gauss-newton") @ risk.weights, curvature(risk.weights) @ risk.weights, atol=1e-9
    )
    for name, stage in methods(risk.weights, curvature).items():
        weights = risk.weights
        for sparsity in SPARSITIES:
            zeros = round(sparsity * risk.dimension)
            try:
                weights = stage(weights, zeros)
            except EspalierError as reason:
                record["points"].append({"method": name, "sparsity": sparsity, "reason": str(reason)})
                continue
            assert int((weights == 0).sum()) == zeros
            pruned = copy.deepcopy(model)
            named = {key: tensor.float() for key, tensor in risk.named(weights).items()}
            pruned.load_state_dict(named, strict=False)
            record["points"].append(
                {
                    "method": name,
                    "sparsity": sparsity,
                    "train loss": risk.loss(weights),
                    "test accuracy": evaluate(pruned, digits.test).accuracy,
                    "moved": float((weights - risk.weights).norm() / risk.weights.norm()),
                }
            )
    return record


def simulate(seed: int) -> dict[str, Any]:
    """60 weights, 20 stiff directions of curvature 1 to 8: zeros and loss by path, one shot, soft threshold."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(60, 60, generator=g, dtype=torch.float64))
    values = torch.zeros(60, dtype=torch.float64)
    values[:20] = 1 + 7 * torch.rand(20, generator=g, dtype=torch.float64)
    matrix, w = q @ torch.diag(values) @ q.T, torch.randn(60, generator=g, dtype=torch.float64)
    flat = by_cutoff(eigenpairs(matrix), 1e-9)
    s = scores(w, flat)
    found: dict[str, Any] = {"strength of the first zero": strength_for(w, s, 1)}
    for strength in (0.045, 0.9, 4.0):
        ends = {
            "path": follow(w, flat, strength=strength, relax=False).weights,
            "one shot": closed_form(w, s, strength),
            "soft threshold": closed_form(w, torch.ones(60), strength),
        }
        found[f"{strength:g}"] = {
            name: {
                "zeros": float((end == 0).double().mean()),
                "loss": flat.model_loss(end - w),
            }
            for name, end in ends.items()
        }
    return found


def cnn(training: Training, seed: int) -> dict[str, Any]:
    """A digits_cnn pruned by magnitude, and along flat directions with and without refitting."""
    digits = data.digits()
    some = data.digits(data.Options(limit=EXAMPLES)).train
    torch.manual_seed(seed)
    model = DigitsCNN()
    fit(model, digits, replace(training, seed=seed))
    ways: dict[str, Callable[[nn.Module, float], object]] = {
        "magnitude": prune,
        "directional": lambda net, at: prune_directional(net, some, at, directions=DIRECTIONS),
        "directional, not refitted": lambda net, at: prune_directional(
            net, some, at, directions=DIRECTIONS, adjust=False
        ),
    }

    def measured(network: nn.Module) -> dict[str, float]:
        test = evaluate(network, digits.test)
        return {"train loss": evaluate(network, digits.train).loss, "test accuracy": test.accuracy}

    points = []
    for way, work in ways.items():
        for sparsity in CNN_SPARSITIES:
            pruned = copy.deepcopy(model)
            work(pruned, sparsity)
            points.append({"way": way, "sparsity": sparsity, **measured(pruned)})
    return {"seed": seed, "dense": measured(model), "points": points}


def grda_beside_sgd(seed: int, steps: int) -> dict[str, Any]:
    """The perceptron trained twice from one start on the same batches; what gRDA changed, over the scores.

    Flat are the directions by the filter that constant curvature gives, those below its middle mu/t, or only those
    without any curvature to speak of.
    """
    split = data.digits(data.Options(validation=0.0)).train
    x, y = next(iter(split.batches(len(split))))
    ends: list[Perceptron] = []
    for c in (C, 0.0):
        torch.manual_seed(seed)
        model = Perceptron().double()
        optimizer = GRDA(model.parameters(), lr=RATE, c=c, mu=MU, scope="paper")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(split), (50,), generator=generator)
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x[rows].double()), y[rows]))
            optimizer.step()
        ends.append(model)
    grda, sgd = (dict(model.named_parameters()) for model in ends)
    risk = Risk(ends[1], split, batch_size=2000, dtype=torch.float64)
    pairs = eigenpairs(gauss_newton(ends[1], split, risk, risk.weights))
    time = RATE * steps
    flats = {
        "the filter of gRDA": by_filter(pairs, MU, time),
        "curvature below mu/t": by_cutoff(pairs, MU / time),
        "no curvature (1e-8 of the largest)": by_cutoff(pairs, 1e-8 * float(pairs.values[0])),
    }
    lines = {}
    for name, flat in flats.items():
        s = scores(risk.weights, flat)
        lines[name] = [line.to_dict() for line in regress(grda, sgd, risk.named(s))]
    return {
        "seed": seed,
        "theory": C * RATE**0.5 * time**MU,
        "train loss": risk.loss(),
        "zeros": float(torch.cat([p.detach().flatten() for p in grda.values()]).eq(0).double().mean()),
        "lines": lines,
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Method -> points, mean over the networks; a sparsity that one of them could not reach is left out."""
    curves: dict[str, Any] = {}
    for name in dict.fromkeys(point["method"] for point in runs[0]["points"]):
        curves[name] = []
        for sparsity in SPARSITIES:
            points = [
                point
                for one in runs
                for point in one["points"]
                if (point["method"], point["sparsity"]) == (name, sparsity) and "reason" not in point
            ]
            if len(points) == len(runs):
                keys = ("train loss", "test accuracy", "moved")
                stats = {key: summary([point[key] for point in points]) for key in keys}
                curves[name].append({"sparsity": sparsity, **stats})
    return curves


def over_draws(simulations: list[dict[str, Any]]) -> dict[str, Any]:
    """Strength -> way -> zeros and loss, mean over the draws."""
    return {
        strength: {
            name: {
                key: summary([one[strength][name][key] for one in simulations]) for key in ("zeros", "loss")
            }
            for name in simulations[0][strength]
        }
        for strength in ("0.045", "0.9", "4")
    }


def over_cnns(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the networks."""
    keys = ("train loss", "test accuracy")
    rows: dict[str, list[Any]] = {}
    for place, point in enumerate(runs[0]["points"]):
        same = [one["points"][place] for one in runs]
        stats = {key: summary([p[key] for p in same]) for key in keys}
        rows.setdefault(point["way"], []).append({"sparsity": point["sparsity"], **stats})
    dense = {key: summary([one["dense"][key] for one in runs]) for key in keys}
    return {"dense": dense, "rows": rows}


def over_starts(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes over the theory's and correlations, mean over the starts, for all weights and for each tensor of weights."""
    found: dict[str, Any] = {key: summary([one[key] for one in runs]) for key in ("train loss", "zeros")}
    found["theory"] = runs[0]["theory"]
    found["lines"] = {}
    for name in runs[0]["lines"]:
        for place, line in enumerate(runs[0]["lines"][name]):
            same = [one["lines"][name][place] for one in runs]
            found["lines"].setdefault(name, {})[line["name"]] = {
                "slope over theory": summary([one["slope"] / found["theory"] for one in same]),
                "correlation": summary([one["correlation"] for one in same]),
            }
    return found


def main() -> None:
    """Every network and every simulation once, then the summary."""
    torch.set_num_threads(1)
    folder = HERE / "points" / "directional_small"
    runs = [once(folder / f"seed{seed}.json", partial(run, seed)) for seed in SEEDS]
    simulations = once(folder / "simulation.json", lambda: [simulate(seed) for seed in range(SIMULATED)])
    cnns = {
        name: [
            once(folder / f"cnn-{name.replace(' ', '-')}-{seed}.json", partial(cnn, training, seed))
            for seed in CNN_SEEDS
        ]
        for name, training in TRAINED.items()
    }
    starts = {
        steps: [
            once(folder / f"grda{steps}-{seed}.json", partial(grda_beside_sgd, seed, steps)) for seed in SEEDS
        ]
        for steps in STEPS
    }
    write_json(
        HERE / "directional_small.json",
        {
            "command": command(),
            "environment": environment(),
            "dense": {key: summary([one["dense"][key] for one in runs]) for key in runs[0]["dense"]},
            "weights": runs[0]["weights"],
            "stiff": f"eigenvalues above {STIFF:g} of the largest",
            "curves": over_seeds(runs),
            "simulation": over_draws(simulations),
            "digits_cnn": {
                "epochs": TRAINED["augmented"].epochs,
                "examples": EXAMPLES,
                "directions": DIRECTIONS,
                "trainings": {name: over_cnns(runs) for name, runs in cnns.items()},
            },
            "grda": {"c": C, "mu": MU, "rate": RATE}
            | {"steps": {str(steps): over_starts(runs) for steps, runs in starts.items()}},
            "runs": [one["seed"] for one in runs],
        },
    )


if __name__ == "__main__":
    main()
