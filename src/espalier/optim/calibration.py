"""c from the threshold that is wanted: pure functions of a law and a sequence of rates."""

import math
from collections.abc import Iterable
from itertools import accumulate

from espalier._errors import EspalierError
from espalier.optim.laws import AbstractPathLaw, Clock, PowerLaw


def threshold_path(law: AbstractPathLaw, rates: Iterable[float]) -> list[float]:
    r"""Thresholds :math:`g_1, \dots, g_N` of a law, before any step is taken.

    Args:
        law: how the threshold grows.
        rates: N effective rates in the order of the steps, each >= 0: lr, or lr / (1 - momentum).

    Returns:
        N thresholds; those of an optimizer that steps with these rates, bit for bit.

    Example:
        >>> from espalier.optim import LinearLaw, threshold_path
        >>> threshold_path(LinearLaw(2.0), [0.5, 0.25])
        [1.0, 1.5]
    """

    def advance(clock: Clock, rate: float) -> Clock:
        now = Clock(clock.steps + 1, clock.time, rate, clock.threshold)
        return Clock(now.steps, now.before, rate, law.threshold(now))

    return [clock.threshold for clock in accumulate(rates, advance, initial=Clock(0, 0.0, 0.0, 0.0))][1:]


def power_law_reaching(threshold: float, rates: Iterable[float], mu: float = 0.51) -> PowerLaw:
    r"""The paper's law whose threshold ends at the given level: it is linear in c, so c is a quotient.

    .. math:: c = g / \sum_n \gamma_n^{\mu + 1/2} (n^\mu - (n-1)^\mu)

    The level for a sparsity s is the s-quantile of the magnitudes that the latents will have at the end; what these
    are, only training tells: see `espalier.train.calibration`.

    Args:
        threshold: g >= 0 after the last step, in weights.
        rates: effective rates in the order of the steps.
        mu: in [0, 1]; 0.51 is the paper's, just above the 1/2 where the threshold outgrows the noise.

    Returns:
        `PowerLaw(c, mu)`.

    Raises:
        EspalierError: the threshold is not a number >= 0, mu is out of range, or the rates are all zero.

    Example:
        >>> from espalier.optim import power_law_reaching
        >>> power_law_reaching(0.5, [0.25] * 4, mu=0.5)
        PowerLaw(c=1.0, mu=0.5)
    """
    if not 0 <= threshold < math.inf:
        raise EspalierError(f"`threshold` is {threshold}; it must be a number >= 0, in the weights' unit")
    path = threshold_path(PowerLaw(1.0, mu), rates)
    if not path or path[-1] <= 0:
        raise EspalierError("no threshold grows here: `rates` must hold a rate above 0")
    return PowerLaw(threshold / path[-1], mu)
