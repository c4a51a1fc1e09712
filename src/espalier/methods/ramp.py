"""Fractions of a run, and the ramp of sparsities between two of them that gradual methods share."""

from espalier._errors import EspalierError
from espalier.methods._base import Plan
from espalier.optim import AbstractSchedule


def check_fraction(name: str, value: float) -> None:
    """Refuse what is no fraction of a run in (0, 1].

    Raises:
        EspalierError: says which argument.
    """
    if not 0 < value <= 1:
        raise EspalierError(f"`{name}` is a fraction of the run in (0, 1], got {value:g}")


def check_ramp(begin: float, end: float, updates: int = 1) -> None:
    """Refuse a ramp that is none: it begins before it ends, inside the run, and something changes on it.

    Raises:
        EspalierError: says why not.
    """
    if not 0 <= begin < end <= 1:
        raise EspalierError(
            f"a ramp begins and ends at fractions of the run with 0 <= begin < end <= 1, got {begin:g} and {end:g}"
        )
    if updates < 1:
        raise EspalierError(f"`updates` counts changes of the mask, at least 1, got {updates}")


def changes(plan: Plan, begin: float, end: float, updates: int) -> dict[int, float]:
    """The steps after which a mask changes, evenly spread, and how far on the ramp each is; the last one is at 1."""
    first, last = round(begin * plan.steps), plan.at(end)
    count = min(updates, max(1, last - first))
    return {last - round(i * (last - first) / count): (count - i) / count for i in range(count)}


def sparsity_at(progress: float, start: float, target: float, schedule: AbstractSchedule) -> float:
    r"""The sparsity that a ramp asks for on its way.

    .. math:: s(p) = s_0 + \max(0, s - s_0)\,\phi(p), \qquad s(1) = s

    Args:
        progress: p, 0 where the ramp begins and 1 where it ends.
        start: s_0, the sparsity before it, in [0, 1].
        target: s, in [0, 1).
        schedule: phi.

    Returns:
        In [0, 1]; at 1 the target to the bit, also where the network was sparser before.
    """
    if progress == 1:
        return target
    return start + max(0.0, target - start) * schedule.fraction(progress)
