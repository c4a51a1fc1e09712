import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.evaluation import paired_difference, wilson
from espalier.likeness import compare_logits, cosine_bound, weight_cosine

seeds = st.integers(0, 2**31)
scales = st.sampled_from([1e-3, 1.0, 30.0, 1e4])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 9), st.integers(2, 6), scales)
def test_similarity_is_symmetric_and_bounded(seed: int, n: int, classes: int, scale: float):
    a, b = normal(seed, 2, n, classes) * scale
    found, back = compare_logits(a, b), compare_logits(b, a)
    assert found.agreement == back.agreement
    assert abs(found.divergence - back.divergence) < 1e-12
    assert 0 <= found.divergence <= math.log(2)
    assert -1 - 1e-12 <= found.logit_cosine <= 1 + 1e-12
    assert 0 <= found.interval[0] <= found.agreement <= found.interval[1] <= 1


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 9), st.floats(-50, 50))
def test_adding_a_constant_to_all_logits_changes_no_answer(seed: int, n: int, shift: float):
    a = normal(seed, n, 4)
    found = compare_logits(a, a + shift)
    assert found.agreement > 0.99 and found.divergence < 1e-8


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(0, 1))
def test_no_weights_on_the_support_come_closer_than_the_pruned_parent(seed: int, share: float):
    generator = torch.Generator().manual_seed(seed)
    parent = {name: torch.randn(7, generator=generator) for name in "ab"}
    masks = {name: torch.rand(7, generator=generator) < share for name in "ab"}
    tuned = {name: torch.randn(7, generator=generator) * masks[name] for name in "ab"}
    pruned = {name: parent[name] * masks[name] for name in "ab"}
    bound = cosine_bound(parent, masks)
    assert weight_cosine(tuned, parent, "ab") <= bound + 1e-9
    assert abs(weight_cosine(pruned, parent, "ab") - bound) < 1e-9


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_interval_holds_the_difference_and_stays_in_range(pairs: list[tuple[bool, bool]]):
    a, b = (torch.tensor([pair[i] for pair in pairs]) for i in range(2))
    found = paired_difference(a, b)
    assert -1 <= found.interval[0] <= found.difference + 1e-12
    assert found.difference - 1e-12 <= found.interval[1] <= 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10**6), st.data())
def test_wilson_holds_the_proportion(n: int, data: st.DataObject):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
