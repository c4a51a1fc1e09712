"""What holds for the amount of any vector."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier.amount import CosineTarget, EffectiveSize, Given, Knee, Safe, Utopia
from espalier.curve import Curve, exact_curve

quick = settings(deadline=None, max_examples=60)


@dataclass(frozen=True)
class Weights:
    curve: Curve
    absolute: float
    kurtosis_of_kurtoses: float | None


@st.composite
def vectors(draw) -> Tensor:
    values = torch.tensor(draw(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=50)))
    assume(values.double().square().sum() > 1e-20)
    return values


def weights(values: Tensor, kappa: float | None = None) -> Weights:
    return Weights(exact_curve(values), float(values.double().abs().sum()), kappa)


@quick
@given(vectors(), st.none() | st.floats(1, 1e4), st.sampled_from(["monotone", "paper"]))
def test_safe_is_below_utopia_where_it_promises_to_be(values, kappa, mode):
    evidence = weights(values, kappa)
    safe, n = Safe(mode).choose(evidence), len(values)
    assert 1 <= safe.kept <= n
    if mode == "monotone":
        assert safe.sparsity <= Utopia().choose(evidence).sparsity + 1 / n


@quick
@given(vectors(), st.floats(1, 1e4), st.floats(1, 1e4))
def test_safe_falls_as_the_kurtosis_of_kurtoses_rises(values, a, b):
    low, high = sorted((a, b))
    assert Safe().choose(weights(values, high)).sparsity <= Safe().choose(weights(values, low)).sparsity


@quick
@given(vectors(), st.floats(0.1, 1), st.floats(0.1, 1))
def test_a_higher_cosine_removes_less(values, a, b):
    low, high = sorted((a, b))
    evidence = weights(values)
    assert CosineTarget(high).choose(evidence).sparsity <= CosineTarget(low).choose(evidence).sparsity
    assert CosineTarget(high).choose(evidence).cosine >= high


@quick
@given(vectors(), st.integers(-10, 10), st.sampled_from([Utopia(), Knee(), EffectiveSize(), CosineTarget()]))
def test_amounts_do_not_depend_on_the_scale(values, power, rule):
    assert rule.choose(weights(values * 2.0**power)).kept == rule.choose(weights(values)).kept


@quick
@given(vectors(), st.floats(0, 1, exclude_max=True))
def test_given_removes_what_was_asked(values, sparsity):
    amount = Given(sparsity).choose(weights(values))
    assert amount.kept == len(values) - round(sparsity * len(values))


@quick
@given(vectors(), st.integers(1, 40))
def test_appended_zeros_do_not_change_what_is_kept(values, zeros):
    padded = torch.cat([values, torch.zeros(zeros)])
    assert EffectiveSize().choose(weights(padded)).kept == EffectiveSize().choose(weights(values)).kept
    assert CosineTarget(0.9).choose(weights(padded)).cosine == pytest.approx(
        CosineTarget(0.9).choose(weights(values)).cosine
    )
