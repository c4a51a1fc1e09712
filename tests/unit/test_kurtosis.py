import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from espalier.histogram import Histogram
from espalier.kurtosis import Moments, bound, counted_moments, kurtosis_of_kurtoses, merged, moments


def test_by_hand():
    result = moments(np.asarray([-1.0, 0.0, 1.0, 4.0]))
    assert (result.entries, result.mean, result.absolute, result.zeros) == (4, 1.0, 6.0, 1)
    assert (result.m2, result.m3, result.m4) == (14.0, 18.0, 98.0)
    assert result.kurtosis == 2.0


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_as_scipy_biased_pearson(offset):
    values = np.random.default_rng(0).laplace(size=100_000) + offset
    expected = stats.kurtosis(values, fisher=False)
    assert moments(values).kurtosis == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("values", [[], [3.0], [0.1] * 7, [0.0] * 100_000, [1e8] * 40_000])
def test_undefined_for_empty_one_entry_and_constant(values):
    assert moments(np.asarray(values, dtype=np.float32)).kurtosis is None
    assert moments(np.asarray(values)).kurtosis is None


def test_two_values_have_the_least_kurtosis():
    assert moments(np.asarray([1.0, -1.0] * 40_000)).kurtosis == pytest.approx(1.0)


def test_float32_values_are_accumulated_in_float64():
    values = np.full(1 << 22, 1000.0, dtype=np.float32)
    values[0] = 1001.0
    n = values.size
    assert moments(values).kurtosis == pytest.approx(n - 2 + 1 / (n - 1), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=20), max_size=5))
def test_merged_moments_are_those_of_the_union(parts):
    arrays = [np.asarray(part) for part in parts]
    whole = moments(np.concatenate([np.empty(0), *arrays]))
    for order in (arrays, arrays[::-1]):
        result = merged(moments(array) for array in order)
        scale = max(whole.m2, 1e-6)
        assert result.entries == whole.entries and result.zeros == whole.zeros
        assert result.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-9)
        assert result.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-6)
        assert result.m3 == pytest.approx(whole.m3, rel=1e-9, abs=1e-6 * scale**1.5)
        assert result.m4 == pytest.approx(whole.m4, rel=1e-9, abs=1e-6 * scale**2)
        assert result.absolute == pytest.approx(whole.absolute, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-9, 9, width=16), st.integers(0, 5)), max_size=9, unique_by=lambda p: p[0])
)
def test_counted_moments_are_those_of_the_repeated_numbers(pairs):
    values, counts = np.asarray([p[0] for p in pairs]), np.asarray([p[1] for p in pairs], dtype=np.int64)
    found, expected = (
        counted_moments(values, counts, int(counts[values == 0].sum())),
        moments(np.repeat(values, counts)),
    )
    assert (found.entries, found.zeros) == (expected.entries, expected.zeros)
    for field in ("mean", "m2", "m3", "m4", "absolute"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=1e-9, abs=1e-8)
    assert (np.count_nonzero(counts) > 1) or found.kurtosis is None


def histogram_of(values: np.ndarray, bits: int = 7) -> Histogram:
    histogram = Histogram(bits)
    histogram.add(torch.from_numpy(values))
    return histogram


SHAPES = {
    "gaussian": lambda rng: rng.normal(size=300_000),
    "laplace": lambda rng: rng.laplace(size=300_000),
    "uniform": lambda rng: rng.uniform(-1, 1, size=300_000),
    "t 5": lambda rng: rng.standard_t(5, size=300_000),
    "half of them zero": lambda rng: rng.normal(size=300_000) * rng.integers(0, 2, size=300_000),
}


