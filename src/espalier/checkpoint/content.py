"""Masks and tables among the tensors of a file, recognized by their first entries."""

import math
import re

import torch
from torch import Tensor

from espalier.checkpoint._base import AbstractCheckpoint, TensorInfo
from espalier.checkpoint.reparametrized import Norms, plain_name
from espalier.checkpoint.roles import CONSTANTS, MASKS, TABLES

SAMPLE = 1 << 16
"""Entries that are looked at, the first of a tensor."""

_ROWS = 32
_FEWEST_ROWS = 8
_FEWEST_ENTRIES = 64
_MASKED = -100.0
_MASK_NAME = re.compile(r"(^|_)masks?$|^(causal|attn|attention)_mask|^tri[lu]$", re.IGNORECASE)


def constants(checkpoint: AbstractCheckpoint) -> dict[str, str]:
    """Masks and tables among what is taken for weights, with the reason.

    Looks at the first `SAMPLE` entries of tensors with two or more dimensions whose last name component has no
    "weight" in it, or whose dimension 1 is 1. A live module knows its buffers: nothing is looked at there.
    """
    if not checkpoint.guessed:
        return {}
    found = {}
    for name, info in checkpoint.infos.items():
        if _is_suspicious(name, info):
            sample = next(iter(checkpoint.chunks(name, SAMPLE)), torch.empty(0))
            if why := content(name, info.shape, sample):
                found[name] = why
    return found


def content(name: str, shape: tuple[int, ...], sample: Tensor) -> str:
    """What a tensor is by its first entries; "" for a weight."""
    if sample.numel() < _FEWEST_ENTRIES or sample.is_meta:
        return ""
    values = sample.unique()  # type: ignore[no-untyped-call]
    if len(values) <= 2 and _is_mask(name, values):
        return MASKS
    if not sample.isfinite().all():
        return ""
    tables = _tables(shape, sample.double())
    if any(_is_constant(table) for table in tables):
        return CONSTANTS
    return TABLES if any(_is_trigonometric(table) for table in tables) else ""


def _is_suspicious(name: str, info: TensorInfo) -> bool:
    if not info.floating or info.kind != "weight" or len(info.shape) < 2:
        return False
    last = plain_name(name, Norms()).rpartition(".")[2]
    return "weight" not in last or (len(info.shape) >= 3 and info.shape[1] == 1)


def _is_mask(name: str, values: Tensor) -> bool:
    """True for ones and zeros, for 0 and a large negative number, and for two values under the name of a mask."""
    low, high = float(values[0]), float(values[-1])
    if _MASK_NAME.search(name.rpartition(".")[2]):
        return True
    return (low, high) == (0.0, 1.0) or (high == 0.0 and low <= _MASKED)


def _tables(shape: tuple[int, ...], sample: Tensor) -> list[Tensor]:
    """The sample as rows and columns: of the last two dimensions larger than 1, and of the first against the rest."""
    sizes = [size for size in shape if size != 1]
    if len(sizes) < 2:
        return []
    tables = []
    for rows, columns in {(sizes[-2], sizes[-1]), (sizes[0], math.prod(sizes[1:]))}:
        count = min(rows, len(sample) // columns)
        if count >= 2:
            tables.append(sample[: count * columns].view(count, columns))
    return tables


def _is_constant(table: Tensor) -> bool:
    """True if each row has one value, or all rows are the same, at sixty-four entries or more."""
    if table.numel() < _FEWEST_ENTRIES or not table.any():
        return False
    return bool((table == table[:, :1]).all() or (table == table[:1]).all())


def _is_trigonometric(table: Tensor) -> bool:
    """True if nearly every column is a sine over the rows: x[k+1] + x[k-1] = 2 cos(angle) x[k].

    Half of the columns at least must not be zero, and some must oscillate: straight lines fit as well.
    """
    x = table[:_ROWS]
    if len(x) < _FEWEST_ROWS:
        return False
    x = x[:, x.square().sum(0) > 0]
    if 2 * x.shape[1] < table.shape[1]:
        return False
    middle, sides = x[1:-1], x[2:] + x[:-2]
    energy = middle.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    twice_cosine = ((middle * sides).sum(0) / energy).clamp(-2, 2)
    residual = (sides - twice_cosine * middle).square().sum(0) / energy
    fits = residual < 1e-3
    oscillates = fits & (twice_cosine < 1.99)
    return float(fits.double().mean()) > 0.95 and bool(oscillates.sum() >= max(1, x.shape[1] // 16))
