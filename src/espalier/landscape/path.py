"""Loss along a straight line, a Bezier curve or a polygon between two networks: barriers, and how long the way is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape.points import inner
from espalier.landscape.records import Records
from espalier.landscape.surface import Height, Level, Surface
from espalier.train.state import tensors_digest

Kind = Literal["line", "bezier", "polygon"]
Progress = Callable[[int, int], None]
_PIECES = 2000  # of the numeric arc length of a Bezier curve


@dataclass(frozen=True, eq=False)
class Path:
    r"""A way from network a (t = 0) to network b (t = 1), with one bend :math:`\theta` at most.

    * line: :math:`(1 - t) a + t b`
    * bezier: :math:`(1 - t)^2 a + 2t(1 - t) \theta + t^2 b`
    * polygon: :math:`a` to :math:`\theta` to :math:`b`, reached at t = 1/2

    Args:
        kind: which.
        start: a, vector (d,).
        end: b, vector (d,).
        bend: theta, vector (d,); None for the line.

    Raises:
        EspalierError: an unknown kind, a bend missing or too many, the two networks are the same.

    References:
        Garipov et al. (2018), "Loss surfaces, mode connectivity, and fast ensembling of DNNs", arXiv
        1802.10026; Draxler et al. (2018), "Essentially no barriers in neural network energy landscape".
    """

    kind: Kind
    start: Tensor
    end: Tensor
    bend: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise EspalierError(f"a path is one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if (self.bend is None) != (self.kind == "line"):
            raise EspalierError(
                f"a {self.kind} path {'has no bend' if self.kind == 'line' else 'needs its bend'}: train one with "
                "`trained_path`"
            )
        if torch.equal(self.start, self.end):
            raise EspalierError("the two networks have the same weights: there is no path between them")

    def coefficients(self, t: float) -> tuple[float, float, float]:
        """Shares of start, bend and end in the point at t; they sum to 1."""
        if not 0 <= t <= 1:
            raise EspalierError(f"t lies between 0 (start) and 1 (end), got {t}")
        if self.kind == "line":
            return 1 - t, 0.0, t
        if self.kind == "bezier":
            return (1 - t) ** 2, 2 * t * (1 - t), t * t
        return max(0.0, 1 - 2 * t), 1 - abs(1 - 2 * t), max(0.0, 2 * t - 1)

    def at(self, t: float) -> Tensor:
        """The point at t, vector (d,)."""
        first, middle, last = self.coefficients(t)
        point = first * self.start + last * self.end
        return point if self.bend is None else point.add_(self.bend, alpha=middle)

    @property
    def distance(self) -> float:
        """Euclidean distance of the two networks."""
        return _norm(self.end - self.start)

    @property
    def arc_length(self) -> float:
        """Length of the way: exact for line and polygon; for the Bezier curve by Simpson's rule with 2,000 pieces."""
        if self.bend is None:
            return self.distance
        one, two = self.bend - self.start, self.end - self.bend
        if self.kind == "polygon":
            return _norm(one) + _norm(two)
        # |B'(t)|^2 = 4 |(1 - t) one + t two|^2 needs three inner products, not d-vectors at every t.
        a, b, c = inner(one, one), inner(one, two), inner(two, two)
        t = np.linspace(0, 1, _PIECES + 1)
        speed = 2 * np.sqrt(np.maximum((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c, 0))
        return float((speed[0] + speed[-1] + 4 * speed[1::2].sum() + 2 * speed[2:-1:2].sum()) / (3 * _PIECES))


@dataclass(frozen=True)
class Barrier:
    r"""How much worse the way is than its ends.

    The definition of Frankle et al. (2020, "Linear mode connectivity and the lottery ticket hypothesis",
    section 2), there for the error on the straight line: the largest value on the way minus the mean of the two
    ends, :math:`\sup_t E(w_t) - \tfrac12 (E(w_0) + E(w_1))`, here over the points measured, ends included.
    It is at least half the difference of the ends, so a flat way between unequal ends has a barrier too;
    `above` has not: it is 0 where the way is nowhere worse than its worse end.

    Args:
        height: that difference.
        at: the t of the largest value.
        highest: the largest value.
        above: the largest value minus that of the worse end, at least 0.
    """

    height: float
    at: float
    highest: float
    above: float


@dataclass(frozen=True)
class Along:
    """A path as measured.

    Args:
        kind: line, bezier or polygon.
        t: where, ascending, from 0 to 1.
        heights: loss and accuracy there.
        distance: Euclidean distance of the ends.
        arc_length: length of the way; at least the distance.
        sparsity: of the networks along the way: zeros over all parameters, at each t.
    """

    kind: str
    t: tuple[float, ...]
    heights: tuple[Height, ...]
    distance: float
    arc_length: float
    sparsity: tuple[float, ...]

    def values(self, split: Literal["train", "test"], what: Literal["loss", "error"]) -> list[float]:
        """Loss or error along the way."""
        return [getattr(_level(height, split), what) for height in self.heights]

    def barrier(self, split: Literal["train", "test"], what: Literal["loss", "error"]) -> Barrier:
        """See `Barrier`; a loss that is not finite is the largest.

        Raises:
            EspalierError: there is no such split.
        """
        values = [v if math.isfinite(v) else math.inf for v in self.values(split, what)]
        top = max(range(len(values)), key=values.__getitem__)
        ends = values[0], values[-1]
        # Where an end is not finite, nothing is above it.
        above = values[top] - max(ends) if math.isfinite(max(ends)) else 0.0
        return Barrier(values[top] - sum(ends) / 2, self.t[top], values[top], above)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        splits = ("train", "test") if self.heights[0].test is not None else ("train",)
        return {
            "kind": self.kind,
            "distance": self.distance,
            "arc_length": self.arc_length,
            "points": [
                {"t": t, "sparsity": s, **h.record()}
                for t, s, h in zip(self.t, self.sparsity, self.heights, strict=True)
            ],
            "barrier": {
                split: {what: vars(self.barrier(split, what)) for what in ("loss", "error")}  # type: ignore[arg-type]
                for split in splits
            },
        }


def measure_path(
    surface: Surface,
    path: Path,
    *,
    points: int = 21,
    folder: File | None = None,
    progress: Progress | None = None,
) -> Along:
    """Loss and accuracy at equidistant t, batch norm re-estimated at each: exactly `points` evaluations.

    Args:
        surface: the module and the data.
        path: between two networks of the module's architecture.
        points: how many, ends included; at least 3.
        folder: where finished points are kept, so that a killed run goes on; a folder of another path or other
            data is refused.
        progress: called after each point with how many are done, and of how many.

    Raises:
        EspalierError: too few points, or the folder holds something else.
    """
    if points < 3:
        raise EspalierError(f"a path needs at least 3 points (both ends and one between), got {points}")
    ends = {"start": path.start, "end": path.end, **({} if path.bend is None else {"bend": path.bend})}
    records = Records(
        folder,
        {"path": path.kind, "points": points, "networks": tensors_digest(ends), "data": surface.spec},
    )
    t = tuple(i / (points - 1) for i in range(points))
    heights, sparsity = [], []
    for i, at in enumerate(t):
        record = records.get(i)
        if record is None:
            vector = path.at(at)
            zeros = int((vector == 0).sum())
            record = {"t": at, "sparsity": zeros / vector.numel(), **surface(vector).record()}
            records.add(i, record)
        heights.append(Height.from_record({k: record[k] for k in ("train", "test") if k in record}))
        sparsity.append(float(record["sparsity"]))
        if progress is not None:
            progress(i + 1, points)
    return Along(path.kind, t, tuple(heights), path.distance, path.arc_length, tuple(sparsity))


def _level(height: Height, split: Literal["train", "test"]) -> Level:
    level: Level | None = getattr(height, split)
    if level is None:
        raise EspalierError(f"nothing was measured on a {split} split")
    return level


def _norm(vector: Tensor) -> float:
    return math.sqrt(inner(vector, vector))
