"""Slow transcriptions of published allocations, for the fast ones to match."""

import math
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def erk_densities(shapes: Shapes, density: float) -> dict[str, float]:
    """Evci et al. 2020, section 3: raw probabilities, and dense tensors removed one by one until none "
    "exceeds 1."""
    raw = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            c_out, c_in, k_h, k_w = shape
            raw[name] = (c_in + c_out + k_h + k_w) / (c_in * c_out * k_h * k_w)
        else:
            n_out, n_in = shape
            raw[name] = (n_in + n_out) / (n_in * n_out)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        divisor = sum(raw[name] * sizes[name] for name in shapes if name not in dense)
        epsilon = budget / divisor if divisor else 0.0
        over = {name for name in shapes if name not in dense and raw[name] * epsilon > 1}
        if not over:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {max(sorted(over), key=lambda name: raw[name])}


def lamp_scores(weights: list[float]) -> list[float]:
    """Lee et al. 2021, equation 1, at every index; among equal magnitudes the smaller index counts as "
    "larger."""
    order = sorted(range(len(weights)), key=lambda i: (abs(weights[i]), -i))
    scores = [0.0] * len(weights)
    for place, index in enumerate(order):
        rest = math.fsum(weights[other] ** 2 for other in order[place:])
        scores[index] = weights[index] ** 2 / rest
    return scores


def top_of_all(scores: Mapping[str, list[float]], kept: int) -> dict[str, int]:
    """Counts per tensor of the first entries in the order (score descending, name, index)."""
    entries = sorted((-score, name, i) for name, values in scores.items() for i, score in enumerate(values))
    counts = dict.fromkeys(scores, 0)
    for _, name, _ in entries[:kept]:
        counts[name] += 1
    return counts
