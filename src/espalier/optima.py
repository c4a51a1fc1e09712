r"""Where a curve is best: closest to utopia, its band, the knee. Integer bisection, no grid.

With q the kept fraction and g the gain (cosine, energy or angle scaled to [0, 1]), the utopia point minimizes
\(J = (1 - g)^2 + q^2\). The energy e is concave in q, and \((1-g)^2\) is convex and decreasing in e for each
of the three gains, so J is strictly convex: one optimum, at most two tied neighbors.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from espalier._errors import EspalierError
from espalier.curve import Curve, first

Axis = Literal["cosine", "energy", "angle"]


def check_axis(axis: str) -> None:
    """Raise unless `axis` is one of the three."""
    if axis not in get_args(Axis):
        raise EspalierError(f"axis {axis!r} is unknown; use one of {', '.join(get_args(Axis))}")


def gain(curve: Curve, kept: NDArray[np.int64], axis: Axis) -> NDArray[np.float64]:
    """Cosine, its square, or 1 - angle / 90 degrees at each number kept."""
    cosine = curve.cosine(kept)
    if axis == "cosine":
        return cosine
    return cosine**2 if axis == "energy" else 1 - np.arccos(cosine) / (np.pi / 2)


def distance(curve: Curve, kept: int, axis: Axis = "cosine") -> float:
    """Distance of the point (sparsity, gain) from (1, 1)."""
    return float(np.hypot(1 - gain(curve, np.asarray([kept]), axis)[0], kept / curve.entries))


def utopia(curve: Curve, axis: Axis = "cosine") -> int:
    """Number kept, at least 1, whose point is closest to (1, 1); of two tied neighbors the sparser."""
    return first(lambda k: _squared_step(curve, k, axis) >= 0, 1, curve.entries)


def _squared_step(curve: Curve, kept: int, axis: Axis) -> float:
    """J(kept + 1) - J(kept), written without the cancellation of the difference of two nearby J."""
    here, there = (float(x) for x in gain(curve, np.asarray([kept, kept + 1]), axis))
    return (here - there) * (2 - here - there) + (2 * kept + 1) / curve.entries**2


def band(curve: Curve, kept: int, axis: Axis = "cosine", tolerance: float = 0.05) -> tuple[int, int]:
    """Fewest and most kept whose distance is within a relative `tolerance` of that at the optimum `kept`."""
    limit = (1 + tolerance) * distance(curve, kept, axis)
    fewest = first(lambda k: distance(curve, k, axis) <= limit, 1, kept)
    most = first(lambda k: distance(curve, k, axis) > limit, kept, curve.entries + 1) - 1
    return fewest, most


def grid_utopia(curve: Curve, points: int = 101) -> tuple[int, float]:
    """The published search: the first of `points` evenly spaced sparsities with the least distance.

    Returns:
        Number kept and the nominal sparsity. Its distance uses the nominal sparsity, as published; the number
        removed is `round(sparsity * n)`, as torch rounds it.
    """
    sparsity = np.arange(points) / (points - 1)
    kept = curve.entries - np.round(sparsity * curve.entries).astype(np.int64)
    best = int(np.argmin(np.hypot(1 - sparsity, 1 - curve.cosine(kept))))
    return int(kept[best]), float(sparsity[best])


def knee(curve: Curve, axis: Axis = "cosine") -> int:
    """Number kept, at least 1, where gain - kept fraction is largest (Kneedle; utopia in the L1 distance)."""

    def height(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        return gain(curve, kept, axis) - kept / curve.entries

    def falls(kept: int) -> bool:
        here, there = height(np.asarray([kept, kept + 1]))
        return bool(there <= here)

    if axis != "angle":
        return first(falls, 1, curve.entries)
    # The angle is not concave in q (for equal weights it has an inflection at 1/2), so bisection could settle
    # on a lesser peak: look at every node, then refine between the neighbors of the best.
    nodes = curve.kept
    best = int(np.argmax(height(nodes)))
    low, high = nodes[max(best - 1, 0)], nodes[min(best + 1, len(nodes) - 1)]
    return first(falls, max(int(low), 1), max(int(high), 1))
