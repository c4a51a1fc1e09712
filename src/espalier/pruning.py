"""Prune a module in place, or a checkpoint file tensor by tensor: score, allocate, mask."""

from collections.abc import Sequence
from numbers import Integral, Real

from torch import nn

from espalier._errors import EspalierError
from espalier._types import LazyTensors, Tensors
from espalier.allocate import AbstractAllocation, Global
from espalier.amount import AbstractAmount
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint
from espalier.masks import Masks, unwrapped
from espalier.profiling import profile
from espalier.scores import AbstractScore, Evidence, Magnitude, ranked
from espalier.selection import Scope, Selection, select

_MAGNITUDE = Magnitude()
_GLOBAL = Global()


def prune(
    module: nn.Module,
    amount: float | AbstractAmount,
    *,
    score: AbstractScore = _MAGNITUDE,
    allocation: AbstractAllocation = _GLOBAL,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Masks:
    """Sets a fraction of a module's weights to zero, in place, and says which.

    Exactly `round(sparsity * entries)` of the selected entries are zero afterwards, existing zeros counted
    among them; more only if more were zero before (compare `Masks.sparsity` with what was asked). To train
    further, `hold` the module at the masks returned.

        >>> import torch
        >>> from espalier.pruning import prune
        >>> masks = prune(torch.nn.Linear(10, 10), 0.9)
        >>> masks.sparsity
        0.9

    Args:
        module: any module; Parameter objects, names, mode and gradients stay as they are.
        amount: sparsity in [0, 1), or a rule that chooses it from the weights.
        score: what makes an entry worth keeping.
        allocation: how the budget is spread over the tensors.
        scope: which parameters can be selected; see `espalier.selection.select`.
        include: globs on full names; only these.
        exclude: globs on full names; not these.

    Returns:
        The masks of the selected parameters.

    Raises:
        EspalierError: if the amount is not a sparsity in [0, 1), nothing can be selected, a weight is not
            finite, or the allocation cannot meet its lower bounds (a floor, or one entry in each row of a
            weight norm). The module is as before then.
    """
    checkpoint = open_checkpoint(unwrapped(module))
    selection = select(checkpoint, scope, include, exclude)
    if isinstance(amount, AbstractAmount):
        amount = amount.choose(profile(checkpoint, selection)).sparsity
    scores = selected_scores(checkpoint, selection, score)
    kept = kept_entries(selection.entries, amount)
    masks = Masks.from_scores(scores, allocation.counts(scores, kept))
    masks.apply_(module)
    return masks


def prune_checkpoint(
    checkpoint: AbstractCheckpoint,
    selection: Selection,
    sparsity: float,
    *,
    score: AbstractScore = _MAGNITUDE,
    allocation: AbstractAllocation = _GLOBAL,
) -> Masks:
    """The masks that prune a checkpoint, made anew from it at each access; writes nothing.

    Neither the scores nor the masks of all tensors are ever in memory together: `Masks.masked(name,
    tensor)` fits `espalier.checkpoint.rewrite`, which writes the pruned file tensor by tensor. The
    checkpoint must stay as it is while the masks are used; write the result elsewhere.

    Args:
        checkpoint: what to prune.
        selection: of that checkpoint.
        sparsity: zeros over selected entries, in [0, 1).
        score: what makes an entry worth keeping.
        allocation: how the budget is spread over the tensors.

    Returns:
        Masks of the selected tensors. `Masks.sparsity` is what is achieved: more than asked only where the
        checkpoint has more zeros already.

    Raises:
        EspalierError: as `prune`.
    """
    scores = selected_scores(checkpoint, selection, score)
    counts = allocation.counts(scores, kept_entries(selection.entries, sparsity))
    return Masks.from_scores(scores, counts, shapes=selection.shapes)


def kept_entries(entries: int, sparsity: object) -> int:
    """Entries that stay when `round(sparsity * entries)` are pruned.

    Raises:
        EspalierError: if the sparsity is not a fraction in [0, 1).
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise EspalierError(f"a sparsity is a fraction in [0, 1), got {sparsity!r}.")
    fraction = float(sparsity)
    if fraction == 1 and isinstance(sparsity, Integral):
        raise EspalierError(
            "a sparsity of 1 would leave nothing; it is a fraction in [0, 1), not a number of entries or "
            "percent: 0.01 prunes one percent."
        )
    if not 0 <= fraction < 1:
        hint = f"; did you mean {fraction / 100:g}?" if 1 < fraction < 100 else ""
        raise EspalierError(f"a sparsity is a fraction in [0, 1), got {sparsity!r}{hint}.")
    return entries - round(fraction * entries)


def selected_scores(checkpoint: AbstractCheckpoint, selection: Selection, score: AbstractScore) -> Tensors:
    """Scores of the selected tensors, each made when it is asked for."""
    weights = LazyTensors(selection.names, checkpoint.__getitem__)
    return ranked(score, Evidence(weights, groups=selection.groups))
