"""What holds for every allocation, any scores and any budget."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier._errors import EspalierError
from espalier.allocate import ERK, LAMP, AbstractAllocation, Global, Uniform, UniformPlus
from espalier.allocate.apportion import apportion

FLOORS = st.sampled_from([0.0, 0.05, 0.3])


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Tensor]:
    """Small tensors with ties, zeros that stay zero (-inf), scalars and empty tensors."""
    tensors = {}
    for name in draw(st.lists(st.text("abc.1", min_size=1, max_size=4), min_size=1, max_size=5, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        value = st.sampled_from([-math.inf, 0.0, 0.5, 1.0, 1.0, 2.0, 1e-3, 7.0])
        values = draw(st.lists(value, min_size=math.prod(shape), max_size=math.prod(shape)))
        tensors[name] = torch.tensor(values).view(shape)
    return tensors


@st.composite
def allocations(draw: st.DrawFn) -> AbstractAllocation:
    floor = draw(FLOORS)
    return draw(st.sampled_from([Global(floor), Uniform(floor), ERK(floor), LAMP(floor), UniformPlus(floor)]))


def nonzeros(tensor: Tensor) -> int:
    return int((tensor != -math.inf).sum())


@settings(deadline=None, max_examples=60)
@given(networks(), allocations(), st.data())
def test_exact_sums_bounds_and_growth(
    scores: dict[str, Tensor], allocation: AbstractAllocation, data: st.DataObject
) -> None:
    entries = sum(t.numel() for t in scores.values())
    possible = sum(nonzeros(t) for t in scores.values())
    last: dict[str, int] | None = None
    for kept in sorted({*data.draw(st.lists(st.integers(0, entries), max_size=6)), entries}):
        try:
            counts = allocation.counts(scores, kept)
        except EspalierError as error:
            assert "can be reached" in str(error)
            assert last is None, "a floor that was reached must stay reached"
            continue
        assert list(counts) == list(scores)
        assert sum(counts.values()) == min(kept, possible)
        for name, tensor in scores.items():
            floor = min(math.ceil(getattr(allocation, "floor", 0) * tensor.numel() - 1e-9), nonzeros(tensor))
            assert floor <= counts[name] <= nonzeros(tensor)
            assert last is None or last[name] <= counts[name]
        last = counts


@settings(deadline=None, max_examples=60)
@given(networks(), st.sampled_from([Global(), Uniform(), ERK(), LAMP(), Global(floor=0.3)]), st.data())
def test_the_order_of_the_names_does_not_matter(
    scores: dict[str, Tensor], allocation: AbstractAllocation, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, sum(t.numel() for t in scores.values())))
    shuffled = {name: scores[name] for name in data.draw(st.permutations(list(scores)))}
    try:
        expected = allocation.counts(scores, kept)
    except EspalierError:
        return
    assert allocation.counts(shuffled, kept) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(1e-6, 1e6), min_size=1, max_size=6),
    st.data(),
)
def test_apportion_is_one_list_of_priorities(shares: dict[str, float], data: st.DataObject) -> None:
    upper = {name: data.draw(st.integers(0, 12)) for name in shares}
    lower = {name: data.draw(st.integers(0, upper[name])) for name in shares}
    total = data.draw(st.integers(sum(lower.values()), sum(upper.values())))
    units = sorted(
        (j > lower[name], -shares[name] / (j - 0.5), name, j)
        for name in shares
        for j in range(1, upper[name] + 1)
    )
    expected = dict.fromkeys(shares, 0)
    for _, _, name, _ in units[:total]:
        expected[name] += 1
    assert apportion(shares, lower, upper, total) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.floats(0, 1))
def test_apportion_at_the_size_of_large_models(sizes: list[int], density: float) -> None:
    upper = {f"{i:03}": size for i, size in enumerate(sizes)}
    total = round(density * sum(sizes))
    counts = apportion(
        {name: float(size) for name, size in upper.items()}, dict.fromkeys(upper, 0), upper, total
    )
    assert sum(counts.values()) == total
    for name, size in upper.items():
        # A quota can be missed by the roundings of the others, never by more than their number.
        assert abs(counts[name] - size / sum(sizes) * total) <= len(sizes)
