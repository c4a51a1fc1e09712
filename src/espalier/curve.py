r"""How much of a vector stays when only its largest entries are kept: the cosine-sparsity curve.

Let \(w\) be the weights and \(m\) a 0/1 mask. Since \(\langle w, m \circ w\rangle = \|m \circ w\|^2\),

\[ \cos(w, m \circ w) = \frac{\|m \circ w\|}{\|w\|} = \sqrt{\text{share of the energy kept}} , \]

so of all masks with \(k\) ones the best keeps the \(k\) largest \(|w|\), and one sort and one sum give the
whole curve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from espalier._errors import EspalierError

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Curve:
    """Energy kept by the largest entries, at nodes; a parabola in between.

    An exact curve has a node at every k. A curve from a histogram has one node per nonempty bin, is exact
    at the nodes, and in between is wrong in the cosine by at most `error`.

    Args:
        entries: number of entries n.
        nodes: int64, ascending from 0 to n: entries kept at each node; None when every k is a node.
        energy: float64, sum of squares of the entries kept at each node; concave in the number kept.
        threshold: magnitude of the last entry kept at each node (in a histogram: the lower edge of its bin);
            infinity at the first node, descending.
        error: bound on |true cosine - cosine of this curve| anywhere; 0.0 when exact.
        bend: float64, at each node: how far the energy per entry falls, from the middle to the end of the
            segment that ends there; None for straight segments.
    """

    entries: int
    nodes: NDArray[np.int64] | None
    energy: NDArray[np.float64]
    threshold: Floats
    error: float = 0.0
    bend: NDArray[np.float64] | None = None

    @property
    def kept(self) -> NDArray[np.int64]:
        """Entries kept at each node, int64, ascending from 0 to n."""
        return np.arange(self.entries + 1, dtype=np.int64) if self.nodes is None else self.nodes

    @property
    def total(self) -> float:
        """Sum of squares of all entries."""
        return float(self.energy[-1])

    @overload
    def energy_at(self, kept: int) -> float: ...
    @overload
    def energy_at(self, kept: NDArray[np.int64]) -> NDArray[np.float64]: ...
    def energy_at(self, kept: int | NDArray[np.int64]) -> float | NDArray[np.float64]:
        """Sum of squares of the `kept` largest entries (0 to n); an array gives an array."""
        k = np.asarray(kept, dtype=np.int64)
        if k.size and (k.min() < 0 or k.max() > self.entries):
            raise EspalierError(f"kept must lie in 0 to {self.entries} entries; got {kept}")
        if self.nodes is None:
            return float(self.energy[k]) if k.ndim == 0 else self.energy[k]
        right = np.searchsorted(self.nodes, k)
        left = np.maximum(right - 1, 0)
        width = np.maximum(self.nodes[right] - self.nodes[left], 1)
        part = (self.nodes[right] - k) / width  # 0 at a node: exact there
        energy = self.energy[right] - part * (self.energy[right] - self.energy[left])
        if self.bend is not None:
            energy += self.bend[right] * width * part * (1 - part)
        return float(energy) if energy.ndim == 0 else energy

    @overload
    def cosine(self, kept: int) -> float: ...
    @overload
    def cosine(self, kept: NDArray[np.int64]) -> NDArray[np.float64]: ...
    def cosine(self, kept: int | NDArray[np.int64]) -> float | NDArray[np.float64]:
        """Cosine between the vector and its `kept` largest entries; 0.0 for none kept.

        Raises:
            EspalierError: all entries are zero (the cosine is undefined), or `kept` is out of range.
        """
        if not self.total > 0:
            raise EspalierError("the cosine of an all-zero or empty vector is undefined")
        share = np.minimum(np.asarray(self.energy_at(kept)) / self.total, 1.0)
        return float(np.sqrt(share)) if share.ndim == 0 else np.sqrt(share)

    def cosine_at(self, sparsity: float) -> float:
        """Cosine with `round(sparsity * n)` entries removed; sparsity in [0, 1]."""
        return self.cosine(self.kept_at(sparsity))

    def kept_at(self, sparsity: float) -> int:
        """Entries kept when `round(sparsity * n)` are removed; sparsity in [0, 1]."""
        if not 0 <= sparsity <= 1:
            raise EspalierError(f"sparsity must lie in 0 to 1; got {sparsity}")
        return self.entries - round(sparsity * self.entries)

    def kept_for(self, cosine: float) -> int:
        """Fewest entries whose cosine is at least `cosine`, in (0, 1]: the largest such sparsity."""
        if not 0 < cosine <= 1:
            raise EspalierError(f"the cosine to keep must lie in (0, 1]; got {cosine}")
        return first(lambda k: self.cosine(k) >= cosine, 0, self.entries)

    def points(
        self, count: int = 101, extra: ArrayLike = ()
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sparsities, ascending, and cosines for a plot: `count` evenly spaced ones and the `extra` ones."""
        asked = np.union1d(np.linspace(0.0, 1.0, count), np.asarray(extra, dtype=np.float64))
        kept = self.entries - np.round(asked * self.entries).astype(np.int64)
        return asked, self.cosine(kept)

    def above(self, threshold: float) -> int:
        """Entries in nodes whose threshold is greater than `threshold`."""
        return self._kept_at_node(_last(self.threshold, lambda t: t > threshold))

    def at_least(self, threshold: float) -> int:
        """Entries in nodes whose threshold is at least `threshold`."""
        return self._kept_at_node(_last(self.threshold, lambda t: t >= threshold))

    def segment(self, kept: int) -> float:
        """Threshold of the first node that keeps at least `kept` entries (1 to n)."""
        return float(self.threshold[kept if self.nodes is None else np.searchsorted(self.nodes, kept)])

    def _kept_at_node(self, node: int) -> int:
        return node if self.nodes is None else int(self.nodes[node])


