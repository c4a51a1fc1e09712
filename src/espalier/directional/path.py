"""Directional pruning as a path: small steps, each inside the flat directions of the weights still there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.directional.subspace import FlatSubspace

Flat = Callable[[Tensor, Tensor], FlatSubspace]
"""(weights (d,), active bool (d,)) -> the flat subspace of the active coordinates there."""

_STUCK = 1e-9  # share of ||sign||^2 below which nothing flat shrinks the weights any more


@dataclass(frozen=True)
class Step:
    """Where the path was.

    Args:
        strength: lambda so far, the sum of the step lengths.
        zeros: weights at zero.
        l1: sum of |w|.
        stiff: directions that may not move.
    """

    strength: float
    zeros: int
    l1: float
    stiff: int


@dataclass(frozen=True, eq=False)
class Path:
    """A path that was followed.

    Args:
        weights: where it ended, float64 (d,).
        steps: one record a step, the start included.
        relaxed: stiff directions given up because no flat one shrank the weights any more.
        curvatures: times the curvature was computed.
        reason: why it ended.
    """

    weights: Tensor = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    relaxed: int
    curvatures: int
    reason: str

    @property
    def zeros(self) -> int:
        """Weights at zero."""
        return self.steps[-1].zeros

    @property
    def strength(self) -> float:
        """Lambda at the end."""
        return self.steps[-1].strength

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, for JSON."""
        return {
            "zeros": self.zeros,
            "strength": self.strength,
            "relaxed": self.relaxed,
            "curvatures": self.curvatures,
            "reason": self.reason,
        }


