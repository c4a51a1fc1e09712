"""The exact k-th largest of many tensors, without joining or sorting them.

The bits of a float, read as a sign and a magnitude, are an integer in the same order. Its digits, 16 bits
at a time, are counted over all tensors; the digit in which the k-th largest lies is then known, and the
next count looks only at entries with that beginning (radix select). Memory is one chunk and one histogram,
plus a bounded number of candidates: once few enough entries share the beginning they are collected and the
last passes are saved. Concatenating the scores, which is what others do, needs two copies of the network,
and a sort several times that.

The order of entries is total: by score, highest first; among equal scores the one whose (parameter name,
flat index) is smaller comes first and is kept first. Names compare as Python strings. Nothing depends on
the order of the mapping or on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import Counts, Tensors

_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_DIGIT = 16
_CHUNK = 1 << 18  # entries looked at together; a few of these fit in the cache of one core
_COLLECT = 1 << 22  # candidates that may be held at once


@dataclass(frozen=True)
class Cut:
    """Where the ranking of all entries is cut after the k-th.

    Args:
        value: the k-th largest score.
        above: per tensor, how many entries score more.
        ties: per tensor, how many entries score exactly `value`.
    """

    value: float
    above: Counts
    ties: Counts


def kth_largest(scores: Tensors, k: int) -> Cut:
    """The k-th largest entry over all tensors, exactly.

    Tensors of different dtypes are compared in the smallest dtype that holds all of them. Both zeros are
    equal; infinities are numbers like others. Each pass reads every tensor of the mapping once: two passes
    as a rule, at most one more than the dtype has 16-bit digits.

    Args:
        scores: floating tensors of any shape, strides and device; may read its tensors on access.
        k: rank of the entry, 1 for the largest.

    Raises:
        EspalierError: if a score is NaN or not floating, or there are fewer than `k` entries.
    """
    dtype, histogram = _first_digit(scores)
    entries = int(histogram.sum())
    if not 1 <= k <= entries:
        raise EspalierError(
            f"asked for the entry of rank {k} among {entries}; ranks run from 1 to {entries}."
        )
    shift = torch.iinfo(_INTEGERS[dtype]).bits - _DIGIT
    digit, rank = _digit_of_rank(histogram, k)
    prefix = digit - (1 << (_DIGIT - 1))  # the first digit carries the sign
    while shift > 0 and histogram[digit] > _COLLECT:
        histogram = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for name in scores:
            for keys in _keys(scores[name], dtype):
                inside = keys[keys >> shift == prefix]
                histogram += _count((inside >> (shift - _DIGIT)) & ((1 << _DIGIT) - 1))
        digit, rank = _digit_of_rank(histogram, rank)
        prefix, shift = (prefix << _DIGIT) + digit, shift - _DIGIT
    return _finish(scores, dtype, prefix, shift, rank)


def top_counts(scores: Tensors, kept: int) -> Counts:
    """How many entries of each tensor are among the `kept` first of all entries.

    A score of -inf means "never kept" (see `espalier.scores.ranked`): where fewer than `kept` entries score
    more, the counts sum to that smaller number.

    Args:
        scores: floating tensors by name.
        kept: entries to keep in all, 0 to the number of entries.

    Returns:
        A count for each name, in the order of `scores`.
    """
    if kept == 0:
        return dict.fromkeys(scores, 0)
    cut = kth_largest(scores, kept)
    counts = dict(cut.above)
    if cut.value == -torch.inf:
        return counts
    left = kept - sum(counts.values())
    for name in sorted(counts):
        taken = min(left, cut.ties[name])
        counts[name] += taken
        left -= taken
    return counts


def top_mask(scores: Tensor, kept: int, name: str = "") -> Tensor:
    """True at the `kept` highest entries of one tensor; among equal ones, at those of smaller flat index.

    Args:
        scores: floating, any shape and strides.
        kept: entries to keep, 0 to the number of entries.
        name: for messages.

    Returns:
        A bool tensor of the same shape and device, contiguous, with exactly `kept` true entries.
    """
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if kept == 0:
        return mask
    cut = kth_largest({name: scores}, kept)
    value = torch.tensor(cut.value, dtype=scores.dtype, device=scores.device)
    ties = kept - cut.above[name]
    flat, out = scores.detach().reshape(-1), mask.view(-1)
    torch.gt(flat, value, out=out)
    if ties == cut.ties[name]:
        return out.logical_or_(flat == value).view(scores.shape)
    for start in range(0, flat.numel(), _CHUNK):
        piece = flat[start : start + _CHUNK] == value
        taken = piece.logical_and_(piece.cumsum(0) <= ties)
        out[start : start + _CHUNK] |= taken
        ties -= int(taken.sum())
        if ties == 0:
            break
    return mask


def ordered(values: Tensor) -> Tensor:
    """Integers in the order of the floats, with -0.0 and +0.0 the same; NaN has no place in it."""
    kind = _INTEGERS[values.dtype]
    bits = values.view(kind)
    # Sign and magnitude to two's complement: a negative float is minus its magnitude.
    return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)


def _keys(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The ordered integers of a tensor, chunk by chunk."""
    for piece in tensor.detach().reshape(-1).split(_CHUNK):  # type: ignore[no-untyped-call]
        yield ordered(piece.to(dtype))


