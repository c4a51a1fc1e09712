"""Amount rules against the published numbers and arithmetic by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.amount import (
    AbstractAmount,
    CosineTarget,
    EffectiveSize,
    Given,
    Knee,
    Safe,
    Utopia,
    safe_factor,
)
from espalier.checkpoint import open_checkpoint
from espalier.curve import Curve, exact_curve
from espalier.profiling import profile
from espalier.selection import select
from tests.reference import good_prune


@dataclass(frozen=True)
class Weights:
    """The evidence of one vector, with any kurtosis of kurtoses."""

    curve: Curve
    absolute: float
    kurtosis_of_kurtoses: float | None = None


def weights(values: Tensor, kappa: float | None = None) -> Weights:
    return Weights(exact_curve(values), float(values.double().abs().sum()), kappa)


def gaussian(kappa: float | None = None, n: int = 10**6) -> Weights:
    return weights(torch.randn(n, generator=torch.Generator().manual_seed(7)), kappa)


RULES: list[AbstractAmount] = [
    Utopia(),
    Utopia("energy"),
    Utopia("angle"),
    Utopia(mode="paper"),
    Safe(),
    Safe("paper"),
    CosineTarget(),
    EffectiveSize(),
    Knee(),
    Knee("energy"),
    Knee("angle"),
    Given(0.0),
    Given(0.9),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("values", [[2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 5.0], [1e-30, 1.0, 2.0, 3.0]], ids=str)
def test_every_rule_gives_a_consistent_amount(rule, values):
    evidence = weights(torch.tensor(values), 2.5)
    amount = rule.choose(evidence)
    n = len(values)
    assert (0 if isinstance(rule, Given) else 1) <= amount.kept <= n
    assert amount.sparsity == (n - amount.kept) / n
    assert n - round(amount.sparsity * n) == amount.kept
    assert amount.cosine == evidence.curve.cosine(amount.kept)
    assert amount.reason and amount.regime in ("needs fine-tuning", "no fine-tuning")
    if amount.band is not None:
        assert amount.band_cosine is not None
        assert amount.band[0] <= amount.band[1] and amount.band_cosine[0] >= amount.band_cosine[1]


def test_gaussian_amounts():
    evidence = gaussian()
    expected = {
        Utopia(): 0.8008,
        Utopia("energy"): 0.7203,
        Utopia("angle"): 0.7187,
        CosineTarget(0.99): 0.332,
        EffectiveSize(): 0.3634,
        Knee(): 0.7967,
    }
    for rule, sparsity in expected.items():
        assert rule.choose(evidence).sparsity == pytest.approx(sparsity, abs=1.5e-3), rule
    assert EffectiveSize().choose(evidence).cosine == pytest.approx(0.987, abs=1e-3)


def test_utopia_states_its_band_and_the_cosine_at_both_ends():
    amount = Utopia().choose(gaussian())
    assert amount.band == pytest.approx((0.748, 0.849), abs=3e-3)
    assert amount.band_cosine == pytest.approx((0.853, 0.748), abs=4e-3)
    assert "0.747 to 0.847 is within 5% of that distance" in amount.reason
    assert amount.regime == "needs fine-tuning"


@pytest.mark.parametrize(
    ("kappa", "monotone", "paper"),
    [
        (1.42, 1.0, 1.977),
        (2.0, 1.0, 1.0),
        (2.49, 1.0, 0.7598),
        (2.7182, 1.0, 0.693),
        (2.7184, 1.0, 1.0),
        (3.0, 0.910, 0.910),
        (5.81, 0.568, 0.568),
        (8.0, 0.481, 0.481),
        (20.0, 0.334, 0.334),
        (64.40, 0.2401, 0.2401),
    ],
)
def test_safe_factors(kappa, monotone, paper):
    assert safe_factor(kappa) == pytest.approx(monotone, abs=6e-4)
    assert safe_factor(kappa, "paper") == pytest.approx(paper, abs=6e-4)


def test_safe_reproduces_the_published_numbers():
    # LeNet5: 83 % times 0.7598 printed as 63.17 %, with the unrounded kurtosis of kurtoses.
    evidence = gaussian(2.49)
    amount = Safe("paper").choose(evidence)
    assert amount.sparsity == pytest.approx(0.80 * 0.7598, abs=1e-4)
    assert amount.warnings == ()
    assert Safe().choose(evidence).sparsity == Utopia().choose(evidence).sparsity
    assert Safe().choose(gaussian(64.40)).sparsity == pytest.approx(0.8008 * 0.2401, abs=1e-3)


def test_the_monotone_factor_never_rises_and_never_exceeds_one():
    factors = [safe_factor(1 + i / 10) for i in range(1000)]
    assert max(factors) == 1.0
    assert factors == sorted(factors, reverse=True)


def test_a_published_factor_above_one_is_warned_about():
    raised = Safe("paper").choose(gaussian(1.9))
    assert raised.sparsity == pytest.approx(0.80 / math.log2(1.9), abs=1e-4)
    assert "raises the amount to 0.864, kept as published" in raised.warnings[0]
    for kappa in (1.42, 1.0):
        capped = Safe("paper").choose(gaussian(kappa))
        assert capped.sparsity == pytest.approx(0.80, abs=1e-6)
        assert "capped at the utopia point" in capped.warnings[0]


def test_safe_without_a_kurtosis_of_kurtoses_is_utopia_and_says_so():
    amount = Safe().choose(gaussian())
    assert amount.sparsity == Utopia().choose(gaussian()).sparsity
    assert amount.warnings == ("the kurtosis of kurtoses is undefined here, so the factor is 1",)


def test_effective_size_by_hand():
    assert EffectiveSize().choose(weights(torch.tensor([3.0, 1.0, 1.0, -1.0]))).kept == 3  # 36 / 12
    assert EffectiveSize().choose(weights(torch.full((7,), 0.1))).kept == 7
    assert EffectiveSize(0.5).choose(weights(torch.ones(8))).kept == 4
    assert EffectiveSize(9.0).choose(weights(torch.ones(8))).kept == 8
    assert EffectiveSize(1e-9).choose(weights(torch.ones(8))).kept == 1
    assert "cosine 0.707 is low" in EffectiveSize(0.5).choose(weights(torch.ones(8))).warnings[0]


def test_regimes():
    evidence = gaussian()
    assert CosineTarget(0.99).choose(evidence).regime == "no fine-tuning"
    assert CosineTarget(0.9).choose(evidence).regime == "needs fine-tuning"
    assert Given(0.2).choose(evidence).regime == "no fine-tuning"
    assert Given(0.9).choose(evidence).regime == "needs fine-tuning"
    assert Safe().choose(gaussian(200.0)).regime == "no fine-tuning"


def test_given_removes_the_rounded_number():
    amount = Given(0.5).choose(weights(torch.arange(1.0, 6.0)))
    assert amount.kept == 5 - round(2.5) and amount.rule == "0.5"


def test_existing_zeros_count_as_pruned():
    values = torch.zeros(1000)
    values[:50] = torch.arange(1.0, 51.0)
    evidence = weights(values)
    assert CosineTarget(1.0).choose(evidence).sparsity == 0.95
    assert Utopia().choose(evidence).sparsity >= 0.95
    assert Given(0.5).choose(evidence).cosine == 1.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Given(1.0), r"sparsity must lie in \[0, 1\), a fraction; got 1\.0"),
        (lambda: Given(-0.1), r"sparsity must lie in \[0, 1\)"),
        (lambda: Given(math.nan), r"sparsity must lie in \[0, 1\)"),
        (lambda: CosineTarget(0.0), r"cosine to keep must lie in \(0, 1\]; got 0\.0"),
        (lambda: EffectiveSize(0.0), r"beta must be positive and finite; got 0\.0"),
        (lambda: EffectiveSize(math.inf), "beta must be positive and finite"),
        (
            lambda: Utopia("cos"),  # type: ignore[arg-type]
            "axis 'cos' is unknown; use one of cosine, energy, angle",
        ),
        (
            lambda: Knee("l1"),  # type: ignore[arg-type]
            "axis 'l1' is unknown",
        ),
        (
            lambda: Utopia(mode="grid"),  # type: ignore[arg-type]
            "mode 'grid' is unknown; use 'exact' or 'paper'",
        ),
        (lambda: Utopia("energy", "paper"), "mode 'paper' is defined on the cosine axis, not on 'energy'"),
        (lambda: Utopia(tolerance=-1.0), r"tolerance of the band must not be negative; got -1\.0"),
        (
            lambda: Safe("log"),  # type: ignore[arg-type]
            "mode 'log' is unknown; use 'monotone' or 'paper'",
        ),
        (lambda: Safe("paper", "angle"), "mode 'paper' is defined on the cosine axis"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(EspalierError, match=match):
        make()


class LeNet(nn.Sequential):
    """Convolutions and linear layers, biases and all, of different scale; every parameter is a weight or bias."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5), nn.Linear(50, 30), nn.Linear(30, 10))


@pytest.mark.parametrize("seed", [0, 1])
def test_paper_mode_is_the_published_search(seed):
    torch.manual_seed(seed)
    model = LeNet()
    with torch.no_grad():
        weight = model.get_parameter("2.weight")
        weight.mul_(torch.randn_like(weight))
    checkpoint = open_checkpoint(model)
    found = profile(checkpoint, select(checkpoint, "paper"))
    sparsities, cosines = good_prune.front(model)
    for sparsity, cosine in zip(sparsities, cosines):
        assert found.curve.cosine_at(sparsity) == pytest.approx(cosine, abs=1e-12)
    best = good_prune.utopia(model)
    amount = Utopia(mode="paper").choose(found)
    assert amount.kept == found.entries - round(best * found.entries)
    kurtoses = [tensor.kurtosis for tensor in found.tensors.values()]
    factor = good_prune.factor([k for k in kurtoses if k is not None])
    safe = Safe("paper").choose(found)
    expected = best * factor if best * factor < 1 else best
    assert safe.kept == found.entries - round(expected * found.entries)
