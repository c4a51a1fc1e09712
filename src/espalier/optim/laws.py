r"""How the threshold of a dual-averaging step grows: frozen values, no torch.

A law sees the clock of its parameter group in Python floats (float64). Accumulating there, and not in the
dtype of the weights, matters: in float32 the paper's increments fall below half an ulp after two rate drops
and the threshold stops.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from espalier._errors import EspalierError
from espalier._types import is_number, is_whole
from espalier.optim.schedules import CUBIC, AbstractSchedule


@dataclass(frozen=True)
class Clock:
    """Where a parameter group stands at a step, the step included.

    Args:
        steps: n, number of calls of `step` so far; 1 at the first.
        before: t_{n-1}, sum of the effective rates before this step.
        rate: gamma_n, effective rate of this step (lr, or lr / (1 - momentum)).
        threshold: the threshold before this step.
    """

    steps: int
    before: float
    rate: float
    threshold: float

    @property
    def time(self) -> float:
        """t_n, sum of the effective rates with this step's."""
        return self.before + self.rate


class AbstractPathLaw(ABC):
    """A threshold that depends on the clock alone, so it costs nothing."""

    dual: ClassVar[bool] = True
    """Whether the threshold applies to an accumulated latent (True) or to the last weights (False)."""

    @abstractmethod
    def threshold(self, clock: Clock) -> float:
        """The threshold at this step, >= 0."""


def _nonnegative(law: AbstractPathLaw, *names: str) -> None:
    """Refuse what is no number >= 0, naming the first, and make plain floats of the others.

    Plain, since they enter the saved state, which is to be read with `weights_only=True`, and the law's `repr`, which
    tells whether a state belongs to it.
    """
    for name in names:
        value = getattr(law, name)
        if not is_number(value) or not 0 <= value < math.inf:
            raise EspalierError(f"`{name}` of {type(law).__name__} is {value!r}; it must be a number >= 0")
        object.__setattr__(law, name, float(value))


def _check_mu(law: "PowerLaw | TimePowerLaw") -> None:
    """Refuse a power that is no power in [0, 1]."""
    if not is_number(law.mu) or not 0 <= law.mu <= 1:
        raise EspalierError(
            f"`mu` of {type(law).__name__} is {law.mu!r}; it must be in [0, 1] (the paper uses 0.4 to 0.85)"
        )
    object.__setattr__(law, "mu", float(law.mu))


def _power_step(before: float, after: float, power: float) -> float:
    """after^power - before^power without the cancellation of two nearly equal powers."""
    if before <= 0:
        return float(after**power)
    return -(after**power) * math.expm1(power * math.log(before / after)) if after > before else 0.0


@dataclass(frozen=True)
class PowerLaw(AbstractPathLaw):
    r"""The paper's law (gRDA, arXiv 2006.09358, Algorithm 2).

    .. math:: g_n = g_{n-1} + c \, \gamma_n^{\mu + 1/2} \, (n^\mu - (n-1)^\mu)

    At a constant rate the sum telescopes to Algorithm 1, :math:`g_n = c\,\gamma^{1/2} (n\gamma)^\mu`. After a rate drop
    the threshold keeps its level and grows more slowly; it never falls.

    Args:
        c: >= 0, in weights per rate^(mu + 1/2); 0 is the base step alone, bit for bit.
        mu: in [0, 1]. Above 1/2 the penalty outgrows the gradient noise in flat directions; 1 is linear in
            the steps.

    Raises:
        EspalierError: `c` or `mu` is out of range.
    """

    c: float
    mu: float

    def __post_init__(self) -> None:
        _nonnegative(self, "c")
        _check_mu(self)

    def threshold(self, clock: Clock) -> float:
        """Give g_n of the formula above."""
        growth = _power_step(clock.steps - 1, clock.steps, self.mu)
        return clock.threshold + self.c * float(clock.rate ** (self.mu + 0.5)) * growth


@dataclass(frozen=True)
class TimePowerLaw(AbstractPathLaw):
    r"""The power law in time t = sum of rates, so a schedule of rates does not change what c and mu mean.

    .. math:: g_n = g_{n-1} + c \, \gamma_n^{1/2} \, (t_n^\mu - t_{n-1}^\mu)

    Equals `PowerLaw` at a constant rate and differs from it by 0 to 3 % on the paper's schedules.

    Args:
        c: >= 0.
        mu: in [0, 1].

    Raises:
        EspalierError: `c` or `mu` is out of range.
    """

    c: float
    mu: float

    def __post_init__(self) -> None:
        _nonnegative(self, "c")
        _check_mu(self)

    def threshold(self, clock: Clock) -> float:
        """Give g_n of the formula above."""
        growth = _power_step(clock.before, clock.time, self.mu)
        return clock.threshold + self.c * math.sqrt(clock.rate) * growth


