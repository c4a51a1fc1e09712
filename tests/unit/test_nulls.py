import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from espalier.amount import CosineTarget, EffectiveSize, Knee, Safe, Utopia
from espalier.checkpoint import open_checkpoint
from espalier.curve import exact_curve
from espalier.nulls import balanced_curve, equal_null, gaussian_curve, gaussian_null, initial_null, sentence
from espalier.optima import utopia
from espalier.profiling import Profile, profile
from espalier.selection import select


def profile_of(tensors: dict[str, Tensor], streaming: bool = False) -> Profile:
    checkpoint = open_checkpoint(tensors)
    return profile(checkpoint, select(checkpoint, "all"), streaming=streaming)


def randn(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def gaussians() -> Profile:
    return profile_of({"a": randn(400_000, 0), "b": 0.1 * randn(300_000, 1), "c": 3 * randn(100_000, 2)})


def test_one_gaussian_in_closed_form():
    curve = gaussian_curve([10**12], [0.02])
    kept = utopia(curve)
    assert 1 - kept / 10**12 == pytest.approx(0.800784, abs=2e-5)
    assert curve.cosine(kept) == pytest.approx(0.805314, abs=1e-6 * 20)
    for t in (0.5, 1.0, 2.0):
        q = 2 * stats.norm.sf(t)
        energy = 2 * (t * stats.norm.pdf(t) + stats.norm.sf(t))
        assert curve.cosine(round(q * 10**12)) ** 2 == pytest.approx(energy, abs=1e-8)


def test_a_network_of_gaussians_is_its_own_null(gaussians):
    null = gaussian_null(gaussians)
    for rule in (Utopia(), Safe(), CosineTarget(), EffectiveSize(), Knee()):
        ours, theirs = rule.choose(gaussians), rule.choose(null)
        assert ours.sparsity == pytest.approx(theirs.sparsity, abs=1.5e-3), rule
        assert ours.cosine == pytest.approx(theirs.cosine, abs=1.5e-3), rule


def test_the_gaussian_null_keeps_scales_and_zeros():
    found = profile_of({"a": randn(5000, 0), "z": torch.zeros(1000), "tiny": 1e-6 * randn(4000, 1)})
    curve = gaussian_null(found).curve
    assert curve.entries % 10_000 == 0
    scale = curve.entries // 10_000
    assert curve.total == pytest.approx(found.curve.total * scale)
    steps = np.diff(curve.energy) / np.diff(curve.kept)
    assert (np.diff(steps) <= 1e-4 * steps[0]).all()  # concave, to the rounding of whole entries
    assert curve.cosine(9_000 * scale) == pytest.approx(1.0)
    assert curve.at_least(3e-4) == pytest.approx(5000 * scale, rel=1e-3)


def test_equal_weights_have_the_least_utopia_of_all(gaussians):
    null = equal_null(gaussians)
    assert Utopia().choose(null).sparsity == pytest.approx(0.652190, abs=1e-5)
    assert CosineTarget(0.99).choose(null).sparsity == pytest.approx(1 - 0.99**2, abs=1e-9)
    assert EffectiveSize().choose(null).sparsity == 0.0


def test_the_initial_null_is_the_initial_network(gaussians):
    null = initial_null(gaussians)
    assert null.name == "initial"
    assert Utopia().choose(null) == Utopia().choose(gaussians)


@pytest.mark.parametrize("streaming", [False, True])
def test_balanced_divides_every_tensor_by_its_rms(streaming):
    tensors = {"a": 7 * randn(60_000, 0), "b": torch.rand(40_000, generator=torch.Generator().manual_seed(1))}
    tensors["z"] = torch.zeros(500)
    found = profile_of(tensors, streaming)
    curve = balanced_curve(found)
    truth = exact_curve(
        torch.cat([t / t.double().square().mean().sqrt().clamp(min=1e-9) for t in tensors.values()])
    )
    assert curve.entries == truth.entries
    kept = np.arange(0, curve.entries + 1, 997)
    assert np.max(np.abs(curve.cosine(kept) - truth.cosine(kept))) < 2e-4
    assert utopia(curve) / curve.entries == pytest.approx(utopia(truth) / curve.entries, abs=1e-3)


def test_balanced_does_not_see_the_scale_of_a_layer():
    a, b = randn(3000, 0), randn(2000, 1)
    one, other = profile_of({"a": a, "b": b}), profile_of({"a": 1e-6 * a, "b": b})
    assert utopia(balanced_curve(one)) == pytest.approx(utopia(balanced_curve(other)), abs=3)
    assert utopia(one.curve) != utopia(other.curve)


def test_the_sentence_separates_network_and_arithmetic():
    text = sentence("utopia", 0.84, {"gaussian": ("Gaussian noise", 0.81), "equal": ("equal weights", 0.652)})
    assert text == (
        "utopia is 0.840 for this network, 0.810 for Gaussian noise, 0.652 for equal weights: beyond the scales "
        "of its tensors the network accounts for +0.030, the rest is arithmetic"
    )
    assert not math.isnan(len(text))
