"""The k-th largest and the masks it cuts, on arrays small enough to check by eye."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from espalier import threshold
from espalier._errors import EspalierError
from espalier._types import LazyTensors
from espalier.threshold import kth_largest, ordered, top_counts, top_mask

INF = float("inf")


def test_kth_largest_of_two_tensors() -> None:
    cut = kth_largest({"b": torch.tensor([1.0, 5.0, 3.0]), "a": torch.tensor([[3.0], [0.0]])}, 2)
    assert cut.value == 3.0
    assert cut.above == {"b": 1, "a": 0}
    assert cut.ties == {"b": 1, "a": 1}


def test_ties_go_to_the_smaller_name_and_then_the_smaller_index() -> None:
    scores = {"b": torch.ones(3), "a": torch.ones(2), "c": torch.full((1,), 2.0)}
    assert top_counts(scores, 4) == {"b": 1, "a": 2, "c": 1}
    assert top_mask(torch.ones(2, 2), 3).tolist() == [[True, True], [True, False]]


def test_names_compare_as_strings() -> None:
    assert top_counts({"layer.2": torch.ones(1), "layer.10": torch.ones(1)}, 1) == {
        "layer.2": 0,
        "layer.10": 1,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_order_of_the_floats(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    values = torch.tensor([-INF, -2.0, -1.0, -tiny, 0.0, tiny, 1.0, 2.0, INF], dtype=dtype)
    keys = ordered(values)
    assert (keys[1:] > keys[:-1]).all()
    assert ordered(torch.tensor([-0.0], dtype=dtype)).item() == 0
    for rank, value in enumerate(values.flip(0).tolist(), start=1):
        assert kth_largest({"w": values}, rank).value == value


def test_both_zeros_are_equal() -> None:
    assert top_mask(torch.tensor([-0.0, 0.0, -0.0, -1.0]), 2).tolist() == [True, True, False, False]


def test_tensors_of_different_dtypes_are_compared_exactly() -> None:
    # 1 + 2^-12 is 1 in both half precisions, and their promotion to each other needs float32.
    scores = {
        "a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "b": torch.tensor([1.0 + 2**-10], dtype=torch.float16),
        "c": torch.tensor([1.0 + 2**-12]),
        "d": torch.tensor([1.0 + 2**-40], dtype=torch.float64),
    }
    assert [kth_largest(scores, k).value for k in range(1, 6)] == [
        2.0,
        1 + 2**-10,
        1 + 2**-12,
        1 + 2**-40,
        1.0,
    ]


@pytest.mark.parametrize("collect", [0, 3, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_answer_does_not_depend_on_when_candidates_are_collected(
    monkeypatch: pytest.MonkeyPatch, collect: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(threshold, "_COLLECT", collect)
    monkeypatch.setattr(threshold, "_CHUNK", 7)
    values = (1 + torch.randn(60, generator=torch.Generator().manual_seed(1)) * 1e-4).to(dtype)
    scores = {"a": values[:25], "b": values[25:].view(5, 7)}
    descending = values.sort(descending=True).values
    for k in (1, 2, 17, 59, 60):
        cut = kth_largest(scores, k)
        assert cut.value == descending[k - 1].item()
        assert sum(cut.above.values()) == int((values > cut.value).sum())
        assert sum(cut.ties.values()) == int((values == cut.value).sum())


def test_scalars_empty_and_strided_tensors() -> None:
    strided = torch.arange(12.0).view(3, 4).T
    assert top_counts({"s": torch.tensor(5.0), "e": torch.zeros(0), "t": strided}, 3) == {
        "s": 0,
        "e": 0,
        "t": 3,
    }
    assert torch.equal(top_mask(strided, 2), strided >= 10)
    assert top_mask(torch.tensor(5.0), 1).item() is True
    assert top_mask(torch.zeros(0), 0).shape == (0,)


def test_entries_at_minus_infinity_are_never_kept() -> None:
    assert top_counts({"a": torch.tensor([-INF, 1.0]), "b": torch.tensor([-INF])}, 3) == {"a": 1, "b": 0}


def test_reads_each_tensor_once_per_pass() -> None:
    reads: Counter[str] = Counter()

    def load(name: str) -> Tensor:
        reads[name] += 1
        return torch.rand(100, generator=torch.Generator().manual_seed(len(name)))

    top_counts(LazyTensors(["a", "bb"], load), 50)
    assert reads == {"a": 2, "bb": 2}


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(EspalierError, match=r"'conv.weight' has scores that are NaN"):
        kth_largest({"conv.weight": torch.tensor([1.0, float("nan")])}, 1)
    with pytest.raises(EspalierError, match="'x' has scores that are NaN"):
        top_mask(torch.tensor([float("nan")]), 1, "x")


def test_integers_are_refused() -> None:
    with pytest.raises(EspalierError, match=r"scores of 'w' are torch.int64; they must be float16"):
        kth_largest({"w": torch.arange(3)}, 1)


@pytest.mark.parametrize("k", [0, 4])
def test_a_rank_that_does_not_exist_is_refused(k: int) -> None:
    with pytest.raises(EspalierError, match=f"rank {k} among 3; ranks run from 1 to 3"):
        kth_largest({"w": torch.zeros(3)}, k)
