"""Curves and their optima against arithmetic by hand and the exact optima of known distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from espalier._errors import EspalierError
from espalier.curve import Curve, exact_curve
from espalier.histogram import Histogram
from espalier.optima import band, distance, grid_utopia, knee, utopia

N = 200_000


def histogram_curve(values: Tensor, bits: int = 7) -> Curve:
    histogram = Histogram(bits)
    histogram.add(values)
    return histogram.curve()


def quantiles(inverse_survival) -> Tensor:
    """A sample of N magnitudes at evenly spaced quantiles: a distribution without its noise."""
    return torch.from_numpy(inverse_survival((np.arange(N) + 0.5) / N))


DISTRIBUTIONS = {
    # name: inverse survival function of |w| at unit variance or any scale, s*, c*
    "equal": (lambda q: np.ones_like(q), 0.652190, 0.589755),
    "uniform": (lambda q: 1 - q, 0.745137, 0.765688),
    "gaussian": (lambda q: stats.norm.isf(q / 2), 0.800784, 0.805314),
    "laplace": (lambda q: -np.log(q), 0.843533, 0.846095),
    "gennorm 1.5": (lambda q: stats.gennorm.isf(q / 2, 1.5), 0.81689, 0.82034),
    "gennorm 1.2": (lambda q: stats.gennorm.isf(q / 2, 1.2), 0.83101, 0.83390),
    "gennorm 0.8": (lambda q: stats.gennorm.isf(q / 2, 0.8), 0.85990, 0.86220),
    "gennorm 0.5": (lambda q: stats.gennorm.isf(q / 2, 0.5), 0.89688, 0.89886),
    "t 10": (lambda q: stats.t.isf(q / 2, 10), 0.81619, 0.81606),
    "t 6": (lambda q: stats.t.isf(q / 2, 6), 0.82924, 0.82533),
    "t 5": (lambda q: stats.t.isf(q / 2, 5), 0.83687, 0.83084),
}


def two_scales(p: float, r: float) -> Tensor:
    """Share p of Gaussian entries with r times the scale of the others."""
    n = round(p * N)
    big = torch.from_numpy(stats.norm.isf((np.arange(n) + 0.5) / n / 2)) * r
    small = torch.from_numpy(stats.norm.isf((np.arange(N - n) + 0.5) / (N - n) / 2))
    return torch.cat([big, small])


@pytest.mark.parametrize("build", [exact_curve, histogram_curve])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_utopia_of_known_distributions(name, build):
    inverse, sparsity, cosine = DISTRIBUTIONS[name]
    curve = build(quantiles(inverse))
    kept = utopia(curve)
    assert 1 - kept / N == pytest.approx(sparsity, abs=2e-4)
    assert curve.cosine(kept) == pytest.approx(cosine, abs=5e-4)


def test_utopia_of_a_gaussian_sample():
    curve = exact_curve(torch.randn(10**6, generator=torch.Generator().manual_seed(3)))
    assert 1 - utopia(curve) / 10**6 == pytest.approx(0.800784, abs=1e-3)
    assert curve.cosine(utopia(curve)) == pytest.approx(0.805314, abs=1e-3)


@pytest.mark.parametrize(("p", "r", "sparsity"), [(0.5, 5, 0.848), (0.1, 10, 0.937), (0.01, 10, 0.887)])
def test_utopia_of_layers_of_different_scale(p, r, sparsity):
    assert 1 - utopia(exact_curve(two_scales(p, r))) / N == pytest.approx(sparsity, abs=1e-3)


@pytest.mark.parametrize(
    ("axis", "gaussian", "laplace"), [("energy", 0.7203, 0.7791), ("angle", 0.7187, 0.7623)]
)
def test_other_axes(axis, gaussian, laplace):
    for name, sparsity in (("gaussian", gaussian), ("laplace", laplace)):
        curve = exact_curve(quantiles(DISTRIBUTIONS[name][0]))
        assert 1 - utopia(curve, axis) / N == pytest.approx(sparsity, abs=2e-4)


@pytest.mark.parametrize(("name", "sparsity"), [("gaussian", 0.7967), ("laplace", 0.8415)])
def test_knee(name, sparsity):
    curve = exact_curve(quantiles(DISTRIBUTIONS[name][0]))
    assert 1 - knee(curve) / N == pytest.approx(sparsity, abs=3e-4)


def test_knee_on_the_angle_is_the_highest_point_though_not_the_only_peak():
    values = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 0.5
    curve = exact_curve(values)
    kept = np.arange(1, 301)
    heights = 1 - np.arccos(curve.cosine(kept)) / (math.pi / 2) - kept / 300
    assert knee(curve, "angle") == kept[np.argmax(heights)]


@pytest.mark.parametrize(
    ("cosine", "gaussian", "laplace", "equal"),
    [
        (0.999, 0.156, 0.216, 0.002),
        (0.99, 0.332, 0.432, 0.020),
        (0.95, 0.551, 0.664, 0.098),
        (0.9, 0.674, 0.776, 0.190),
    ],
)
def test_sparsity_at_fixed_cosine(cosine, gaussian, laplace, equal):
    for name, sparsity in (("gaussian", gaussian), ("laplace", laplace), ("equal", equal)):
        curve = exact_curve(quantiles(DISTRIBUTIONS[name][0]))
        kept = curve.kept_for(cosine)
        assert 1 - kept / N == pytest.approx(sparsity, abs=6e-4)
        assert curve.cosine(kept) >= cosine > curve.cosine(kept - 1)


def test_all_equal_is_the_floor_of_the_rule_to_one_entry():
    for n in (10, 1000, 123_457):
        assert 1 - utopia(exact_curve(torch.full((n,), -0.3))) / n == pytest.approx(0.652190, abs=1 / n)


def test_band_of_a_gaussian():
    curve = exact_curve(quantiles(DISTRIBUTIONS["gaussian"][0]))
    best = utopia(curve)
    assert distance(curve, best) == pytest.approx(0.278549, abs=1e-4)
    fewest, most = band(curve, best)
    assert (1 - most / N, 1 - fewest / N) == pytest.approx((0.748, 0.849), abs=2e-3)
    for end, outside in ((fewest, fewest - 1), (most, most + 1)):
        assert distance(curve, end) <= 1.05 * distance(curve, best) < distance(curve, outside)
    assert band(curve, best, tolerance=0.0) == (best, best)


def test_by_hand():
    curve = exact_curve(torch.tensor([[3.0, 0.0], [-4.0, -0.0]]))
    assert curve.entries == 4
    assert curve.kept.tolist() == [0, 1, 2, 3, 4]
    assert curve.energy.tolist() == [0, 16, 25, 25, 25]
    assert curve.threshold.tolist() == [math.inf, 4, 3, 0, 0]
    assert curve.cosine(1) == 0.8
    assert curve.cosine(0) == 0.0
    assert curve.cosine_at(0.5) == 1.0
    assert curve.kept_for(1.0) == 2
    assert curve.kept_for(0.8) == 1
    assert curve.kept_for(0.81) == 2
    assert (curve.above(3.0), curve.at_least(3.0), curve.at_least(0.0)) == (1, 2, 4)
    assert utopia(curve) == 1


def test_one_entry_keeps_it():
    curve = exact_curve(torch.tensor([2.0]))
    assert utopia(curve) == knee(curve) == 1
    assert curve.cosine(1) == 1.0


def test_grid_takes_the_first_of_101():
    curve = exact_curve(quantiles(DISTRIBUTIONS["gaussian"][0]))
    assert grid_utopia(curve) == (N // 5, 0.8)


def test_points_hold_the_extra_ones_in_order():
    sparsity, cosine = exact_curve(torch.arange(1.0, 11.0)).points(11, extra=[0.55])
    assert len(sparsity) == 12 and 0.55 in sparsity
    assert (np.diff(sparsity) > 0).all() and (np.diff(cosine) <= 0).all()
    assert (sparsity[-1], cosine[-1], cosine[0]) == (1.0, 0.0, 1.0)


def test_bad_questions_have_answers():
    curve = exact_curve(torch.ones(4))
    with pytest.raises(EspalierError, match="cosine to keep must lie in"):
        curve.kept_for(0.0)
    with pytest.raises(EspalierError, match="kept must lie in 0 to 4 entries; got 5"):
        curve.cosine(5)
    with pytest.raises(EspalierError, match=r"sparsity must lie in 0 to 1; got 1\.5"):
        curve.cosine_at(1.5)
    with pytest.raises(EspalierError, match="all-zero or empty"):
        exact_curve(torch.zeros(3)).cosine(1)
    with pytest.raises(EspalierError, match="all-zero or empty"):
        exact_curve(torch.empty(0)).cosine(0)
    with pytest.raises(EspalierError, match="2 entries are NaN or infinite"):
        exact_curve(torch.tensor([1.0, math.nan, -math.inf]))


def test_float32_data_are_summed_in_float64():
    # A float32 running sum of 2^26 ones stops at 2^24.
    values = torch.ones(1 << 25)
    assert exact_curve(values).total == 1 << 25
    assert histogram_curve(values).total == 1 << 25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_histogram_of_16_bit_values_is_exact(dtype):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    values[:50] = torch.tensor(6e-8).to(dtype)  # subnormal in float16
    truth, curve = exact_curve(values), histogram_curve(values, bits=10)
    kept = np.arange(len(values) + 1)
    assert curve.error == 0.0
    np.testing.assert_allclose(curve.cosine(kept), truth.cosine(kept), rtol=1e-12)
    assert utopia(curve) == utopia(truth)


def test_the_histogram_takes_float64_beyond_the_range_of_float32():
    values = torch.tensor([1e60, 3e55, 1e-60, 0.0, 2.0, -1e50], dtype=torch.float64)
    curve, truth = histogram_curve(values), exact_curve(values)
    kept = np.arange(7)
    assert curve.total == pytest.approx(truth.total, rel=1e-12)
    assert np.all(np.abs(curve.cosine(kept) - truth.cosine(kept)) <= curve.error + 1e-12)


def test_the_histogram_counts_what_is_not_finite():
    histogram = Histogram()
    histogram.add(torch.tensor([1.0, math.nan, -math.inf, 0.0]))
    histogram.add(torch.tensor([math.inf, 2.0], dtype=torch.float64))
    histogram.add(torch.tensor([math.nan, -2.0], dtype=torch.bfloat16))
    assert (histogram.nonfinite, histogram.entries) == (4, 8)


def test_fewer_nodes_are_coarser_and_still_within_their_bound():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(5))
    histogram = Histogram()
    histogram.add(values)
    coarse, fine, truth = histogram.curve(bits=3), histogram.curve(), exact_curve(values)
    assert 10 * len(coarse.kept) < len(fine.kept)
    assert fine.error < coarse.error < 0.01
    kept = np.arange(len(values) + 1)
    assert np.max(np.abs(coarse.cosine(kept) - truth.cosine(kept))) <= coarse.error
