"""Second result: what pruning does to a network, in the pictures of "What Makes a Good Prune?"."""

import copy
import math
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr

from espalier._forward import collect_logits
from espalier.amount import CosineTarget
from espalier.landscape import Grid, Surface, difference, embed, measure_plane, radial, random_plane
from espalier.landscape import family as pruned_family
from espalier.likeness import cosine_bound
from espalier.models import CifarResNet
from espalier.pruning import prune
from espalier.scores import Random
from results.landscape.between import measured, record
from results.landscape.networks import (
    SCORES,
    TUNED,
    Case,
    Make,
    pruned,
    slug,
    steps,
    trained,
    tuned,
    tuned_name,
)

MARKED = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
"""Sparsities of the pruned networks that are projected into the radial slice."""


def family(case: Case) -> dict[str, Make]:
    """t-SNE of predictions, and accuracy against cosine, of SGD's network pruned to many sparsities."""
    return {"family": partial(_family, case)}


def _family(case: Case) -> dict[str, Any]:
    network, split = trained(case, "SGD"), case.data().test.take(case.sizes.predictions)
    sparsities = [percent / 100 for percent in range(0, 100, case.sizes.family)]
    sparsities += [0.99] if sparsities[-1] < 0.99 else []
    members = pruned_family(
        network, split, sparsities, folder=case.scratch / "family", progress=steps("pruned families")
    )
    others = {"start": case.start(), "end": network}
    if isinstance(network, CifarResNet):  # its start is a trained network
        with torch.random.fork_rng():
            torch.manual_seed(0)
            others["untrained"] = CifarResNet(20)
    others |= {tuned_name(*pair): tuned(case, *pair) for pair in TUNED}
    found = embed(
        {
            **{name: collect_logits(model, split) for name, model in others.items()},
            **{name: logits for name, (_, _, logits) in members.items()},
        },
        split.labels,
        groups={name: group for name, (group, _, _) in members.items()}
        | {tuned_name(*pair): f"{pair[0]}, tuned" for pair in TUNED},
        sparsities={name: sparsity for name, (_, sparsity, _) in members.items()}
        | {tuned_name(*pair): pair[1] for pair in TUNED},
    )
    cosines = {
        name: pruned(copy.deepcopy(network), group, sparsity)
        for name, (group, sparsity, _) in members.items()
    }
    at = {name: i for i, name in enumerate(found.names)}
    rows = [
        {
            "name": name,
            "group": found.groups[i],
            "sparsity": None if math.isnan(found.sparsities[i]) else found.sparsities[i],
            "cosine": cosines.get(name),
            "accuracy": found.accuracies[i],
            "x": float(found.positions[i, 0]),
            "y": float(found.positions[i, 1]),
            "to_end": float(found.distances[i, at["end"]]),
            "to_start": float(found.distances[i, at["start"]]),
        }
        for name, i in at.items()
    ]
    points = [row for row in rows if row["cosine"] is not None]
    return {
        "n": found.n,
        "perplexity": found.perplexity,
        "faithfulness": found.faithfulness,
        "networks": rows,
        "spearman": {
            key: float(spearmanr([p[key] for p in points], [p["accuracy"] for p in points]).statistic)
            for key in ("sparsity", "cosine")
        },
    }


def slice_(case: Case) -> dict[str, Make]:
    """The radial slice through the origin, the start and the end."""

    def measure() -> dict[str, Any]:
        surface = Surface(case.start(), case.data().train.take(case.sizes.plane))
        network = trained(case, "SGD")
        others = {tuned_name(*pair): tuned(case, *pair) for pair in TUNED}
        for score in SCORES:
            for sparsity in MARKED:
                model = copy.deepcopy(network)
                pruned(model, score, sparsity)
                others[f"{score} {100 * sparsity:g} %"] = model
        vector = surface.space.vector
        points = {name: vector(model) for name, model in others.items()}
        plane = radial(vector(network), vector(case.start()), points)
        return measured(case, surface, plane, case.sizes.side, "radial slice")

    return {"radial slice": measure}


def around(case: Case) -> dict[str, Make]:
    """Filter-normalized planes around SGD's network and around it pruned by L1 and at random, to equal cosine."""
    return {f"directions {seed}": partial(_around, case, seed) for seed in range(case.sizes.directions)}


def _around(case: Case, seed: int) -> dict[str, Any]:
    surface = Surface(case.start(), case.data().train.take(case.sizes.plane))
    network = trained(case, "SGD")
    parent = surface.space.vector(network)
    plane = random_plane(surface.space, parent, seed=seed)

    def grid(name: str, center: torch.Tensor) -> Grid:
        word = f"around-{seed}-{name}"
        there = random_plane(surface.space, center, directions=(plane.u, plane.v), name=name)
        return measure_plane(
            surface,
            there,
            points=case.sizes.around,
            folder=case.scratch / slug(word),
            progress=steps(word, 0.5),
        )

    dense = grid("parent", parent)
    found: dict[str, Any] = {"parent": record(dense), "pruned": [], "batch_norm": surface.note}
    for cosine in case.sizes.cosines:
        for name in SCORES:
            model = copy.deepcopy(network)
            # At random a share 1 - c^2 of the squared norm goes with as many of the weights.
            masks = (
                prune(model, CosineTarget(cosine))
                if name == "L1"
                else prune(model, 1 - cosine**2, score=Random(seed))
            )
            other = grid(f"{name} {cosine:g}", surface.space.vector(model))
            found["pruned"].append(
                {
                    "score": name,
                    "target": cosine,
                    "cosine": cosine_bound(dict(network.named_parameters()), masks),
                    "sparsity": masks.sparsity,
                    "difference": {what: vars(difference(dense, other, what)) for what in ("loss", "error")},
                    **record(other),
                }
            )
    return found
