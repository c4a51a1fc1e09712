"""Whole numbers in given proportions, with bounds, that sum exactly and only grow with the total."""

import heapq
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from espalier._types import Counts

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


def apportion(shares: Mapping[str, float], lower: Counts, upper: Counts, total: int) -> Counts:
    r"""Whole numbers within bounds that sum to `total`, as proportional to the shares as the bounds allow.

    Webster's method: \(k_i \in [l_i, u_i]\) is \(\varepsilon w_i\) rounded to the nearest and clipped,
    with one \(\varepsilon\) for all. Equivalently, unit \(j\) of tensor \(i\) has priority
    \(w_i / (j - 1/2)\), and the units of highest priority are taken, those below \(l_i\) first; equal
    priorities go to the smaller name.

    Largest remainders, the more common choice, also sum exactly, but can take an entry from a tensor when
    the total grows (the Alabama paradox), so that a sparser mask would not be part of a denser one.

    Args:
        shares: positive weights \(w_i\); only their ratios matter.
        lower: \(l_i \ge 0\).
        upper: \(u_i \ge l_i\).
        total: between the sum of the lower and the sum of the upper bounds.

    Returns:
        The numbers, in the order of `shares`.
    """
    names = sorted(shares)
    low = np.array([lower[name] for name in names], dtype=np.int64)
    high = np.array([upper[name] for name in names], dtype=np.int64)
    weight = np.array([shares[name] for name in names], dtype=np.float64)
    assert low.sum() <= total <= high.sum() and (weight > 0).all() and (low <= high).all()
    taken = _below(weight, low, high, total)
    # Negated, because heapq gives the smallest; the index breaks ties by name.
    heap = [(-weight[i] / (taken[i] + 0.5), i) for i in range(len(names)) if taken[i] < high[i]]
    heapq.heapify(heap)
    for _ in range(total - int(taken.sum())):
        _, i = heapq.heappop(heap)
        taken[i] += 1
        if taken[i] < high[i]:
            heapq.heappush(heap, (-weight[i] / (taken[i] + 0.5), i))
    counts = dict(zip(names, taken.tolist()))
    return {name: counts[name] for name in shares}


def _below(weight: Floats, low: Whole, high: Whole, total: int) -> Whole:
    """Numbers that sum to at most `total`, and hold only units that the exact answer holds too.

    One less than the rounded number everywhere: the unit left out absorbs errors of rounding in `scale *
    weight`, so that what remains has clearly the highest priorities.
    """

    def numbers(scale: float, less: int) -> Whole:
        wanted = np.minimum(np.floor(scale * weight + 0.5), high.astype(np.float64)) - less
        clipped: Whole = np.clip(wanted.astype(np.int64), low, high)
        return clipped

    few, many = 0.0, float(((high + 1) / weight).max()) if len(weight) else 0.0
    for _ in range(200):
        middle = (few + many) / 2
        if numbers(middle, 0).sum() <= total:
            few = middle
        else:
            many = middle
    return numbers(few, 1)
