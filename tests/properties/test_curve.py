"""What holds for the curve of any vector."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier.curve import Curve, exact_curve
from espalier.histogram import Histogram
from espalier.optima import Axis, band, distance, gain, knee, utopia

quick = settings(deadline=None, max_examples=60)

AXES: tuple[Axis, ...] = ("cosine", "energy", "angle")

floats = st.floats(-100, 100, width=32)
tied = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])


@st.composite
def vectors(draw, most: int = 60) -> Tensor:
    values = torch.tensor(draw(st.lists(draw(st.sampled_from([floats, tied])), min_size=1, max_size=most)))
    # Squares of subnormal float32 numbers vanish beside ordinary ones; that is rounding, not the curve.
    assume(values.double().square().sum() > 1e-20)
    return values


def by_histogram(*parts: Tensor, bits: int = 7) -> Curve:
    histogram = Histogram(bits)
    for part in parts:
        other = Histogram(bits)
        other.add(part)
        histogram.merge(other)
    return histogram.curve()


def every_k(curve: Curve) -> np.ndarray:
    return np.arange(curve.entries + 1)


@quick
@given(vectors(), st.sampled_from([exact_curve, by_histogram]))
def test_energy_is_concave_and_cosine_monotone(values, build):
    curve = build(values)
    energy = curve.energy_at(every_k(curve))
    steps = np.diff(energy)
    assert (steps >= 0).all()
    assert (np.diff(steps) <= 1e-12 * curve.total).all()
    assert curve.cosine(0) == 0.0
    assert curve.cosine(curve.entries) == pytest.approx(1.0)


@quick
@given(vectors(), st.sampled_from([exact_curve, by_histogram]), st.sampled_from(AXES))
def test_utopia_is_the_least_distance_of_every_k(values, build, axis):
    curve = build(values)
    kept = np.arange(1, curve.entries + 1)
    squared = (1 - gain(curve, kept, axis)) ** 2 + (kept / curve.entries) ** 2
    found = squared[utopia(curve, axis) - 1]
    assert found <= squared.min() * (1 + 1e-12)
    # Unimodal: down to the optimum, up after it.
    best = int(np.argmin(squared))
    assert (np.diff(squared[: best + 1]) <= 1e-12).all() and (np.diff(squared[best:]) >= -1e-12).all()
    if axis == "cosine":
        assert 1 - utopia(curve) / curve.entries >= 0.652190 - 1 / curve.entries
        assert distance(curve, utopia(curve)) == pytest.approx(math.sqrt(squared.min()))


@quick
@given(vectors(), st.sampled_from(AXES))
def test_knee_is_the_highest_of_every_k(values, axis):
    curve = exact_curve(values)
    kept = np.arange(1, curve.entries + 1)
    heights = gain(curve, kept, axis) - kept / curve.entries
    assert heights[knee(curve, axis) - 1] >= heights.max() - 1e-12


@quick
@given(vectors(), st.floats(0, 0.5))
def test_the_band_holds_the_optimum_and_its_ends_are_inside(values, tolerance):
    curve = exact_curve(values)
    best = utopia(curve)
    fewest, most = band(curve, best, tolerance=tolerance)
    assert 1 <= fewest <= best <= most <= curve.entries
    limit = (1 + tolerance) * distance(curve, best)
    assert distance(curve, fewest) <= limit + 1e-12 and distance(curve, most) <= limit + 1e-12


@quick
@given(vectors(), st.floats(0.01, 1.0))
def test_kept_for_is_the_fewest_that_reach_the_cosine(values, cosine):
    curve = exact_curve(values)
    kept = curve.kept_for(cosine)
    assert curve.cosine(kept) >= cosine
    assert kept == 0 or curve.cosine(kept - 1) < cosine


@quick
@given(vectors(), st.integers(-20, 20), st.randoms(use_true_random=False))
def test_scale_permutation_and_sign_do_not_matter(values, power, random):
    order = list(range(len(values)))
    random.shuffle(order)
    signs = torch.tensor([random.choice([-1.0, 1.0]) for _ in order])
    other = exact_curve(values[order] * signs * 2.0**power)
    curve = exact_curve(values)
    np.testing.assert_allclose(other.cosine(every_k(other)), curve.cosine(every_k(curve)), rtol=1e-12)
    assert utopia(other) == utopia(curve)


@settings(deadline=None, max_examples=20)
@given(vectors(most=10))
def test_no_mask_beats_the_largest_magnitudes(values):
    curve = exact_curve(values)
    w = values.double().numpy()
    for kept in range(1, len(w) + 1):
        best = max(
            np.sqrt(np.sum(w[list(mask)] ** 2) / np.sum(w**2))
            for mask in itertools.combinations(range(len(w)), kept)
        )
        assert curve.cosine(kept) == pytest.approx(best, abs=1e-12)


@quick
@given(vectors(), st.integers(0, 4))
def test_random_masks_keep_their_share_of_the_energy_on_average(values, seed):
    # Exactly: over all rotations of one mask every entry is kept equally often.
    n = len(values)
    mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    energy = values.double() ** 2
    mean = sum(float((energy * mask.roll(i)).sum()) for i in range(n)) / n
    assert mean == pytest.approx(float(energy.sum()) * int(mask.sum()) / n)


@quick
@given(st.lists(vectors(), min_size=1, max_size=4), st.sampled_from([0, 3, 7, 10]), st.booleans())
def test_the_histogram_is_within_its_bound(parts, bits, double):
    if double:
        parts = [part.double() * (1 + 2.0**-30) for part in parts]
    curve, truth = by_histogram(*parts, bits=bits), exact_curve(torch.cat(parts))
    gap = np.abs(truth.cosine(every_k(truth)) - curve.cosine(every_k(curve)))
    assert gap.max() <= curve.error + 1e-9
    at_nodes = curve.cosine(curve.kept)
    np.testing.assert_allclose(at_nodes, truth.cosine(curve.kept), rtol=1e-9, atol=1e-9)


@quick
@given(st.lists(vectors(), min_size=2, max_size=4))
def test_merging_in_any_order_gives_the_same_curve(parts):
    one, other = by_histogram(*parts), by_histogram(*reversed(parts))
    together = by_histogram(torch.cat(parts))
    for curve in (other, together):
        assert (curve.kept == one.kept).all()
        np.testing.assert_allclose(curve.energy, one.energy, rtol=1e-12)
    assert np.allclose(one.threshold, other.threshold)


@quick
@given(vectors(), vectors())
def test_merging_grids_keeps_the_coarser(a, b):
    fine, coarse = Histogram(10), Histogram(7)
    fine.add(a)
    coarse.add(b)
    fine.merge(coarse)
    curve = by_histogram(a, b)
    assert (fine.curve().kept == curve.kept).all()


@quick
@given(st.lists(tied, min_size=1, max_size=80))
def test_ties_are_exact_in_a_histogram(values):
    vector = torch.tensor(values)
    assume(bool((vector != 0).any()))
    curve, truth = by_histogram(vector), exact_curve(vector)
    assert curve.error == 0.0
    np.testing.assert_allclose(curve.cosine(every_k(curve)), truth.cosine(every_k(truth)), rtol=1e-12)
