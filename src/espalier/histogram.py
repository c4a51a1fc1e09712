"""The curve of any number of entries in fixed memory: a histogram on the bits of the float32 pattern."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.curve import Curve, as_array
from espalier.kurtosis import Moments, counted_moments

_PIECE = 1 << 18  # entries worked on at a time: few enough for the cache, enough to hide the cost of a call
_ONES = torch.ones(_PIECE, dtype=torch.int64)
_FLOAT64_SLACK = 2.0**-24  # rounding to float32 moves a float64 by at most this, relative
_LARGEST = float(np.finfo(np.float32).max)


class Histogram:
    """Count and energy of the entries per bin of the leading bits of the float32 pattern, sign included.

    A bin holds the entries of one sign whose magnitudes share the exponent and the first `bits` bits of the
    mantissa: logarithmic bins of relative width 2**-bits that no outlier can spoil. Every dtype falls on the
    same grid, so histograms of tensors, shards and hosts add up, in any order. With 7 bits every bfloat16
    number has a bin of its own, with 10 every float16 number too: for these all answers are exact. Float64
    entries are binned by their float32 rounding; their energy stays float64.

    Args:
        bits: leading bits of the mantissa, 0 to 10. The bins take 2**(13 + bits) bytes.

    Attributes:
        count: int64, positive entries in the first row and negative ones in the second, by magnitude.
        energy: float64, sums of squares, likewise.
        zeros: entries that are exactly zero.
    """

    def __init__(self, bits: int = 7) -> None:
        self.bits = bits
        size = 1 << (8 + bits)
        self.count: NDArray[np.int64] = np.zeros((2, size), dtype=np.int64)
        self.energy: NDArray[np.float64] = np.zeros((2, size))
        self.zeros = 0
        self._slack = 0.0
        self._largest = 0.0
        self._index = np.empty(_PIECE, dtype=np.int64)
        self._square = np.empty(_PIECE)

    @property
    def entries(self) -> int:
        """Entries added so far."""
        return int(self.count.sum())

    @property
    def largest(self) -> float:
        """Upper bound on the magnitudes added so far; 0.0 for none."""
        bins = np.flatnonzero(self.count[:, : 255 << self.bits].any(axis=0))
        return float(self._edges(bins[-1:], self.bits)[1].max(initial=0.0))

    @property
    def nonfinite(self) -> int:
        """NaN and infinite entries added so far."""
        return int(self.count[:, 255 << self.bits :].sum())

    def add(self, chunk: Tensor) -> None:
        """Add the entries of a real floating tensor, of any shape."""
        if chunk.dtype in (torch.float16, torch.bfloat16):
            self._add_16(chunk.detach().reshape(-1).cpu().contiguous())
            return
        array = as_array(chunk)
        if array.dtype == np.float64:
            self._slack = _FLOAT64_SLACK
            finite = array[np.isfinite(array)]
            self._largest = max(self._largest, float(np.max(np.abs(finite), initial=0.0)))
        before = int(self.count[:, 0].sum())
        for start in range(0, array.size, _PIECE):
            self._add_piece(array[start : start + _PIECE])
        if array.dtype == np.float64 or self.energy[:, 0].any():  # not all in the first bin are zero
            self.zeros += array.size - int(np.count_nonzero(array))
        else:
            self.zeros += int(self.count[:, 0].sum()) - before

    def _add_piece(self, piece: NDArray[np.floating]) -> None:
        index, square = self._index[: piece.size], self._square[: piece.size]
        index[:] = self._bins(piece)
        square[:] = piece
        with np.errstate(over="ignore"):  # such entries are refused by their size
            np.multiply(square, square, out=square)
        _scatter(self.count, index, _ONES)
        _scatter(self.energy, index, torch.from_numpy(square))

    def _bins(self, piece: NDArray[np.floating]) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Signed bin of each entry; beyond the float32 range the last finite bin."""
        if piece.dtype == np.float64:
            clipped = np.clip(piece, -_LARGEST, _LARGEST)
            piece = np.where(np.isfinite(piece), clipped, np.nan).astype(np.float32)
        pattern = np.ascontiguousarray(piece, dtype="<f4")
        if self.bits == 7:  # the upper half of each pattern: a strided view, no shift
            return pattern.view("<u2")[1::2]
        return pattern.view("<u4") >> np.uint32(23 - self.bits)

    def _add_16(self, flat: Tensor) -> None:
        """Count the 2**16 patterns of a 16-bit format; the energies follow from the counts."""
        patterns = flat.view(torch.int16).numpy().view(np.uint16)
        count = np.zeros(1 << 16, dtype=np.int64)
        for start in range(0, patterns.size, _PIECE):
            piece = patterns[start : start + _PIECE]
            index = self._index[: piece.size]
            index[:] = piece
            _scatter(count, index, _ONES)
        met = np.flatnonzero(count)
        value = torch.from_numpy(met.astype(np.uint16).view(np.int16)).view(flat.dtype).float().numpy()
        bins = self._bins(value).astype(np.intp)
        np.add.at(self.count.reshape(-1), bins, count[met])
        np.add.at(self.energy.reshape(-1), bins, count[met] * np.square(value, dtype=np.float64))
        self.zeros += int(count[met[value == 0]].sum())

    def clear(self) -> None:
        """Forget everything added, to use the same memory again."""
        self.count[:] = 0
        self.energy[:] = 0.0
        self.zeros = 0
        self._slack = self._largest = 0.0

    def merge(self, other: "Histogram") -> None:
        """Add the entries of another histogram; the coarser grid of the two is kept."""
        if other.bits < self.bits:
            self._coarsen(other.bits)
        self.count += _folded(other.count, other.bits - self.bits)
        self.energy += _folded(other.energy, other.bits - self.bits)
        self.zeros += other.zeros
        self._slack = max(self._slack, other._slack)
        self._largest = max(self._largest, other._largest)

    def _coarsen(self, bits: int) -> None:
        self.count = _folded(self.count, self.bits - bits)
        self.energy = _folded(self.energy, self.bits - bits)
        self.bits = bits

    def moments(self) -> Moments:
        r"""Central sums with every entry moved to the root mean square of its bin; all entries finite.

        The second moment about zero is exact. In a bin of mean magnitude \(\mu\) and relative variance
        \(q = v/\mu^2\) the mean square is \(r^2 = \mu^2 (1 + q)\), so that to first order in q

        \[ r = \mu (1 + q/2), \qquad \frac{r^3}{E|w|^3} = 1 - \frac{3q}{2}, \qquad
            \frac{r^4}{E w^4} = \frac{(1 + q)^2}{1 + 6q} = 1 - 4q \]

        (symmetric bins). A bin of relative width \(\varepsilon \le 2^{-\mathrm{bits}}\) has
        \(q \le \varepsilon^2/4\), and \(\varepsilon^2/12\) where it is evenly filled. Of numbers with mean
        zero the kurtosis is therefore low by at most \(\varepsilon^2 = 6.1 \times 10^{-5}\) of itself with 7
        bits, and by \(\varepsilon^2/3 \le 2.0 \times 10^{-5}\) for a smooth density; the sum of magnitudes is
        high by at most \(\varepsilon^2/8 = 7.6 \times 10^{-6}\). Of numbers with mean M and variance s² these
        errors grow to about \((1 + M^2/s^2)\) times that, and a set that falls into one bin is taken to be
        constant. Exact, up to rounding, where every bin holds one number only (16-bit and quantized values).
        """
        row, column = np.nonzero(self.count)
        count = self.count[row, column]
        value = np.sqrt(self.energy[row, column] / count)
        return counted_moments(np.where(row == 0, value, -value), count, self.zeros)

    def curve(self, bits: int | None = None) -> Curve:
        r"""Curve with one node per nonempty bin, and a bound on what it misses in between.

        Let a bin hold m entries of total energy E, all with \(l \le |w| \le h\), below an energy B of larger
        entries. Keeping j of them adds between \(j E/m\) (they are the largest of the bin) and
        \(\min(j h^2, E - (m-j) l^2)\). The two ends of the minimum meet at
        \(j^* = (E - m l^2)/(h^2 - l^2)\), where the cosine can exceed the linear one most: by
        \(\sqrt{(B + j^* h^2)/T} - \sqrt{(B + j^* E/m)/T}\). `Curve.error` is the largest of these.

        Args:
            bits: bits of the grid of the curve, at most those of the histogram (the default); fewer join
                neighboring bins and loosen the bound.

        Returns:
            The curve; `error` 0.0 when every bin holds one magnitude only (16-bit and quantized values).
            Within a bin the energy per entry falls linearly, as far as the edges allow, which is what a
            smooth density does: between the two ends above, and without optima that snap to nodes.
        """
        bits = self.bits if bits is None else min(bits, self.bits)
        count = _folded(self.count.sum(axis=0, keepdims=True), self.bits - bits)[0]
        energy = _folded(self.energy.sum(axis=0, keepdims=True), self.bits - bits)[0]
        bins = np.flatnonzero(count)[::-1]
        low, high = self._edges(bins, bits)
        count, energy = count[bins], energy[bins]
        kept = np.concatenate([[0], np.cumsum(count)])
        below = np.concatenate([[0.0], np.cumsum(energy)])
        error = _largest_gap(count, energy, below, low, high)
        threshold = np.concatenate([[np.inf], _pattern_value(bins, 23 - bits)]).astype(np.float32)
        return Curve(int(kept[-1]), kept, below, threshold, error, bends(kept, below, low, high))

    def _edges(self, bins: NDArray[np.intp], bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest magnitude a bin can hold, as float64."""
        low = _pattern_value(bins, 23 - bits)
        high = _pattern_value(bins + 1, 23 - bits, less=1)
        if bins.size:
            high[0] = max(high[0], self._largest)
        return low * (1 - self._slack), high * (1 + self._slack) + (2.0**-149 if self._slack else 0.0)


def _scatter(bins: NDArray[Any], index: NDArray[np.int64], values: Tensor) -> None:
    """Add values to their bins in place; unlike `np.bincount` no allocation, and other threads may run."""
    torch.from_numpy(bins).view(-1).scatter_add_(0, torch.from_numpy(index), values[: index.size])


def _folded(rows: NDArray[Any], bits: int) -> NDArray[Any]:
    """Rows of bins on a grid with so many bits fewer."""
    folded: NDArray[Any] = rows.reshape(len(rows), -1, 1 << bits).sum(axis=2)
    return folded


def _pattern_value(bins: NDArray[np.intp], shift: int, less: int = 0) -> NDArray[np.float64]:
    """Magnitude whose float32 pattern is `(bin << shift) - less`; at most the largest finite one."""
    pattern = np.minimum((bins.astype(np.int64) << shift) - less, 0x7F7FFFFF)
    magnitude: NDArray[np.float64] = pattern.astype(np.uint32).view(np.float32).astype(np.float64)
    return magnitude


def grid_edge(magnitude: float, bits: int) -> float:
    """Lower edge of the bin that holds a magnitude, on the grid of `bits`."""
    pattern = np.asarray([magnitude], dtype=np.float32).view(np.uint32)
    return float((pattern >> np.uint32(23 - bits) << np.uint32(23 - bits)).view(np.float32)[0])


def bends(
    kept: NDArray[np.int64], energy: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`Curve.bend` for segments of magnitudes in [low, high]: energy per entry stays in their squares."""
    mean = np.diff(energy) / np.maximum(np.diff(kept), 1)
    return np.concatenate([[0.0], np.maximum(np.minimum(high**2 - mean, mean - low**2), 0.0)])


def _largest_gap(
    count: NDArray[np.int64],
    energy: NDArray[np.float64],
    below: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> float:
    """Largest cosine error within a bin; see `Histogram.curve`."""
    total = below[-1]
    spread = high**2 - low**2
    excess = energy - count * low**2
    # A bin whose energy is m l^2 up to rounding holds nothing but l.
    open_ = (excess > 1e-12 * energy) & (spread > 0)
    if not total > 0 or not open_.any():
        return 0.0
    count, energy, base, excess = count[open_], energy[open_], below[:-1][open_], excess[open_]
    j = np.minimum(excess / spread[open_], count)
    upper = np.sqrt((base + j * high[open_] ** 2) / total)
    return float(np.max(upper - np.sqrt((base + j * energy / count) / total), initial=0.0))