def exact_curve(values: Tensor) -> Curve:
    """Curve of a tensor with a node at every number of entries kept: one sort, one float64 sum.

    Args:
        values: real floating tensor of any shape, finite.

    Returns:
        The curve, `error` 0.0; about 20 bytes per entry.

    Raises:
        EspalierError: NaN or infinite entries.
    """
    return sorted_curve(sorted_magnitudes([as_array(values)]))


def as_array(values: Tensor) -> Floats:
    """Flat NumPy array of a tensor: float32 for 16-bit tensors, else its own dtype; no copy if possible."""
    flat = values.detach().reshape(-1).cpu()
    return (flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat).numpy()


def sorted_magnitudes(arrays: list[Floats]) -> Floats:
    """Infinity, then |w| of all entries in descending order (n + 1 numbers).

    The first is the threshold at which nothing is kept, so these are the thresholds of the exact curve.

    Raises:
        EspalierError: NaN or infinite entries.
    """
    count = sum(array.size for array in arrays)
    out = np.empty(count + 1, dtype=np.result_type(np.float32, *arrays))
    start = 0
    for array in arrays:
        np.abs(array, out=out[start : start + array.size])
        start += array.size
    out[count] = np.inf
    out.sort()  # ascending; NaN goes last
    if count and not np.isfinite(out[count - 1]):
        bad = int(count - np.count_nonzero(np.isfinite(out[:count])))
        raise EspalierError(f"{max(bad, 1)} entries are NaN or infinite")
    return out[::-1]


def sorted_curve(threshold: Floats) -> Curve:
    """Exact curve from the output of `sorted_magnitudes`, which it keeps."""
    # Squared in the order of memory, then summed from its end: about a tenth faster than on the reversed view.
    rising = threshold[::-1]
    squares = np.empty(threshold.size)
    np.multiply(rising[:-1], rising[:-1], out=squares[:-1], dtype=np.float64)
    squares[-1] = 0.0
    energy = squares[::-1]
    np.cumsum(energy, out=energy)
    return Curve(threshold.size - 1, None, energy, threshold)


def first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest integer in [low, high] where `holds`, which stays true once true; `high` if nowhere before."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _last(values: Floats, holds: Callable[[float], bool]) -> int:
    """Index of the last entry that holds, in an array whose first entries hold (the first one always)."""
    return first(lambda i: not holds(float(values[i])), 1, len(values)) - 1
