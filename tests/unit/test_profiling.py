import math

import numpy as np
import pytest
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.profiling import Profile, profile
from espalier.selection import select


def profile_of(tensors: dict[str, Tensor], streaming: bool | None = None, scope="all") -> Profile:
    checkpoint = open_checkpoint(tensors)
    return profile(checkpoint, select(checkpoint, scope), streaming=streaming)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("streaming", [False, True])
def test_by_hand(streaming):
    found = profile_of({"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[-4.0, 0.0]])}, streaming)
    assert (found.entries, found.zeros, found.absolute) == (4, 2, 7.0)
    assert found.curve.total == 25.0
    assert found.tensors["a"].rms == pytest.approx(3 / math.sqrt(2))
    assert (found.tensors["b"].entries, found.tensors["b"].zeros) == (2, 1)
    assert found.tensors["a"].kurtosis == pytest.approx(1.0)
    assert found.sparsity(1) == 0.75
    assert found.kept_at(1) == {"a": 0, "b": 1}
    assert found.kept_at(2) == {"a": 1, "b": 1}
    assert found.kept_at(3) == {"a": 2, "b": 1}  # tied zeros: the first name first
    assert found.kept_at(0) == {"a": 0, "b": 0}
    assert found.exact  # two values, so no bin holds more than one magnitude


def test_ties_go_to_the_first_name_whatever_the_order_in_the_file():
    found = profile_of({"z": torch.ones(3), "a": torch.ones(2), "m": 2 * torch.ones(1)})
    assert found.kept_at(2) == {"z": 0, "a": 1, "m": 1}
    assert found.kept_at(4) == {"z": 1, "a": 2, "m": 1}


def test_kept_counts_are_those_of_a_stable_sort():
    tensors = {f"t{i}": (randn(40, seed=i) * 3).round() / 2 * (i + 1) for i in (3, 0, 2)}
    found = profile_of(tensors)
    names = [name for name in sorted(tensors) for _ in range(40)]
    values = torch.cat([tensors[name] for name in sorted(tensors)]).abs()
    order = torch.argsort(values, descending=True, stable=True).tolist()
    for kept in range(121):
        chosen = [names[i] for i in order[:kept]]
        assert found.kept_at(kept) == {name: chosen.count(name) for name in tensors}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_exact_even_when_streamed(dtype):
    tensors = {"b": randn(30, 30).to(dtype), "a": (2 * randn(40, seed=1)).to(dtype)}
    by_bits, by_sort = profile_of(tensors, True), profile_of({n: t.float() for n, t in tensors.items()})
    assert by_bits.exact and by_bits.curve.error == 0.0
    for kept in range(0, 941, 47):
        assert by_bits.kept_at(kept) == by_sort.kept_at(kept)
        assert by_bits.curve.cosine(kept) == pytest.approx(by_sort.curve.cosine(kept), rel=1e-12)
    assert by_bits.kurtosis == pytest.approx(by_sort.kurtosis, rel=1e-9)


def test_streaming_agrees_with_sorting():
    tensors = {"a": randn(300, 300), "b": 0.1 * randn(5000, seed=1), "c": randn(10, seed=2).double()}
    fast, exact = profile_of(tensors, True), profile_of(tensors, False)
    assert exact.exact and not fast.exact and 0 < fast.curve.error < 1e-3
    kept = np.arange(exact.entries + 1)
    assert np.max(np.abs(fast.curve.cosine(kept) - exact.curve.cosine(kept))) <= fast.curve.error
    assert fast.kurtosis == pytest.approx(exact.kurtosis, rel=2e-5)
    assert fast.kurtosis_of_kurtoses == pytest.approx(exact.kurtosis_of_kurtoses, rel=1e-4)
    assert fast.absolute == pytest.approx(exact.absolute, rel=3e-6)
    for name in "bc":  # small enough for exact moments
        assert fast.tensors[name].kurtosis == pytest.approx(exact.tensors[name].kurtosis, rel=1e-12)
    for k in (1, 100, 9_999, 50_000, 95_010):
        counts, truth = fast.kept_at(k), exact.kept_at(k)
        assert sum(counts.values()) == k
        assert all(abs(counts[name] - truth[name]) <= 0.02 * k + 1 for name in counts)
    for name in tensors:
        assert fast.tensors[name].rms == pytest.approx(exact.tensors[name].rms, rel=1e-12)
        assert fast.tensors[name].zeros == exact.tensors[name].zeros


def test_streaming_twice_gives_the_same_to_the_last_bit():
    tensors = {"w": randn(3000, 1500), "v": randn(2_200_000, seed=1).double()}
    one, other = profile_of(tensors, True), profile_of(tensors, True)
    assert (one.curve.energy == other.curve.energy).all()
    assert (one.kurtosis, one.absolute) == (other.kurtosis, other.absolute)
    assert one.entries == 6_700_000


def test_a_vector_far_from_zero_has_its_own_kurtosis_when_streamed():
    tensors = {"norm.weight": 1 + 1e-4 * randn(9000), "w": randn(9, 9)}
    fast, exact = profile_of(tensors, True), profile_of(tensors, False)
    assert fast.tensors["norm.weight"].kurtosis == pytest.approx(
        exact.tensors["norm.weight"].kurtosis, rel=1e-12
    )


def test_reading_reports_progress_and_counts_every_entry():
    checkpoint = open_checkpoint({"a": randn(1100, 1000), "b": randn(4, 4)})
    for streaming in (True, False):
        read = {"a": 0, "b": 0}

        def note(name: str, entries: int, read: dict[str, int] = read) -> None:
            read[name] += entries

        profile(checkpoint, select(checkpoint), streaming=streaming, progress=note)
        assert read == {"a": 1_100_000, "b": 16}


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_constant_and_one_entry_tensors_have_no_kurtosis(streaming):
    tensors = {"e": torch.empty(0, 3), "c": torch.full((5,), 0.1), "o": torch.ones(1, 1), "w": randn(9)}
    found = profile_of(tensors, streaming)
    assert [found.tensors[name].kurtosis is None for name in "ecow"] == [True, True, True, False]
    assert found.kurtosis_of_kurtoses is None
    assert found.kept_at(3)["e"] == 0
    assert found.tensors["e"].rms == 0.0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_not_finite_entries_name_the_tensor_and_how_many(streaming, dtype):
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0]).to(dtype)
    with pytest.raises(
        EspalierError, match="tensor 'x_bad' cannot be pruned: 3 entries are NaN or infinite of 5"
    ):
        profile_of({"good": randn(4), "x_bad": bad}, streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_entries_whose_fourth_power_overflows_are_refused(streaming):
    with pytest.raises(EspalierError, match=r"tensor 'x' cannot be pruned: entries reach 1e\+80"):
        profile_of({"x": torch.tensor([1.0, -1e80], dtype=torch.float64)}, streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_to_prune_is_an_error(streaming):
    with pytest.raises(EspalierError, match="every selected entry is zero"):
        profile_of({"a": torch.zeros(3, 3)}, streaming)
    with pytest.raises(EspalierError, match="the selected tensors have no entries"):
        profile_of({"a": torch.empty(0, 3)}, streaming)


def test_the_floor_is_the_largest_sparsity_that_keeps_it():
    found = profile_of({"big": randn(50, 50), "small": 0.05 * randn(200, seed=1), "zero": torch.zeros(30)})
    kept = found.kept_for_floor(0.1)
    assert found.kept_at(kept)["small"] == 20
    assert found.kept_at(kept - 1)["small"] == 19
    assert found.kept_for_floor(1.0) == 2700  # the zeros cannot be kept and need not be
    with pytest.raises(EspalierError, match=r"floor must lie in \(0, 1\]; got 0"):
        found.kept_for_floor(0)


def test_kept_at_wants_a_count_of_entries():
    with pytest.raises(EspalierError, match="kept must lie in 0 to 4 entries; got -1"):
        profile_of({"a": torch.ones(2, 2)}).kept_at(-1)


def test_many_tensors_share_the_nodes_of_a_streamed_profile(monkeypatch):
    monkeypatch.setattr("espalier.profiling._NODES", 1000)
    tensors = {f"t{i}": (i + 1) * randn(3000, seed=i) for i in range(3)}
    found, exact = profile_of(tensors, True), profile_of(tensors)
    assert all(len(tensor.curve.kept) <= 334 for tensor in found.tensors.values())
    assert found.curve.error < 1e-3 < max(tensor.curve.error for tensor in found.tensors.values())
    for kept in (1, 40, 4000, 8999):
        counts, truth = found.kept_at(kept), exact.kept_at(kept)
        assert sum(counts.values()) == kept
        assert all(abs(counts[name] - truth[name]) <= 0.05 * kept + 1 for name in counts)
