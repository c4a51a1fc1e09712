"""The curve of any number of entries in fixed memory: a histogram on the bits of the float32 pattern."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.curve import Curve, as_array

_PIECE = 1 << 18  # entries worked on at a time: index and square stay in the cache
_FLOAT64_SLACK = 2.0**-24  # rounding to float32 moves a float64 by at most this, relative
_LARGEST = float(np.finfo(np.float32).max)


class Histogram:
    """Count and energy of |w| per bin of the leading bits of the float32 pattern.

    A bin holds the magnitudes that share the exponent and the first `bits` bits of the mantissa: logarithmic
    bins of relative width 2**-bits that no outlier can spoil. Every dtype falls on the same grid, so
    histograms of tensors, shards and hosts add up, in any order. With 7 bits every bfloat16 magnitude has a
    bin of its own, with 10 every float16 magnitude too: for these the curve is exact. Float64 entries are
    binned by their float32 rounding; their energy stays float64.

    Args:
        bits: leading bits of the mantissa, 0 to 10. The bins take 2**(12 + bits) bytes.
    """

    def __init__(self, bits: int = 7) -> None:
        self.bits = bits
        size = 1 << (8 + bits)
        self.count: NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        self.energy: NDArray[np.float64] = np.zeros(size)
        self._slack = 0.0
        self._largest = 0.0
        self._index = np.empty(0, dtype=np.intp)
        self._square = np.empty(0)

    @property
    def entries(self) -> int:
        """Entries added so far."""
        return int(self.count.sum())

    @property
    def largest(self) -> float:
        """Upper bound on the magnitudes added so far; 0.0 for none."""
        bins = np.flatnonzero(self.count[: 255 << self.bits])
        return float(self._edges(bins[-1:], self.bits)[1].max(initial=0.0))

    @property
    def nonfinite(self) -> int:
        """NaN and infinite entries added so far."""
        return int(self.count[255 << self.bits :].sum())

    def add(self, chunk: Tensor) -> None:
        """Add the entries of a real floating tensor, of any shape."""
        if chunk.dtype in (torch.float16, torch.bfloat16):
            flat = chunk.detach().reshape(-1).cpu().contiguous()
            for start in range(0, flat.numel(), _PIECE):
                self._add_16(flat[start : start + _PIECE])
            return
        array = as_array(chunk)
        if array.dtype == np.float64:
            self._slack = _FLOAT64_SLACK
            finite = array[np.isfinite(array)]
            self._largest = max(self._largest, float(np.max(np.abs(finite), initial=0.0)))
        for start in range(0, array.size, _PIECE):
            self._add_piece(array[start : start + _PIECE])

    def _add_piece(self, piece: NDArray[np.floating]) -> None:
        if self._index.size < piece.size:  # kept between pieces: fresh pages cost as much as the counting
            self._index, self._square = np.empty(piece.size, dtype=np.intp), np.empty(piece.size)
        index, square = self._index[: piece.size], self._square[: piece.size]
        np.multiply(piece, piece, out=square, dtype=np.float64)
        index[:] = self._bins(piece)
        count = np.bincount(index)  # as long as the largest bin met: weights rarely exceed 1
        self.count[: count.size] += count
        self.energy[: count.size] += np.bincount(index, weights=square)

    def _bins(self, piece: NDArray[np.floating]) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Bin of each entry; beyond the float32 range the last finite bin."""
        if piece.dtype == np.float64:
            clipped = np.clip(piece, -_LARGEST, _LARGEST)
            piece = np.where(np.isfinite(piece), clipped, np.nan).astype(np.float32)
        pattern = np.ascontiguousarray(piece, dtype="<f4")
        if self.bits == 7:  # the upper half of each pattern: a strided view, no shift
            return pattern.view("<u2")[1::2] & np.uint16(0x7FFF)
        return (pattern.view("<u4") & np.uint32(0x7FFFFFFF)) >> np.uint32(23 - self.bits)

    def _add_16(self, piece: Tensor) -> None:
        """Count the 2**15 magnitudes of a 16-bit format; the energies follow from the counts."""
        patterns = piece.view(torch.int16).numpy().view(np.uint16) & np.uint16(0x7FFF)
        count = np.bincount(patterns)
        met = np.flatnonzero(count)
        magnitude = torch.from_numpy(met.astype(np.int16)).view(piece.dtype).float().numpy()
        index = self._bins(magnitude).astype(np.intp)
        np.add.at(self.count, index, count[met])
        np.add.at(self.energy, index, count[met] * np.square(magnitude, dtype=np.float64))

    def clear(self) -> None:
        """Forget everything added, to use the same memory again."""
        self.count[:] = 0
        self.energy[:] = 0.0
        self._slack = self._largest = 0.0

    def merge(self, other: "Histogram") -> None:
        """Add the entries of another histogram; the coarser grid of the two is kept."""
        if other.bits < self.bits:
            self._coarsen(other.bits)
        fold = 1 << (other.bits - self.bits)
        self.count += other.count.reshape(-1, fold).sum(axis=1)
        self.energy += other.energy.reshape(-1, fold).sum(axis=1)
        self._slack = max(self._slack, other._slack)
        self._largest = max(self._largest, other._largest)

    def _coarsen(self, bits: int) -> None:
        fold = 1 << (self.bits - bits)
        self.count = self.count.reshape(-1, fold).sum(axis=1)
        self.energy = self.energy.reshape(-1, fold).sum(axis=1)
        self.bits = bits

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
        fold = 1 << (self.bits - bits)
        count, energy = self.count.reshape(-1, fold).sum(axis=1), self.energy.reshape(-1, fold).sum(axis=1)
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
