"""Algebra, packing and files, for any bits and shapes."""

import math
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier.masks import Masks, indivisible


@st.composite
def networks(draw: st.DrawFn, values: st.SearchStrategy[bool] | None = None) -> dict[str, Tensor]:
    values = values or st.booleans()
    tensors = {}
    for name in draw(st.lists(st.text("abc.1é", min_size=1, max_size=4), max_size=4, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        count = math.prod(shape)
        tensors[name] = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.bool)
        tensors[name] = tensors[name].view(shape)
    return tensors


def another(tensors: dict[str, Tensor], data: st.DataObject) -> dict[str, Tensor]:
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(t.shape, generator=generator) > 0.5 for name, t in tensors.items()}


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_algebra_is_that_of_bool_tensors(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    others = another(tensors, data)
    one, other = Masks(tensors), Masks(others)
    for name, tensor in tensors.items():
        assert torch.equal(one[name], tensor)
        assert torch.equal((one & other)[name], tensor & others[name])
        assert torch.equal((one | other)[name], tensor | others[name])
        assert torch.equal((~one)[name], ~tensor)
    assert ~~one == one
    assert ~(one & other) == ~one | ~other
    assert one.kept + (~one).kept == one.entries
    assert one.counts == {name: int(t.sum()) for name, t in tensors.items()}
    assert one.overlap(other) == other.overlap(one)
    assert (one == other) == all(torch.equal(t, others[name]) for name, t in tensors.items())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_files_give_back_what_was_saved(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    masks = Masks(tensors)
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert again == masks and again.shapes == masks.shapes


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_masks_of_a_pruned_network_are_found_again(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    masks = Masks(tensors)
    weights = {name: torch.randn(t.shape) + 10 for name, t in tensors.items()}
    masks.apply_(weights)
    masks.verify(weights)
    assert Masks.from_zeros(weights) == masks


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 6),
    st.data(),
)
def test_n_of_every_m(rows: int, groups: int, kernel: list[int], m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m))
    scores = torch.randint(0, 4, (rows, groups * m, *kernel)).float()
    masks = Masks.from_nm({"w": scores}, n, m)
    assert indivisible(masks.shapes, m) == ()
    kept = masks["w"].unflatten(1, (groups, m))
    assert (kept.sum(2) == n).all()
    ranked = scores.unflatten(1, (groups, m))
    worst_kept = torch.where(kept, ranked, torch.inf).amin(2)
    best_pruned = torch.where(kept, -torch.inf, ranked).amax(2)
    assert (worst_kept >= best_pruned).all()
