"""What every allocation must keep on real modules. A new allocation is one line in ALLOCATIONS."""

import copy
import math

import pytest
import torch

from espalier._errors import EspalierError
from espalier._types import LazyTensors, Tensors
from espalier.allocate import ERK, LAMP, AbstractAllocation, Global, Uniform, UniformPlus
from espalier.masks import Masks
from espalier.scores import Evidence, Magnitude, Random, ranked
from tests.contract.cases import CASES

ALLOCATIONS: dict[str, AbstractAllocation] = {
    "global": Global(),
    "global with a floor": Global(floor=0.02),
    "uniform": Uniform(),
    "uniform with a floor": Uniform(floor=0.02),
    "uniform plus": UniformPlus(),
    "erk": ERK(),
    "erk with a floor": ERK(floor=0.02),
    "lamp": LAMP(),
    "lamp with a floor": LAMP(floor=0.02),
}
READS_THE_ORDER = {"uniform plus"}

allocations = pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=ALLOCATIONS)
cases = pytest.mark.parametrize("case", CASES)


def scores_of(case: str) -> Tensors:
    module = CASES[case].module()
    weights = {name: dict(module.named_parameters())[name] for name in CASES[case].names}
    return ranked(Magnitude(), Evidence(weights))


def entries(scores: Tensors) -> int:
    return sum(scores[name].numel() for name in scores)


@allocations
@cases
def test_sums_are_exact_and_masks_nested(allocation: AbstractAllocation, case: str) -> None:
    scores = scores_of(case)
    total = entries(scores)
    last: Masks | None = None
    for kept in sorted({round(share * total) for share in (0, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 1)}):
        try:
            counts = allocation.counts(scores, kept)
        except EspalierError as error:
            assert "the largest sparsity that can be reached is" in str(error)
            assert last is None
            continue
        masks = Masks.from_scores(scores, counts)
        assert masks.kept == kept and masks.counts == counts and list(masks) == list(scores)
        assert last is None or (last & masks) == last
        last = masks
    assert last is not None and last.sparsity == 0


@allocations
@cases
def test_zeros_that_are_there_stay(allocation: AbstractAllocation, case: str) -> None:
    module = CASES[case].module()
    weights = {name: dict(module.named_parameters())[name].detach().clone() for name in CASES[case].names}
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor.masked_fill_(torch.rand(tensor.shape, generator=generator) < 0.6, 0.0)
    nonzero = Masks.from_zeros(weights)
    for score in (Magnitude(), Random(0)):
        scores = ranked(score, Evidence(weights))
        for kept in (nonzero.kept - 1, nonzero.kept, nonzero.entries):
            masks = Masks.from_scores(scores, allocation.counts(scores, kept))
            assert masks.kept == min(kept, nonzero.kept)
            assert (masks & nonzero) == masks


@allocations
def test_scores_are_left_as_they_were_and_may_be_read_on_access(allocation: AbstractAllocation) -> None:
    scores = dict(scores_of("lstm"))
    before = copy.deepcopy(scores)
    counts = allocation.counts(scores, 200)
    assert all(torch.equal(scores[name], before[name]) for name in scores)
    assert allocation.counts(LazyTensors(list(scores), scores.__getitem__), 200) == counts


@pytest.mark.parametrize("name", sorted(set(ALLOCATIONS) - READS_THE_ORDER))
@cases
def test_the_order_of_the_names_does_not_matter(name: str, case: str) -> None:
    scores = scores_of(case)
    shuffled = {key: scores[key] for key in reversed(list(scores))}
    kept = entries(scores) // 3
    assert ALLOCATIONS[name].counts(shuffled, kept) == ALLOCATIONS[name].counts(scores, kept)


@allocations
def test_scale_changes_global_ranking_only(allocation: AbstractAllocation) -> None:
    """One layer a million times smaller: the failure that the ranking of all entries walks into."""
    scores = dict(scores_of("depthwise convolution"))
    kept = entries(scores) * 3 // 4
    before = allocation.counts(scores, kept)
    scores["2.weight"] = scores["2.weight"] * 2.0**-20
    after = allocation.counts(scores, kept)
    assert (before == after) == (not isinstance(allocation, Global))


@allocations
def test_a_floor_is_kept(allocation: AbstractAllocation) -> None:
    scores = dict(scores_of("depthwise convolution"))
    scores["2.weight"] = scores["2.weight"] * 1e-6
    counts = allocation.counts(scores, entries(scores) * 3 // 4)
    for name, tensor in scores.items():
        assert counts[name] >= math.ceil(getattr(allocation, "floor", 0.0) * tensor.numel())


@allocations
def test_allocations_are_values(allocation: AbstractAllocation) -> None:
    assert copy.deepcopy(allocation) == allocation and hash(copy.deepcopy(allocation)) == hash(allocation)
