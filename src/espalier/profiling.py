"""Everything about the weights of a checkpoint that the amount rules and the report need, in one reading."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import Counts
from espalier.checkpoint import AbstractCheckpoint
from espalier.curve import Curve, as_array, first, sorted_curve, sorted_magnitudes
from espalier.histogram import Histogram, grid_edge
from espalier.kurtosis import Moments, kurtosis_of_kurtoses, merged, moments
from espalier.selection import Selection

STREAM_ABOVE = 50_000_000
"""Selected entries above which `profile` streams unless told otherwise (exact: 24 bytes an entry)."""

LARGEST = 1e70
"""Largest magnitude accepted: the fourth powers of float64 entries beyond it overflow."""

_NODES = 3 << 22  # nodes of all per-tensor curves of a streamed checkpoint together: 350 MB
_OCTAVES = 24  # powers of two that the magnitudes of a tensor are taken to span
_PIECE = 1 << 18  # entries read at a time: counted while they are still in the cache
_SMALL = 1 << 16  # up to here the moments are exact: all vectors, whose mean may be far from zero

Progress = Callable[[str, int], None]
"""Called with the name of the tensor and the number of its entries just read."""


@dataclass(frozen=True, eq=False)
class TensorProfile:
    """One selected tensor.

    Args:
        entries: number of entries.
        zeros: entries that are exactly zero.
        rms: root of the mean square; 0.0 for an empty tensor.
        kurtosis: Pearson kurtosis; None for an empty, one-element or constant tensor.
        curve: its own cosine-sparsity curve.
    """

    entries: int
    zeros: int
    rms: float
    kurtosis: float | None
    curve: Curve


@dataclass(frozen=True, eq=False)
class Profile:
    """The selected weights of a network.

    Args:
        selection: which tensors.
        curve: cosine-sparsity curve of all selected entries together.
        tensors: name -> the tensor by itself, in the order of the selection.
        kurtosis: Pearson kurtosis of all selected entries together; None when they are all equal.
        kurtosis_of_kurtoses: kurtosis of the kurtoses of the tensors that have one; None below two.
        absolute: sum of |w| over the selected entries.
        exact: True when every number is exact (16-bit weights are, even when streamed); False when the curves
            come from a histogram, with `curve.error` bounding the cosine, and so do the kurtosis and the sum
            of |w| of tensors above 65,536 entries, good to 2e-5 (`Histogram.moments`).
        grid: bits of the histograms behind the per-tensor curves; None when these were sorted.
    """

    selection: Selection
    curve: Curve
    tensors: dict[str, TensorProfile]
    kurtosis: float | None
    kurtosis_of_kurtoses: float | None
    absolute: float
    exact: bool
    grid: int | None = None

    @property
    def entries(self) -> int:
        """Selected entries."""
        return self.curve.entries

    @property
    def zeros(self) -> int:
        """Selected entries that are zero already."""
        return sum(tensor.zeros for tensor in self.tensors.values())

    def sparsity(self, kept: int) -> float:
        """Sparsity, in [0, 1], when `kept` selected entries stay."""
        return (self.entries - kept) / self.entries

    def kept_at(self, kept: int) -> Counts:
        """Entries each tensor keeps when the `kept` largest of all stay; sums to exactly `kept`.

        Ties go to the first by (tensor name, index). Exact for an exact profile; otherwise the one bin that
        the threshold cuts is shared out in proportion to what each tensor has in it.

        Raises:
            EspalierError: `kept` is not between 0 and the number of selected entries.
        """
        if not 0 <= kept <= self.entries:
            raise EspalierError(f"kept must lie in 0 to {self.entries} entries; got {kept}")
        if kept == 0:
            return dict.fromkeys(self.tensors, 0)
        threshold = self.curve.segment(kept)
        if self.grid is not None:
            threshold = grid_edge(threshold, self.grid)
        counts = {name: tensor.curve.above(threshold) for name, tensor in self.tensors.items()}
        tied = {name: t.curve.at_least(threshold) - counts[name] for name, t in self.tensors.items()}
        left = kept - sum(counts.values())
        extra = _by_name(tied, left) if self.exact else _proportional(tied, left)
        return {name: counts[name] + extra[name] for name in counts}

    def kept_for_floor(self, floor: float) -> int:
        """Fewest entries under global magnitude with which every tensor keeps at least a share of its own.

        Args:
            floor: share in (0, 1] of the entries of each tensor, rounded up; a tensor with fewer nonzero
                entries than that has to keep those.

        Returns:
            Number kept over all tensors: the largest such global sparsity.

        Raises:
            EspalierError: `floor` is out of range.
        """
        if not 0 < floor <= 1:
            raise EspalierError(f"the floor must lie in (0, 1]; got {floor}")
        need = {n: min(math.ceil(floor * t.entries), t.entries - t.zeros) for n, t in self.tensors.items()}

        def enough(kept: int) -> bool:
            counts = self.kept_at(kept)
            return all(counts[name] >= need[name] for name in need)

        return first(enough, sum(need.values()), self.entries)


def _by_name(tied: Counts, left: int) -> Counts:
    extra = dict.fromkeys(tied, 0)
    for name in sorted(tied):
        extra[name] = min(tied[name], left)
        left -= extra[name]
    return extra


def _proportional(tied: Counts, left: int) -> Counts:
    """Largest remainders, then by name."""
    total = sum(tied.values())
    extra = {name: count * left // total for name, count in tied.items()}
    short = left - sum(extra.values())
    by_remainder = sorted(tied, key=lambda name: (-(tied[name] * left % total), name))
    for name in by_remainder[:short]:
        extra[name] += 1
    return extra


def profile(
    checkpoint: AbstractCheckpoint,
    selection: Selection,
    *,
    streaming: bool | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Read the selected tensors once and describe them.

    Exact mode sorts: about 24 bytes of memory per selected entry. Streaming mode keeps histograms: memory is
    bounded whatever the size of the checkpoint, and the bound on the cosine is in `curve.error`. Checkpoints
    whose selected tensors are all float16 or bfloat16 go through the histogram in either mode: it has a bin
    per magnitude there, so the answer is exact.

    Args:
        checkpoint: what to read.
        selection: which tensors of it.
        streaming: True or False; None streams above `STREAM_ABOVE` selected entries.
        progress: called after each piece read.

    Returns:
        The profile.

    Raises:
        EspalierError: NaN or infinite entries, or entries beyond `LARGEST` (the tensor is named); every
            selected entry is zero, or there is none.
    """
    if streaming is None:
        streaming = selection.entries > STREAM_ABOVE
    dtypes = {checkpoint.infos[name].dtype for name in selection.names}
    report = progress or (lambda name, entries: None)
    grid = None
    if streaming or dtypes <= {torch.float16, torch.bfloat16}:
        bits = 10 if torch.float16 in dtypes else 7
        grid = _grid(bits, len(selection.names))
        curve, curves, parts = _streamed(checkpoint, selection, report, bits, grid)
        exact = curve.error == 0 and grid == bits
    else:
        curve, curves, parts = _sorted(checkpoint, selection, report)
        exact = True
    if not curve.total > 0:
        state = "every selected entry is zero" if curve.entries else "the selected tensors have no entries"
        raise EspalierError(f"{state}: there is nothing to prune; was the checkpoint saved before training?")
    tensors = {name: _tensor_profile(parts[name], curves[name]) for name in selection.names}
    whole = merged(parts.values())
    return Profile(
        selection=selection,
        curve=curve,
        tensors=tensors,
        kurtosis=whole.kurtosis,
        kurtosis_of_kurtoses=kurtosis_of_kurtoses([tensor.kurtosis for tensor in tensors.values()]),
        absolute=whole.absolute,
        exact=exact,
        grid=grid,
    )