@dataclass(frozen=True)
class LinearLaw(AbstractPathLaw):
    r"""Regularized dual averaging (Xiao, 2010) with an l1 penalty: threshold lambda * t_n.

    .. math:: g_n = \lambda \sum_{k \le n} \gamma_k

    Args:
        penalty: lambda >= 0, the weight of :math:`\|w\|_1` beside the loss.

    Raises:
        EspalierError: `penalty` is out of range.
    """

    penalty: float

    def __post_init__(self) -> None:
        _nonnegative(self, "penalty")

    def threshold(self, clock: Clock) -> float:
        """Give g_n of the formula above."""
        return clock.threshold + self.penalty * clock.rate


@dataclass(frozen=True)
class ConstantLaw(AbstractPathLaw):
    """A threshold that never moves.

    Args:
        value: >= 0, in units of the weights.

    Raises:
        EspalierError: `value` is out of range.
    """

    value: float

    def __post_init__(self) -> None:
        _nonnegative(self, "value")

    def threshold(self, clock: Clock) -> float:
        """Give g_n of the formula above."""
        return self.value


@dataclass(frozen=True)
class Lasso(AbstractPathLaw):
    r"""Proximal gradient for an l1 penalty: the last weights are thresholded by :math:`\gamma_n\lambda`.

    The one-hyperparameter baseline. Its bias does not vanish: every step shrinks every weight by the same
    amount.

    Args:
        penalty: lambda >= 0, the weight of :math:`\|w\|_1` beside the loss.

    Raises:
        EspalierError: `penalty` is out of range.
    """

    penalty: float
    dual: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _nonnegative(self, "penalty")

    def threshold(self, clock: Clock) -> float:
        """Give g_n of the formula above."""
        return self.penalty * clock.rate


@dataclass(frozen=True)
class TargetSparsity:
    r"""Whatever threshold gives the sparsity asked for, along a schedule, with no c and mu.

    During the ramp the threshold is the s(n)-quantile of the latents' magnitudes over all thresholded
    parameters of all groups with an equal law, read every `every` steps from a histogram of a sample. At step
    `steps` the selection is exact: round(sparsity * entries) zeros, the smallest latents, ties by (parameter
    order, index); the mask is then frozen and the kept weights train on with the base step.

    Args:
        sparsity: in [0, 1), zeros / thresholded entries at the end.
        steps: > `warmup`, the step at which the sparsity is reached and the mask frozen.
        schedule: shape of the ramp between `warmup` and `steps`.
        warmup: >= 0, dense steps before the ramp.
        every: >= 1, steps between two searches; default a hundredth of the ramp, between 1 and 32.
        kept: entries kept at the end per parameter name, instead of one global threshold (an allocation);
            must name every thresholded parameter and sum to the budget. Needs an optimizer built on named
            parameters.
        rescale: multiply the weights of each output unit by `lost_scale` of its latents, so that it keeps its l1
            norm while others of its weights are pruned: w = alpha_i S_g(v). Not the prox of any penalty, so the
            theory of dual averaging ends here; gradients reach the latents unscaled, as in ST-3.

    Raises:
        EspalierError: a value is out of range.
    """

    sparsity: float
    steps: int
    schedule: AbstractSchedule = CUBIC
    warmup: int = 0
    every: int | None = None
    kept: Mapping[str, int] | None = field(default=None, hash=False)
    rescale: bool = False
    dual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.sparsity) or not 0 <= self.sparsity < 1:
            raise EspalierError(
                f"`sparsity` is {self.sparsity!r}; it is a fraction in [0, 1): 0.9 for nine zeros in ten"
            )
        object.__setattr__(self, "sparsity", float(self.sparsity))
        for name in ("steps", "warmup", "every"):
            count = getattr(self, name)
            if count is None:
                continue
            if not is_whole(count):
                raise EspalierError(f"`{name}` is {count!r}; it counts steps, so it must be a whole number")
            object.__setattr__(self, name, int(count))
        if self.warmup < 0:
            raise EspalierError(f"`warmup` is {self.warmup}; it counts steps, so it must be >= 0")
        if self.steps <= self.warmup:
            raise EspalierError(
                f"`steps` is {self.steps}: no ramp is left after {self.warmup} warm-up steps; give more steps"
            )
        if not isinstance(self.schedule, AbstractSchedule):
            raise EspalierError(
                f"`schedule` is {self.schedule!r}; give the shape of the ramp, such as CUBIC or Polynomial(1.0)"
            )
        if self.every is not None and self.every < 1:
            raise EspalierError(
                f"`every` is {self.every}; it counts steps between searches, so it must be >= 1"
            )
        if self.kept is not None and not isinstance(self.kept, Mapping):
            raise EspalierError(
                f"`kept` is {self.kept!r}; give entries to keep by parameter name: {{'0.weight': 50}}"
            )

    @property
    def interval(self) -> int:
        """Steps between two searches."""
        return self.every or max(1, min(32, (self.steps - self.warmup) // 100))

    def share(self, step: int) -> float:
        """Share of the final zeros asked for at `step`, in [0, 1]."""
        return self.schedule.fraction((step - self.warmup) / (self.steps - self.warmup))

    def due(self, step: int) -> bool:
        """Whether the threshold is searched anew at `step`."""
        return self.warmup < step < self.steps and (step - self.warmup) % self.interval == 1 % self.interval


Law = AbstractPathLaw | TargetSparsity
"""What decides the threshold: the clock, or the latents themselves."""