def _count(digits: Tensor) -> Tensor:
    return torch.bincount(digits.to(torch.int32), minlength=1 << _DIGIT).cpu()


def _first_digit(scores: Tensors, dtype: torch.dtype | None = None) -> tuple[torch.dtype, Tensor]:
    """The common dtype and how often each first digit occurs; refuses what cannot be ranked."""
    histogram = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for name in scores:
        tensor = scores[name].detach()
        if tensor.dtype not in _INTEGERS:
            raise EspalierError(
                f"scores of {name!r} are {tensor.dtype}; they must be float16, bfloat16, 32 or 64."
            )
        common = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
        if dtype is not None and common != dtype:
            return _first_digit(scores, common)
        dtype = common
        shift = torch.iinfo(_INTEGERS[dtype]).bits - _DIGIT
        for piece in tensor.reshape(-1).split(_CHUNK):  # type: ignore[no-untyped-call]
            if piece.isnan().any():
                raise EspalierError(
                    f"{name!r} has scores that are NaN, which have no rank; look for NaN upstream."
                )
            keys = ordered(piece.to(dtype)) >> shift
            histogram += _count(keys.to(torch.int32) + (1 << (_DIGIT - 1)))
    return dtype or torch.float32, histogram


def _digit_of_rank(histogram: Tensor, rank: int) -> tuple[int, int]:
    """The digit that holds the entry of this rank (1 = largest), and its rank within that digit."""
    at_least = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(at_least, rank))
    digit = len(histogram) - 1 - place
    return digit, rank - int(at_least[place] - histogram[digit])


def _finish(scores: Tensors, dtype: torch.dtype, prefix: int, shift: int, rank: int) -> Cut:
    """Counts each tensor above the beginning found, and settles the rest among those that share it."""
    above: Counts = {}
    ties: Counts = {}
    candidates: dict[str, Tensor] = {}
    for name in scores:
        above[name] = ties[name] = 0
        found = []
        for keys in _keys(scores[name], dtype):
            beginning = keys >> shift
            above[name] += int((beginning > prefix).sum())
            inside = beginning == prefix
            if shift:
                found.append(keys[inside].cpu())
            else:
                ties[name] += int(inside.sum())
        if shift:
            candidates[name] = torch.cat(found)
    key = prefix
    if shift:
        key = int(torch.cat(list(candidates.values())).sort(descending=True).values[rank - 1])
        for name, keys in candidates.items():
            above[name] += int((keys > key).sum())
            ties[name] = int((keys == key).sum())
    return Cut(_value(key, dtype), above, ties)


def _value(key: int, dtype: torch.dtype) -> float:
    """The float whose ordered integer is `key`."""
    kind = _INTEGERS[dtype]
    bits = torch.iinfo(kind).min - key if key < 0 else key
    return float(torch.tensor(bits, dtype=kind).view(dtype))
