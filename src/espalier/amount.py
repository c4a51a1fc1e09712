"""Amount rules: how much to prune, each with its reason and whether fine-tuning is expected."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

from espalier._errors import EspalierError
from espalier.curve import Curve
from espalier.optima import Axis, band, check_axis, grid_utopia, knee, utopia

Regime = Literal["needs fine-tuning", "no fine-tuning"]

NEEDS: Regime = "needs fine-tuning"
NONE: Regime = "no fine-tuning"

UNTUNED_COSINE = 0.98
"""Cosine from which a given sparsity is filed under "no fine-tuning"; a convention, not a guarantee."""


class Evidence(Protocol):
    """What a rule sees: a `Profile`, or a null model."""

    @property
    def curve(self) -> Curve:
        """Cosine-sparsity curve."""

    @property
    def absolute(self) -> float:
        """Sum of |w|."""

    @property
    def kurtosis_of_kurtoses(self) -> float | None:
        """Kurtosis of the per-tensor kurtoses; None where undefined."""


@dataclass(frozen=True)
class Amount:
    """A sparsity, and why.

    Args:
        rule: name of the rule.
        sparsity: zeros / selected entries, in [0, 1).
        cosine: cosine between the weights and what is kept of them.
        kept: entries kept; `sparsity` is (n - kept) / n.
        reason: one sentence for a person.
        regime: whether the rule aims at pruning with or without fine-tuning.
        band: least and largest sparsity nearly as good by the rule's own measure; None where it has none.
        band_cosine: cosine at the two ends of the band.
        warnings: what a person should know before using it.
    """

    rule: str
    sparsity: float
    cosine: float
    kept: int
    reason: str
    regime: Regime
    band: tuple[float, float] | None = None
    band_cosine: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


class AbstractAmount(ABC):
    """A rule that chooses the sparsity from the weights alone."""

    @abstractmethod
    def choose(self, evidence: Evidence) -> Amount:
        """Choose the amount for these weights."""


@dataclass(frozen=True)
class Utopia(AbstractAmount):
    """The point of the curve closest to the unreachable (sparsity 1, gain 1).

    In closed form and for every k; the published search looks at 101 sparsities (`mode="paper"`).
    The answer is at least 0.6521 whatever the weights. The minimum is flat: `band` holds the sparsities whose
    distance is within a relative `tolerance` of the least; the cosine at its ends shows what that hides.

    Args:
        axis: what counts as gain: "cosine" (the paper), "energy" (cosine squared), "angle" (1 - angle / 90°).
            Nothing in the mathematics singles one out; they differ by 8 points of sparsity on a Gaussian.
        mode: "exact", or "paper" for the 101-point grid.
        tolerance: relative excess of the distance within the band.
    """

    axis: Axis = "cosine"
    mode: Literal["exact", "paper"] = "exact"
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        check_axis(self.axis)
        if self.mode not in ("exact", "paper"):
            raise EspalierError(f"mode {self.mode!r} is unknown; use 'exact' or 'paper'")
        if self.mode == "paper" and self.axis != "cosine":
            raise EspalierError(f"mode 'paper' is defined on the cosine axis, not on {self.axis!r}")
        if not self.tolerance >= 0:
            raise EspalierError(f"the tolerance of the band must not be negative; got {self.tolerance}")

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve = evidence.curve
        best = utopia(curve, self.axis)
        fewest, most = band(curve, best, self.axis, self.tolerance)
        kept, where = best, f"closest to (sparsity 1, {self.axis} 1) of all {curve.entries} amounts"
        if self.mode == "paper":
            kept, nominal = grid_utopia(curve)
            where = f"closest to (sparsity 1, cosine 1) of 101 sparsities, {nominal:.2f}, as published"
        least, largest = _sparsity(curve, most), _sparsity(curve, fewest)
        cosines = curve.cosine(most), curve.cosine(fewest)
        reason = (
            f"{where}; {least:.3f} to {largest:.3f} is within {self.tolerance:.0%} of that distance, "
            f"with cosine {cosines[0]:.3f} to {cosines[1]:.3f}"
        )
        return _amount("utopia", curve, kept, reason, NEEDS, band=(least, largest), band_cosine=cosines)


@dataclass(frozen=True)
class Safe(AbstractAmount):
    r"""Utopia times a factor that falls with the kurtosis of kurtoses \(\kappa\).

    "monotone": \(\min(1, 1/\ln \kappa)\). "paper": the published code, \(1/\log_2 \kappa\) below e and
    \(1/\ln \kappa\) above, on the sparsity of the 101-point grid; it jumps from 0.693 to 1 at e and exceeds 1
    below 2. There it *raises* the amount: kept as published with a warning, but capped at the utopia point
    where the product reaches 1 (the published code then fails). The paper's own scope is `scope="paper"`.
    \(\kappa\) sees shapes, not scales; read the per-tensor kept fractions beside it.

    Args:
        mode: "monotone" or "paper".
        axis: gain of the utopia point; "cosine" in mode "paper".
    """

    mode: Literal["monotone", "paper"] = "monotone"
    axis: Axis = "cosine"

    def __post_init__(self) -> None:
        if self.mode not in ("monotone", "paper"):
            raise EspalierError(f"mode {self.mode!r} is unknown; use 'monotone' or 'paper'")
        Utopia(self.axis, "paper" if self.mode == "paper" else "exact")

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve, kappa = evidence.curve, evidence.kurtosis_of_kurtoses
        start, factor = _sparsity(curve, utopia(curve, self.axis)), safe_factor(kappa, self.mode)
        if self.mode == "paper":
            start = grid_utopia(curve)[1]
        warnings: list[str] = []
        sparsity = start * factor
        if kappa is None:
            warnings.append("the kurtosis of kurtoses is undefined here, so the factor is 1")
        if factor > 1:
            fate = f"to {sparsity:.3f}, kept as published"
            if sparsity >= 1:
                fate, sparsity = "to 1 or more, which is impossible: capped at the utopia point", start
            warnings.append(f"the published factor {factor:.4f} raises the amount {fate}")
        text = "undefined" if kappa is None else f"{kappa:.3g}"
        reason = (
            f"utopia {start:.3f} times {factor:.4f}, for a kurtosis of kurtoses of {text} ({self.mode} rule)"
        )
        kept = max(curve.kept_at(sparsity), 1)
        regime = _regime(curve.cosine(kept))
        return _amount("safe", curve, kept, reason, regime, warnings=tuple(warnings))


def safe_factor(kappa: float | None, mode: Literal["monotone", "paper"] = "monotone") -> float:
    """Factor of the safe amount for a kurtosis of kurtoses, at least 1 by definition; 1.0 where undefined."""
    if kappa is None or (mode == "monotone" and kappa <= math.e):
        return 1.0
    if kappa <= 1:
        return math.inf  # 1 / log2(1); reached by two different kurtoses, whose kurtosis is exactly 1
    return 1 / math.log2(kappa) if kappa < math.e else 1 / math.log(kappa)


@dataclass(frozen=True)
class CosineTarget(AbstractAmount):
    """The largest sparsity that keeps at least this cosine; 0.99 is the authors' advice without fine-tuning.

    Args:
        cosine: cosine to keep, in (0, 1].
    """

    cosine: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.cosine <= 1:
            raise EspalierError(f"the cosine to keep must lie in (0, 1]; got {self.cosine}")

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve = evidence.curve
        error = math.sqrt(1 - self.cosine**2)
        reason = f"largest sparsity with cosine at least {self.cosine:g}: {error:.1%} relative weight error"
        return _amount("cosine", curve, max(curve.kept_for(self.cosine), 1), reason, _regime(self.cosine))


@dataclass(frozen=True)
class EffectiveSize(AbstractAmount):
    r"""Keep the effective number of weights, \(\lfloor \beta\, (\sum |w|)^2 / \sum w^2 \rfloor\).

    The inverse Simpson index of the shares \(|w| / \sum |w|\): effective model pruning, arXiv 2509.25606. A
    Gaussian keeps 2 / pi of its entries, sparsity 0.3634; a Laplace half.

    Args:
        beta: multiplies the effective number; above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise EspalierError(f"beta must be positive and finite; got {self.beta}")

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve = evidence.curve
        effective = self.beta * evidence.absolute**2 / curve.total
        # Equal weights have exactly n effective ones, which rounding may put just below n.
        kept = min(max(math.floor(effective * (1 + 1e-12)), 1), curve.entries)
        reason = f"the weights count as {kept} equal ones (inverse Simpson index of |w|, beta {self.beta:g})"
        warnings: tuple[str, ...] = ()
        if curve.cosine(kept) < 0.95:
            warnings = (f"cosine {curve.cosine(kept):.3f} is low for a rule that aims at no fine-tuning",)
        return _amount("effective", curve, kept, reason, NONE, warnings=warnings)


