"""Directional pruning of a module: from data and a sparsity to masks, the remaining weights moved to make up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit, Batch
from espalier.directional.path import Path, Step, follow, refit
from espalier.directional.subspace import FlatSubspace, by_cutoff
from espalier.landscape.operators import Curvature, Restricted
from espalier.landscape.points import check_usable
from espalier.landscape.risk import Kind, Loss, Risk, cross_entropy
from espalier.landscape.spectrum import Eigenpairs, leading
from espalier.masks import Masks, named_parameters, unwrapped
from espalier.pruning import kept_entries
from espalier.selection import Scope, select


@dataclass(frozen=True, eq=False)
class Directional:
    """What directional pruning did.

    Args:
        masks: which weights are left.
        path: the path that was followed.
        examples: how many examples the curvature was taken on.
        loss: mean loss on them before and after.
        pairs: the eigenpairs of each curvature, without the vectors, first to last; `converged` in each says which
            to trust.
        products: curvature-vector products in all.
        hidden: curvature that directions outside the last eigenpairs may still have.
    """

    masks: Masks
    path: Path
    examples: int
    loss: tuple[float, float]
    pairs: tuple[Eigenpairs, ...] = field(repr=False)
    products: int
    hidden: float

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences worth reading."""
        found = []
        lost = sum(not ok for pairs in self.pairs for ok in pairs.converged)
        if lost:
            found.append(
                f"{lost} of {sum(len(p.values) for p in self.pairs)} eigenpairs had not converged: more products, "
                "or fewer directions, make the flat subspace certain"
            )
        if self.path.relaxed:
            found.append(
                f"{self.path.relaxed} stiff directions were given up on the way: so many zeros leave no flat one"
            )
        return tuple(found)


def prune_directional(
    model: nn.Module,
    data: AbstractSplit | Iterable[Batch],
    sparsity: float,
    *,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    directions: int = 30,
    kind: Kind = "gauss-newton",
    refresh: float = 0.1,
    adjust: bool = True,
    loss: Loss = cross_entropy,
    batch_size: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Masks:
    """Prune a module in place along the directions its loss does not mind, without training.

    Exactly `round(sparsity * entries)` of the selected weights are zero afterwards (more only if more were before).
    Unlike magnitude pruning this also changes the weights that stay. See `directional` for the arguments and for a
    record of what was done.

    Returns:
        The masks of the selected parameters.
    """
    return directional(
        model,
        data,
        sparsity,
        scope=scope,
        include=include,
        exclude=exclude,
        directions=directions,
        kind=kind,
        refresh=refresh,
        adjust=adjust,
        loss=loss,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    ).masks


def directional(
    model: nn.Module,
    data: AbstractSplit | Iterable[Batch],
    sparsity: float,
    *,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    directions: int = 30,
    kind: Kind = "gauss-newton",
    flat: Callable[[Eigenpairs], FlatSubspace] = by_cutoff,
    refresh: float = 0.1,
    adjust: bool = True,
    step: float = 0.005,
    tolerance: float = 1e-2,
    loss: Loss = cross_entropy,
    batch_size: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Directional:
    """Prune a module in place by the path of `espalier.directional.follow`, and say what was done.

    Args:
        model: any module; changed in place at the end, modes and gradients stay.
        data: what the curvature is taken on; a few hundred to a few thousand examples.
        sparsity: zeros over selected entries, in [0, 1).
        scope: which parameters can be selected; see `espalier.selection.select`.
        include: globs on full names; only these.
        exclude: globs on full names; not these.
        directions: leading eigenpairs computed each time, at most half of the selected weights.
        kind: of curvature; Gauss-Newton has no negative eigenvalues.
        flat: from eigenpairs to the flat subspace; the default holds every direction found.
        refresh: share of all weights newly at zero after which curvature is computed again, in (0, 1].
        adjust: after each such stage put the weights that stay where the known curvature wants them for these zeros
            (`refit`), instead of where the path has shrunk them to. False is directional pruning by the letter; with
            few directions known it shrinks along curvature it does not see.
        step: weights zeroed a step, as a share of those left.
        tolerance: of the eigenpairs; see `espalier.landscape.leading`.
        loss: of outputs and labels, summed over the batch.
        batch_size: examples per pass.
        seed: of the eigenvectors' start.
        progress: called with the number of zeros, from what there were to what was asked.

    Raises:
        EspalierError: what `Risk`, `select` and `leading` refuse; a sparsity outside [0, 1); refresh outside (0, 1].
    """
    if not 0 < refresh <= 1:
        raise EspalierError(f"`refresh` is a share of the weights in (0, 1], got {refresh}")
    check_usable(unwrapped(model), "the model")
    selection = select(open_checkpoint(unwrapped(model)), scope, include, exclude)
    zeros = selection.entries - kept_entries(selection.entries, sparsity)
    risk = Risk(model, data, selection=selection, loss=loss, batch_size=batch_size)
    k = max(1, min(directions, risk.dimension // 2))
    found: list[Eigenpairs] = []
    before, weights = risk.loss(), risk.weights.double()
    steps: list[Step] = []
    relaxed, hidden = 0, 0.0
    for goal in _stages(int((weights == 0).sum()), zeros, round(refresh * risk.dimension)):
        active = weights != 0
        operator = Restricted(Curvature(risk, weights, kind), active)
        # What has not converged is in the record and in the notes; it only makes a flat direction look stiff.
        pairs = leading(operator, k, tolerance=tolerance, seed=seed, strict=False)
        here = flat(pairs)
        path = follow(weights, here, zeros=goal, batch=step, progress=progress)
        weights = refit(weights, path.weights != 0, here) if adjust else path.weights
        steps += path.steps[1:] if steps else path.steps
        relaxed, hidden = relaxed + path.relaxed, here.hidden
        found.append(replace(pairs, vectors=pairs.vectors[:, :0]))
    path = Path(weights, tuple(steps), relaxed, len(found), "zeros reached")
    after = risk.loss(weights)
    tensors = risk.named(path.weights.to(risk.dtype))
    parameters = named_parameters(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    masks = Masks.from_zeros(risk.named(path.weights))
    masks.apply_(model)
    return Directional(
        masks,
        path,
        risk.examples,
        (before, after),
        tuple(found),
        sum(pairs.products for pairs in found),
        hidden,
    )


def _stages(now: int, zeros: int, size: int) -> list[int]:
    """Numbers of zeros at which curvature is taken anew, the last one included; at least one stage."""
    zeros = max(zeros, now)
    return [*range(now + size, zeros, max(1, size)), zeros]