def follow(
    start: Tensor,
    flat: FlatSubspace | Flat,
    *,
    zeros: int | None = None,
    strength: float | None = None,
    batch: float = 0.0,
    refresh: float = 1.0,
    relax: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Path:
    r"""Shrink weights along the flat directions of those still active, until enough are zero.

    Each step moves by :math:`-\eta\,\Pi_A\,\mathrm{sign}(w)`, where :math:`\Pi_A` projects on the flat space of the
    active coordinates, exactly to where the next weight (or the next few, see `batch`) reaches zero; that weight
    leaves the active ones for good, and the projection is taken anew. Where the one-shot formula leaves the flat
    space with its first zero, this does not: on a quadratic the loss stays what it was until more stiff directions
    than active weights are left. Truncating several weights at once leaves the flat space a little; the smallest
    change of the active weights that undoes this, as far as the known curvature can tell, is made at once.

    Args:
        start: (d,); zeros stay zero.
        flat: the flat subspace of a quadratic, restricted to the active weights as they get fewer; or a function that
            computes it, called at the start and whenever `refresh` says.
        zeros: stop with exactly this many, existing ones included.
        strength: stop at this lambda; one of the two must be given.
        batch: weights a step, as a share of the active ones; 0 is one by one.
        refresh: share of all weights newly at zero after which `flat` is called again.
        relax: when no flat direction shrinks the weights any more, give up the least curved stiff direction and go
            on; False stops there.
        progress: called with the number of zeros after each step.

    Raises:
        EspalierError: neither goal given, or more zeros than weights.
    """
    if zeros is None and strength is None:
        raise EspalierError("a path needs an end: give `zeros`, or `strength`, or both")
    if zeros is not None and not 0 <= zeros <= len(start):
        raise EspalierError(f"{len(start):,} weights cannot have {zeros:,} zeros")
    run = _Walk(start, flat, batch, refresh, relax)
    goal = len(start) if zeros is None else zeros
    reason = run.go(goal, torch.inf if strength is None else strength, progress)
    return Path(run.weights, tuple(run.steps), run.gave_up, run.curvatures, reason)


class _Walk:
    """The state of one call of `follow`."""

    def __init__(
        self, start: Tensor, flat: FlatSubspace | Flat, batch: float, refresh: float, relax: bool
    ) -> None:
        self.weights = start.detach().double().clone()
        self.active = self.weights != 0
        self._compute = (lambda w, active: flat) if isinstance(flat, FlatSubspace) else flat
        self._batch, self._refresh, self._relax = batch, max(1, round(refresh * len(start))), relax
        self.strength, self.gave_up, self.curvatures = 0.0, 0, 0
        self.steps: list[Step] = []
        self._renew()
        self._record()

    @property
    def zeros(self) -> int:
        return len(self.active) - int(self.active.sum())

    _whole: FlatSubspace  # of the weights at `_origin`, as it was computed
    _here: FlatSubspace  # the same, of the weights active now

    def go(self, goal: int, most: float, progress: Callable[[int], None] | None) -> str:
        while self.zeros < goal:
            if self.strength >= most:
                return "strength reached"
            if self.zeros - self._renewed >= self._refresh:
                self._renew()
            signs = self.weights.sign() * self.active
            down = self._here.project(signs) * self.active
            if float(signs @ down) <= _STUCK * float(signs @ signs):
                if not (self._relax and len(self._here.eigenvalues)):
                    return "no flat direction shrinks the weights any more"
                self._give_up()
                continue
            self._step(signs, down, goal, most)
            self._record()
            if progress is not None:
                progress(self.zeros)
        return "zeros reached"

    def _step(self, signs: Tensor, down: Tensor, goal: int, most: float) -> None:
        """Move until the next weights are zero, or the strength is used up."""
        s = signs * down
        times = torch.where(s > 0, self.weights.abs() / s.clamp_min(1e-300), torch.inf)
        count = min(goal - self.zeros, max(1, int(self._batch * int(self.active.sum()))))
        count = min(count, int(torch.isfinite(times).sum()))
        order = times.argsort(stable=True)[:count]
        length = min(float(times[order[-1]]), most - self.strength)
        before = self.weights
        self.weights = before - length * down
        gone = order[times[order] <= length]
        self.active[gone] = False
        self.strength += length
        self._keep_sign(before, length * float(down.abs().max()))
        if len(gone):
            self._here = self._here.restricted(self.active)
            if len(gone) > 1:
                self._make_up()

    def _keep_sign(self, before: Tensor, scale: float) -> None:
        """Truncated weights are zero; others that came to zero by a tie, or beyond by rounding, stay just short."""
        short = before.sign() * scale * torch.finfo(torch.float64).eps
        crossed = self.active & (self.weights * before <= 0)
        self.weights = torch.where(crossed, short, self.weights).masked_fill_(~self.active, 0.0)

    def _make_up(self) -> None:
        """The smallest change of the active weights after which the known curvature sees no step from the origin."""
        whole = self._whole
        stiff = whole.eigenvalues.clamp_min(0).sqrt() * whole.removed
        off = stiff * (whole.vectors.T @ (self.weights - self._origin))
        reach = (whole.vectors * self.active[:, None]) * stiff
        gram = reach.T @ reach
        change = -reach @ (torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ off)
        moved = self.weights + change
        # A weight that this would put at zero exactly keeps its place; crossing is allowed, its sign is then new.
        self.weights = torch.where(self.active & (moved == 0), self.weights, moved)

    def _give_up(self) -> None:
        self._whole = self._whole.relaxed()
        self._here = self._whole.restricted(self.active)
        self.gave_up += 1

    def _renew(self) -> None:
        self._whole = self._compute(self.weights, self.active)
        self._here = self._whole.restricted(self.active)
        self._origin = self.weights.clone()
        self._renewed = self.zeros
        self.curvatures += 1

    def _record(self) -> None:
        self.steps.append(
            Step(self.strength, self.zeros, float(self.weights.abs().sum()), len(self._here.eigenvalues))
        )


def refit(start: Tensor, active: Tensor, flat: FlatSubspace) -> Tensor:
    r"""The best weights on given places, by a quadratic model around the start: what the surgeon would do for a mask.

    The path chooses places, and shrinks every weight on its way there. This goes back: with curvature
    :math:`H = U \Lambda U^\top + h (I - U U^\top)`, where h is `flat.hidden` (at least a millionth of the largest
    eigenvalue), the active weights minimize :math:`\frac12 \delta^\top H \delta` over steps :math:`\delta` from
    the start that put the others at zero. Costs O(d k^2).

    Args:
        start: where the curvature is from, (d,).
        active: bool (d,), the places; the others are zero afterwards.
        flat: the flat subspace at the start, of all weights that were not zero there.

    Returns:
        float64 (d,).
    """
    w = start.detach().double()
    stiff = flat.eigenvalues.clamp_min(0)
    if not len(stiff):
        return w.masked_fill(~active, 0.0)
    bulk = max(flat.hidden, 1e-6 * float(stiff.max()))
    above = (stiff - bulk).clamp_min(0)
    gone = -w.masked_fill(active, 0.0)
    reach = flat.vectors * active[:, None]
    system = bulk * torch.eye(len(stiff)).to(reach) + above[:, None] * (reach.T @ reach)
    change = -reach @ torch.linalg.solve(system, above * (flat.vectors.T @ gone))
    moved = w + change
    # None may come to zero by chance: the count is what was asked.
    return torch.where(moved == 0, w, moved).masked_fill(~active, 0.0)