@dataclass(frozen=True)
class Knee(AbstractAmount):
    """Where gain - kept fraction is largest: the knee of the curve, utopia in the L1 distance.

    Args:
        axis: what counts as gain; see `Utopia`.
    """

    axis: Axis = "cosine"

    def __post_init__(self) -> None:
        check_axis(self.axis)

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve = evidence.curve
        reason = f"largest {self.axis} - kept fraction: beyond it a weight costs more than its share"
        return _amount("knee", curve, knee(curve, self.axis), reason, NEEDS)


@dataclass(frozen=True)
class Given(AbstractAmount):
    """The sparsity asked for.

    Args:
        sparsity: in [0, 1); `round(sparsity * n)` entries are removed.
    """

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise EspalierError(f"sparsity must lie in [0, 1), a fraction; got {self.sparsity}")

    def choose(self, evidence: Evidence) -> Amount:  # noqa: D102 - see AbstractAmount
        curve = evidence.curve
        kept = curve.kept_at(self.sparsity)
        regime = _regime(curve.cosine(kept))
        return _amount(f"{self.sparsity:g}", curve, kept, f"sparsity {self.sparsity:g}, as asked", regime)


def _sparsity(curve: Curve, kept: int) -> float:
    return (curve.entries - kept) / curve.entries


def _regime(cosine: float) -> Regime:
    return NONE if cosine >= UNTUNED_COSINE else NEEDS


def _amount(
    rule: str,
    curve: Curve,
    kept: int,
    reason: str,
    regime: Regime,
    *,
    band: tuple[float, float] | None = None,
    band_cosine: tuple[float, float] | None = None,
    warnings: tuple[str, ...] = (),
) -> Amount:
    sparsity = _sparsity(curve, kept)
    return Amount(rule, sparsity, curve.cosine(kept), kept, reason, regime, band, band_cosine, warnings)
