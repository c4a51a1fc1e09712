"""How the network that gRDA finds relates to directional pruning of the one that SGD finds, layer by layer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError, near
from espalier._types import Tensors


@dataclass(frozen=True)
class Fit:
    r"""Least squares of one layer: :math:`\mathrm{sign}(w_j)\,(w^{gRDA} - w^{SGD})_j \approx a - \lambda s_j`.

    Args:
        name: of the tensor; "all" for all of them together.
        n: weights used.
        slope: lambda; the theory says the same positive number for every layer.
        error: its standard error, as if weights were independent.
        intercept: a; 0 in theory.
        correlation: of both sides, in [-1, 1]; 0 where one of them does not vary.
        mean_score: mean of s over the weights used.
    """

    name: str
    n: int
    slope: float
    error: float
    intercept: float
    correlation: float
    mean_score: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def regress(grda: Tensors, sgd: Tensors, scores: Tensors, *, alive: bool = True) -> tuple[Fit, ...]:
    """Regress what gRDA changed on minus the scores, for each tensor and for all.

    Signs are those of the SGD weights, so that shrinking is negative on both sides.

    Args:
        grda: weights of the network trained with gRDA, by name.
        sgd: of the one trained with SGD from the same start on the same batches.
        scores: s at the SGD network, from `espalier.directional.scores`, by name.
        alive: leave out weights that gRDA has at zero: what was truncated stopped following the line.

    Raises:
        EspalierError: a tensor is missing or has another shape.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in scores:
        for tensors, whose in ((grda, "gRDA"), (sgd, "SGD")):
            if name not in tensors:
                raise EspalierError(f"the {whose} network has no {name!r}.{near(name, tensors)}")
            if tensors[name].shape != scores[name].shape:
                raise EspalierError(
                    f"{name!r} has shape {tuple(tensors[name].shape)} in the {whose} network and "
                    f"{tuple(scores[name].shape)} in the scores"
                )
        after, before = grda[name].detach().double().flatten(), sgd[name].detach().double().flatten()
        used = (before != 0) & ((after != 0) | (not alive))
        pairs[name] = (
            -scores[name].detach().double().flatten()[used],
            (before.sign() * (after - before))[used],
        )
    both = [torch.cat(side) for side in zip(*pairs.values(), strict=True)]
    return (*(_fit(name, x, y) for name, (x, y) in pairs.items()), _fit("all", both[0], both[1]))


def _fit(name: str, x: Tensor, y: Tensor) -> Fit:
    n = len(x)
    if n < 3:
        return Fit(name, n, math.nan, math.nan, math.nan, 0.0, math.nan)
    dx, dy = x - x.mean(), y - y.mean()
    xx, xy, yy = float(dx @ dx), float(dx @ dy), float(dy @ dy)
    if xx <= 1e-20 * n:
        return Fit(name, n, math.nan, math.nan, math.nan, 0.0, float(-x.mean()))
    slope = xy / xx
    rest = max(0.0, yy - slope * xy)
    return Fit(
        name,
        n,
        slope,
        math.sqrt(rest / (n - 2) / xx),
        float(y.mean() - slope * x.mean()),
        xy / math.sqrt(xx * yy) if yy else 0.0,
        float(-x.mean()),
    )