@pytest.mark.parametrize("bits", [7, 10])
@pytest.mark.parametrize("name", SHAPES)
def test_moments_from_a_histogram_are_as_good_as_they_say(name, bits):
    values = SHAPES[name](np.random.default_rng(0)).astype(np.float32)
    found, exact = histogram_of(values, bits).moments(), moments(values)
    assert (found.entries, found.zeros) == (exact.entries, exact.zeros)
    width = 2.0**-bits
    assert found.kurtosis == pytest.approx(exact.kurtosis, rel=width**2 / 3 * 1.05)
    assert found.absolute == pytest.approx(exact.absolute, rel=width**2 / 24 * 1.05)
    assert found.m2 == pytest.approx(exact.m2, rel=1e-9)


def test_the_worst_bins_reach_the_bound_of_the_kurtosis_and_stay_inside():
    # Every bin holds its two ends, just above powers of two, where bins are widest relative to what is in them.
    low = 2.0 ** np.arange(-3, 3)
    magnitudes = np.concatenate([low, np.nextafter(low * (1 + 2.0**-7), 0, dtype=np.float32)])
    values = np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    found, exact = histogram_of(values).moments().kurtosis, moments(values).kurtosis
    assert found is not None and exact is not None
    assert 0.95 * 2**-14 < (exact - found) / exact < 2**-14


@pytest.mark.parametrize("mean", [1.0, -3.0])
def test_moments_from_a_histogram_degrade_with_the_mean_as_documented(mean):
    values = np.random.default_rng(0).normal(mean, 1, size=300_000).astype(np.float32)
    found, exact = histogram_of(values).moments(), moments(values)
    assert found.mean == pytest.approx(exact.mean, rel=4e-6)
    assert found.kurtosis == pytest.approx(exact.kurtosis, rel=2.0e-5 * (1 + mean**2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_16_bit_numbers_are_exact(dtype):
    values = (torch.randn(50_000, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype)
    values[:7] = 0.0
    values[7:9] = -torch.finfo(dtype).smallest_normal / 4
    histogram = Histogram(10 if dtype == torch.float16 else 7)
    histogram.add(values)
    found, exact = histogram.moments(), moments(values.double().numpy())
    assert found.zeros == 7
    for field in ("mean", "m2", "m3", "m4", "absolute"):
        assert getattr(found, field) == pytest.approx(getattr(exact, field), rel=1e-10)


def test_zeros_are_told_from_the_smallest_numbers():
    for tiny in (np.float32(1e-45), np.float32(-9e-41), np.float64(1e-200), np.float64(5e-324)):
        values = np.asarray([0.0, tiny, -0.0, 1.0], dtype=tiny.dtype)
        histogram = histogram_of(values)
        assert histogram.zeros == 2
        histogram.add(torch.zeros(3))
        assert histogram.zeros == histogram.moments().zeros == 5
        histogram.clear()
        assert histogram.zeros == 0


def test_moments_of_merged_histograms_are_those_of_the_union():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=900), rng.normal(2, 3, size=500)
    merged_one = histogram_of(one)
    merged_one.merge(histogram_of(other))
    found, expected = merged_one.moments(), histogram_of(np.concatenate([one, other])).moments()
    assert found.kurtosis == pytest.approx(expected.kurtosis, rel=1e-12)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)


def test_merging_with_nothing_changes_nothing():
    some = moments(np.asarray([1.0, 2.0]))
    assert some.merge(Moments()) == Moments().merge(some) == some


def test_kurtosis_of_kurtoses_leaves_out_the_undefined():
    assert kurtosis_of_kurtoses([1.0, None, 2.0, 3.0, None]) == pytest.approx(1.5)
    assert kurtosis_of_kurtoses([None, 3.0]) is None
    assert kurtosis_of_kurtoses([3.0, 3.0, 3.0]) is None
    assert kurtosis_of_kurtoses([]) is None


def test_the_bound_is_reached_by_one_outlier_among_equals():
    for count in (3, 10, 62):
        limit = bound(count)
        assert limit is not None
        assert kurtosis_of_kurtoses([1.0] * (count - 1) + [7.0]) == pytest.approx(limit)
    assert bound(10) == pytest.approx(8 + 1 / 9)
    assert bound(1) is None and bound(2) == 1.0 and not math.isnan(bound(3) or 0)