def _grid(bits: int, tensors: int) -> int:
    """Bits for the per-tensor curves: fewer when there are so many tensors that memory would grow."""
    while bits > 0 and tensors * _OCTAVES << bits > _NODES:
        bits -= 1
    return bits


def _tensor_profile(part: Moments, curve: Curve) -> TensorProfile:
    rms = math.sqrt(curve.total / curve.entries) if curve.entries else 0.0
    return TensorProfile(part.entries, part.zeros, rms, part.kurtosis, curve)


Read = tuple[Curve, dict[str, Curve], dict[str, Moments]]


def _sorted(checkpoint: AbstractCheckpoint, selection: Selection, progress: Progress) -> Read:
    """Curves with every k, from sorting."""
    curves: dict[str, Curve] = {}
    parts: dict[str, Moments] = {}
    for name in selection.names:
        array = as_array(checkpoint[name])
        try:
            magnitudes = sorted_magnitudes([array])
        except EspalierError as error:
            raise EspalierError(_unfit(name, f"{error} of {array.size}")) from None
        if array.size:
            _check_size(name, float(magnitudes[1]))
        curves[name] = sorted_curve(magnitudes)
        parts[name] = moments(array)
        progress(name, array.size)
    if len(curves) == 1:
        return next(iter(curves.values())), curves, parts
    return sorted_curve(sorted_magnitudes([curve.threshold[1:] for curve in curves.values()])), curves, parts


def _streamed(
    checkpoint: AbstractCheckpoint, selection: Selection, progress: Progress, bits: int, grid: int
) -> Read:
    """Curves from histograms, one tensor after the other; moments of large tensors from the histogram too."""
    whole, histogram, second = Histogram(bits), Histogram(bits), Histogram(bits)
    curves: dict[str, Curve] = {}
    parts: dict[str, Moments] = {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name in selection.names:
            small = None
            if checkpoint.infos[name].entries <= _SMALL:
                small = checkpoint[name]
                histogram.add(small)
                progress(name, small.numel())
            else:
                for chunk in _counted(checkpoint.chunks(name, _PIECE), (histogram, second), pool):
                    progress(name, chunk.numel())
                histogram.merge(second)
                second.clear()
            if histogram.nonfinite:
                message = f"{histogram.nonfinite} entries are NaN or infinite of {histogram.entries}"
                raise EspalierError(_unfit(name, message))
            _check_size(name, histogram.largest)
            parts[name] = histogram.moments() if small is None else moments(as_array(small))
            curves[name] = histogram.curve(grid)
            whole.merge(histogram)
            histogram.clear()
    return whole.curve(), curves, parts


def _counted(
    pieces: Iterator[Tensor], histograms: tuple[Histogram, Histogram], pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """The pieces, counted in turn into two histograms by two threads while this one reads ahead.

    Which piece goes where does not depend on who is faster, so the sums are the same in every run.
    """
    jobs: deque[tuple[Tensor, Future[None]]] = deque()
    for turn, piece in enumerate(pieces):
        if len(jobs) == 2:  # the older of the two writes to the histogram whose turn it is
            done, job = jobs.popleft()
            job.result()
            yield done
        jobs.append((piece, pool.submit(histograms[turn % 2].add, piece)))
    for done, job in jobs:
        job.result()
        yield done


def _check_size(name: str, largest: float) -> None:
    if largest > LARGEST:
        raise EspalierError(_unfit(name, f"entries reach {largest:.3g}, beyond {LARGEST:.0e}"))


def _unfit(name: str, what: str) -> str:
    return f"tensor {name!r} cannot be pruned: {what}; leave it out with exclude, or repair the checkpoint"
