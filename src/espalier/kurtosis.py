"""Pearson kurtosis (Gaussian = 3, biased) from central moments that merge, in float64."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.curve import Floats

_PIECE = 1 << 15  # entries worked on at a time: the float64 copy stays in the cache


@dataclass(frozen=True)
class Moments:
    """Central sums of a set of numbers.

    Args:
        entries: how many numbers.
        mean: their mean; 0.0 for none.
        m2: sum of squared deviations from the mean.
        m3: sum of cubed deviations.
        m4: sum of fourth powers of deviations.
        absolute: sum of absolute values.
        zeros: how many are exactly zero.
    """

    entries: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    absolute: float = 0.0
    zeros: int = 0

    @property
    def kurtosis(self) -> float | None:
        """Fourth central moment over squared variance; None where undefined: empty, one entry, constant."""
        # A subnormal variance squares to zero: as good as constant.
        return self.entries * self.m4 / self.m2**2 if self.m2**2 > 0 else None

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union; Chan, Golub and LeVeque 1979, fourth order by Pébay 2008."""
        if not self.entries or not other.entries:
            return self if self.entries else other
        a, b = self.entries, other.entries
        n = a + b
        d = other.mean - self.mean
        m3 = self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2)
        m3 += 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = self.m4 + other.m4 + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        m4 += (
            6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2 + 4 * d * (a * other.m3 - b * self.m3) / n
        )
        return Moments(
            entries=n,
            mean=self.mean + d * b / n,
            m2=self.m2 + other.m2 + d * d * (a * b / n),
            m3=m3,
            m4=m4,
            absolute=self.absolute + other.absolute,
            zeros=self.zeros + other.zeros,
        )


def moments(values: Floats) -> Moments:
    """Moments of a flat array of finite numbers, in pieces that are merged.

    Each piece is shifted by its first entry before its mean is taken, so a constant array has `m2` exactly 0.
    """
    result = Moments()
    work = np.empty((2, min(values.size, _PIECE)))
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        result = result.merge(_piece(piece, *work[:, : piece.size]))
    return result


def _piece(values: Floats, deviation: NDArray[np.float64], square: NDArray[np.float64]) -> Moments:
    """Moments of one piece; the last two arguments are its working memory."""
    shift = float(values[0])
    deviation[:] = values
    absolute = float(np.abs(deviation, out=square).sum())
    deviation -= shift
    offset = float(deviation.sum()) / values.size
    deviation -= offset
    np.multiply(deviation, deviation, out=square)
    # einsum rather than dot: a BLAS starts threads of its own for these, which then wait for each other.
    return Moments(
        entries=values.size,
        mean=shift + offset,
        m2=float(square.sum()),
        m3=float(np.einsum("i,i->", square, deviation)),
        m4=float(np.einsum("i,i->", square, square)),
        absolute=absolute,
        zeros=values.size - int(np.count_nonzero(values)),
    )


def counted_moments(values: NDArray[np.float64], counts: NDArray[np.int64], zeros: int) -> Moments:
    """Moments of finite numbers, each met as often as its count says; `zeros` of all are exactly zero."""
    n = int(counts.sum())
    if not n:
        return Moments()
    shift = float(values[0])
    offset = float(((values - shift) * counts).sum()) / n
    deviation = values - shift - offset
    square = deviation * deviation
    return Moments(
        entries=n,
        mean=shift + offset,
        m2=float((square * counts).sum()),
        m3=float((square * deviation * counts).sum()),
        m4=float((square * square * counts).sum()),
        absolute=float((np.abs(values) * counts).sum()),
        zeros=zeros,
    )


def merged(parts: Iterable[Moments]) -> Moments:
    """Moments of the union of all parts, in the order given."""
    result = Moments()
    for part in parts:
        result = result.merge(part)
    return result


def kurtosis_of_kurtoses(kurtoses: Sequence[float | None]) -> float | None:
    """Kurtosis of the per-tensor kurtoses, those that are defined.

    The paper's warning sign for layers whose distributions differ in shape. It sees shapes only: scaling a
    whole layer by 1e-6 leaves it unchanged, and it is bounded by the number of tensors (`bound`), so nets
    of different depth do not compare.

    Returns:
        The kurtosis; None when fewer than two tensors have one, or all have the same.
    """
    return moments(np.asarray([k for k in kurtoses if k is not None], dtype=np.float64)).kurtosis


def bound(count: int) -> float | None:
    """Largest kurtosis that `count` numbers can have, count - 2 + 1/(count - 1); None below two."""
    return count - 2 + 1 / (count - 1) if count >= 2 else None
