"""How concentrated the weights are, along a series of checkpoints (Figure 2 of the directional-pruning paper)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from espalier._errors import EspalierError, listing
from espalier.checkpoint import AbstractCheckpoint
from espalier.curve import as_array
from espalier.kurtosis import merged, moments
from espalier.selection import Scope, select


@dataclass(frozen=True)
class Norms:
    r"""The selected weights of one checkpoint, taken as one vector w of d entries; sums in float64.

    Args:
        name: what the checkpoint is called.
        entries: d.
        zeros: entries that are exactly zero.
        l1: :math:`\|w\|_1`.
        l2: :math:`\|w\|_2`.
        kurtosis: Pearson kurtosis of the entries (Gaussian: 3); None where they are all equal.
    """

    name: str
    entries: int
    zeros: int
    l1: float
    l2: float
    kurtosis: float | None

    @property
    def sparsity(self) -> float:
        """Zeros over entries, in [0, 1]."""
        return self.zeros / self.entries

    @property
    def ratio(self) -> float:
        r"""Concentration :math:`\|w\|_2 / \|w\|_1`, from :math:`d^{-1/2}` (all of one size) to 1; nan for w = 0."""
        return self.l2 / self.l1 if self.l1 else math.nan

    @property
    def floor(self) -> float:
        """The smallest ratio d entries can have, :math:`d^{-1/2}`."""
        return 1 / math.sqrt(self.entries)


def norms(
    checkpoint: AbstractCheckpoint,
    name: str = "the checkpoint",
    *,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Norms:
    """Norms, kurtosis and zeros of a checkpoint, read once in pieces; memory is bounded by a piece.

    Args:
        checkpoint: weights of one moment.
        name: for tables and messages.
        scope: which tensors; the paper takes every trainable one ("all").
        include: globs on full names; only these.
        exclude: globs on full names; not these.

    Raises:
        EspalierError: nothing is selected, or a weight is not finite.
    """
    chosen = select(checkpoint, scope, include, exclude)
    parts = [moments(as_array(piece)) for tensor in chosen.names for piece in checkpoint.chunks(tensor)]
    total = merged(parts)
    # Sum of squares from the central one: both are sums of nonnegative numbers, so nothing cancels.
    squares = math.fsum(part.m2 + part.entries * part.mean * part.mean for part in parts)
    if not math.isfinite(squares):
        raise EspalierError(f"{name} holds weights that are not finite; take an earlier checkpoint")
    absolute = math.fsum(part.absolute for part in parts)
    return Norms(name, total.entries, total.zeros, absolute, math.sqrt(squares), total.kurtosis)


def series(
    checkpoints: Mapping[str, AbstractCheckpoint],
    *,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Norms, ...]:
    """`norms` along checkpoints of one network, in the order given.

    Args:
        checkpoints: name -> checkpoint.
        scope: which tensors.
        include: globs on full names.
        exclude: globs on full names.
        progress: called after each checkpoint with how many are done, and of how many.

    Raises:
        EspalierError: as `norms`, or the checkpoints hold different selected tensors.
    """
    found: list[Norms] = []
    first: tuple[str, dict[str, tuple[int, ...]]] | None = None
    for name, checkpoint in checkpoints.items():
        shapes = select(checkpoint, scope, include, exclude).shapes
        first = first or (name, shapes)
        different = sorted(n for n in {*shapes, *first[1]} if shapes.get(n) != first[1].get(n))
        if different:
            raise EspalierError(
                f"{name} and {first[0]} are not checkpoints of one network: {listing(different)} "
                f"{'differs' if len(different) == 1 else 'differ'} in presence or shape; norms of different "
                "networks do not compare"
            )
        found.append(norms(checkpoint, name, scope=scope, include=include, exclude=exclude))
        if progress is not None:
            progress(len(found), len(checkpoints))
    return tuple(found)
