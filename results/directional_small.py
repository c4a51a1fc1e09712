"""A small network pruned without retraining: the directional path, its one-shot formula, OBS, OBD and magnitude.

    python -m results.directional_small

A perceptron with one hidden layer on scikit-learn's digits (64 inputs, 16 hidden units, 10 classes: 1,210 parameters,
1,184 weights to prune), small enough that the Gauss-Newton matrix of all its weights fits in memory and OBS is exact.
Every method sees the same curvature: of the mean training loss, on all training images, at the dense network; a second
OBS, OBD and path take it anew at their own last point, at each sparsity listed. Nothing is trained after pruning; the test images are read once per point and choose nothing. Also here: the
simulation on a quadratic with 40 flat directions out of 60, which says the same without a network.
"""

import copy
from collections.abc import Callable
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
    closed_form,
    follow,
    one_shot,
    scores,
    strength_for,
)
from espalier.evaluation import evaluate
from espalier.landscape import Curvature, Eigenpairs, Risk
from espalier.selection import select
from results._common import HERE, command, environment, once, summary, write_json

SEEDS = range(5)
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
STIFF = 1e-3  # eigenvalues above this share of the largest are stiff
TRAINING_STEPS = 400
SIMULATED = 20


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
        nn.functional.cross_entropy(model(x), y).backward()
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
    for chunk in x.double().split(250):
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
    for name, prune in methods(risk.weights, curvature).items():
        weights = risk.weights
        for sparsity in SPARSITIES:
            zeros = round(sparsity * risk.dimension)
            try:
                weights = prune(weights, zeros)
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


def main() -> None:
    """Every network and every simulation once, then the summary."""
    torch.set_num_threads(1)
    folder = HERE / "points" / "directional_small"
    runs = [once(folder / f"seed{seed}.json", lambda seed=seed: run(seed)) for seed in SEEDS]
    simulations = once(folder / "simulation.json", lambda: [simulate(seed) for seed in range(SIMULATED)])
    names = list(dict.fromkeys(point["method"] for point in runs[0]["points"]))
    curves: dict[str, Any] = {}
    for name in names:
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
    simulation = {
        strength: {
            name: {
                key: summary([one[strength][name][key] for one in simulations]) for key in ("zeros", "loss")
            }
            for name in simulations[0][strength]
        }
        for strength in ("0.045", "0.9", "4")
    }
    write_json(
        HERE / "directional_small.json",
        {
            "command": command(),
            "environment": environment(),
            "dense": {key: summary([one["dense"][key] for one in runs]) for key in runs[0]["dense"]},
            "weights": runs[0]["weights"],
            "stiff": f"eigenvalues above {STIFF:g} of the largest",
            "curves": curves,
            "simulation": simulation,
            "runs": [one["seed"] for one in runs],
        },
    )


if __name__ == "__main__":
    main()
