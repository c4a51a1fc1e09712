"""Order statistics of magnitudes, approximate and exact, without leaving the device.

The bits of a non-negative float, read as an integer, are ordered like the float. Histograms of those bits
give quantiles without a sort, add up over processes, and are integers, so every replica gets the same answer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from espalier.optim._sharding import sum_before, sum_rows

_COARSE = 18  # float32 bits dropped by the coarse histogram: 8 of exponent and 5 of mantissa are left
_BINS = 1 << (31 - _COARSE)
_DIGIT = 11  # bits resolved by one pass of the exact search


def coarse_counts(values: Sequence[Tensor], strides: Sequence[int], owners: Sequence[Tensor]) -> Tensor:
    """Histograms of the magnitudes' leading bits, from every stride-th entry.

    Args:
        values: T local tensors.
        strides: T sampling strides.
        owners: T parameters, which say over which processes counts are added.

    Returns:
        int64, shape (T, bins); counts are multiplied by the stride, so a row sums to about the tensor's
        entries.
    """
    rows = []
    for value, stride in zip(values, strides, strict=True):
        sample = value.reshape(-1)[::stride].float().abs()
        rows.append(_count((sample.view(torch.int32) >> _COARSE).long(), _BINS) * stride)
    return sum_rows(torch.stack(rows), owners)


def quantile(cumulative: Tensor, ranks: Tensor) -> Tensor:
    """The magnitude at a rank, from cumulative coarse counts, linear within a bin.

    Args:
        cumulative: shape (T, bins), nondecreasing along a row.
        ranks: float64, shape (T,); 0 gives 0.

    Returns:
        float32, shape (T,), finite.
    """
    last = cumulative.shape[-1] - 1
    bins = torch.searchsorted(cumulative.double(), ranks[:, None]).clamp_(max=last)
    below = torch.where(bins > 0, cumulative.gather(1, (bins - 1).clamp_(min=0)), 0)
    inside = (cumulative.gather(1, bins) - below).clamp_(min=1)
    edges = (
        torch.arange(_BINS + 1, device=cumulative.device, dtype=torch.int32).clamp_(max=_BINS - 1) << _COARSE
    )
    edges = edges.view(torch.float32).nan_to_num_(nan=torch.finfo(torch.float32).max)
    low, high = edges[bins].double(), edges[bins + 1].double()
    return (low + (high - low) * ((ranks[:, None] - below) / inside).clamp_(0, 1)).float().squeeze(1)


def exact_counts(values: Sequence[Tensor], zeros: int, caps: Tensor, owners: Sequence[Tensor]) -> Tensor:
    """Entries of each tensor among the `zeros` smallest of all, none above its cap; ties by tensor order.

    Args:
        values: T local tensors.
        zeros: how many are selected in total; at most the caps' sum.
        caps: int64, shape (T,): most that may be selected of each tensor.
        owners: T parameters.

    Returns:
        int64, shape (T,); sums to `zeros`.
    """
    ranks = torch.full_like(caps, zeros)
    _, below, equal = _radix(values, ranks, owners, caps)
    certain = torch.minimum(below, caps)
    room = torch.minimum(below + equal, caps) - certain
    missing = zeros - certain.sum()
    earlier = room.cumsum(0) - room
    return certain + torch.minimum((missing - earlier).clamp_(min=0), room)


def exact_selection(
    values: Sequence[Tensor], counts: Tensor, owners: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The `counts[i]` smallest magnitudes of each tensor, ties by index.

    Args:
        values: T local tensors.
        counts: int64, shape (T,).
        owners: T parameters.

    Returns:
        Per tensor a bool tensor of its shape (True = selected), and the largest float below the largest magnitude
        selected (0-dim, the tensor's dtype): soft thresholding with it leaves a tie that was not selected
        nonzero.
    """
    keys, below, _ = _radix(values, counts, owners, None)
    bits = [_bits(value, _width(values)) for value in values]
    ties = [b == key for b, key in zip(bits, keys.unbind(), strict=True)]
    before = sum_before(torch.stack([tie.sum() for tie in ties]), owners)
    wanted = counts - below - before  # of the ties on this process
    floats = (keys - 1).clamp_(min=0)
    selected = []
    for i, (value, bit, tie) in enumerate(zip(values, bits, ties, strict=True)):
        order = tie.reshape(-1).cumsum(0).view_as(tie)
        chosen = (bit < keys[i]) | (tie & (order <= wanted[i]))
        selected.append((chosen, _floats(floats[i], _width(values)).to(value.dtype)))
    return selected


def _radix(
    values: Sequence[Tensor], ranks: Tensor, owners: Sequence[Tensor], caps: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of the rank-th smallest magnitude, digit by digit: of each tensor, or with `caps` of all together.

    Returns (bits, entries strictly below, entries equal), each int64 of shape (T,).
    """
    width = _width(values)
    prefix, below = torch.zeros_like(ranks), torch.zeros_like(ranks)
    equal = torch.zeros_like(ranks)
    shifts = range((width - 1) // _DIGIT * _DIGIT, -1, -_DIGIT)
    for shift in shifts:
        rows = []
        for value, done in zip(values, prefix.unbind(), strict=True):
            bits = _bits(value, width).reshape(-1)
            here = (
                (bits >> (shift + _DIGIT)) == done
                if shift + _DIGIT < 63
                else torch.ones_like(bits, dtype=torch.bool)
            )
            rows.append(_count((bits >> shift) & ((1 << _DIGIT) - 1), 1 << _DIGIT, here))
        counts = sum_rows(torch.stack(rows), owners)
        cumulative = counts.cumsum(1) + below[:, None]
        reached = cumulative
        if caps is not None:
            reached = torch.minimum(cumulative, caps[:, None]).sum(0, keepdim=True).expand_as(cumulative)
        digit = torch.searchsorted(reached.contiguous(), ranks[:, None]).clamp_(max=(1 << _DIGIT) - 1)
        equal = counts.gather(1, digit).squeeze(1)
        below = cumulative.gather(1, digit).squeeze(1) - equal
        prefix = (prefix << _DIGIT) | digit.squeeze(1)
    return prefix, below, equal


def _width(values: Sequence[Tensor]) -> int:
    """Bits that represent every value exactly."""
    return 64 if any(value.dtype == torch.float64 for value in values) else 32


def _bits(value: Tensor, width: int) -> Tensor:
    """Magnitudes as int64 in the same order."""
    if width == 64:
        return value.double().abs().view(torch.int64)
    return value.float().abs().view(torch.int32).long()


def _floats(bits: Tensor, width: int) -> Tensor:
    """The inverse of `_bits`."""
    return bits.view(torch.float64) if width == 64 else bits.int().view(torch.float32)


def _count(index: Tensor, bins: int, here: Tensor | None = None) -> Tensor:
    """How often each integer in [0, bins) occurs, among those `here`."""
    if index.device.type == "cpu":
        return torch.bincount(index if here is None else index[here], minlength=bins)
    # bincount reads the maximum back to the host on a GPU; integer atomics are exact in any order.
    ones = torch.ones_like(index) if here is None else here.long()
    return torch.zeros(bins, dtype=torch.int64, device=index.device).scatter_add_(0, index, ones)
