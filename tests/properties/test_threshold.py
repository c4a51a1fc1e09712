"""The radix selection against a plain sort of (score, name, index), for any floats."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier.threshold import top_counts, top_mask

WIDTHS = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}
NAMES = st.text("abc.1", min_size=1, max_size=3)
SPECIAL = [0.0, -0.0, 1.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, 3.0]


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Tensor]:
    """A few tensors, some of one dtype, some mixed, with many ties."""
    tensors = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(list(WIDTHS)))
        values = st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False, width=32))
        tensors[name] = torch.tensor(draw(st.lists(values, max_size=12)), dtype=torch.float64).to(dtype)
    return tensors


def reference(scores: dict[str, Tensor], kept: int) -> dict[str, list[bool]]:
    """Sorts every entry of the network in the documented order."""
    entries = [(-v, name, i) for name, t in scores.items() for i, v in enumerate(t.double().tolist())]
    # -0.0 == 0.0 in Python, so the key already treats both zeros as equal.
    first = {(name, i) for score, name, i in sorted(entries)[:kept] if score != math.inf}
    return {name: [(name, i) in first for i in range(len(t))] for name, t in scores.items()}


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_counts_and_masks_are_those_of_a_sort(scores: dict[str, Tensor], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, sum(len(t) for t in scores.values())))
    counts = top_counts(scores, kept)
    masks = {name: top_mask(t, counts[name], name).tolist() for name, t in scores.items()}
    assert masks == reference(scores, kept)
    shuffled = dict(reversed(list(scores.items())))
    assert top_counts(shuffled, kept) == counts
    assert list(top_counts(shuffled, kept)) == list(shuffled)


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_a_larger_mask_contains_a_smaller_one(scores: dict[str, Tensor], data: st.DataObject) -> None:
    for tensor in scores.values():
        fewer = data.draw(st.integers(0, len(tensor)))
        more = data.draw(st.integers(fewer, len(tensor)))
        small, large = top_mask(tensor, fewer), top_mask(tensor, more)
        assert int(small.sum()) == fewer and int(large.sum()) == more
        assert not (small & ~large).any()
