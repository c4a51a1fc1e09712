"""Pruned layers with a weight norm or a spectral norm have finite outputs, and exactly the sparsity asked for."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from espalier._errors import EspalierError
from espalier.allocate import ERK, LAMP, AbstractAllocation, Global, Uniform, UniformPlus
from espalier.checkpoint import open_checkpoint
from espalier.methods.evidence import gather
from espalier.methods.masked import choose
from espalier.pruned_file import prune_file
from espalier.pruning import prune
from espalier.scores import Magnitude, Random
from espalier.scores._base import with_required
from espalier.selection import select

INF = float("inf")


def old_weight_norm(layer: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer, **options)


def old_spectral_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(layer)


NORMS: dict[str, Callable[[Any], nn.Module]] = {
    "parametrized": parametrizations.weight_norm,
    "parametrized along 1": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "parametrized whole": lambda layer: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "old": old_weight_norm,
    "old along 2": lambda layer: old_weight_norm(layer, dim=2),
    "old whole": lambda layer: old_weight_norm(layer, dim=None),
    "spectral": parametrizations.spectral_norm,
    "old spectral": old_spectral_norm,
}
ALLOCATIONS = [Global(), Global(floor=0.01), Uniform(), UniformPlus(), ERK(), LAMP()]


def network(norm: str, scale: float = 1.0) -> nn.Sequential:
    """Two normed convolutions before a plain one whose weights are larger, so that a global ranking empties rows."""
    torch.manual_seed(0)
    net = nn.Sequential(
        NORMS[norm](nn.Conv1d(8, 16, 3)), nn.Tanh(), NORMS[norm](nn.Conv1d(16, 16, 3)), nn.Conv1d(16, 4, 3)
    )
    with torch.no_grad():
        net.get_parameter("3.weight").mul_(scale)
    return net.eval()


def pruned_zeros(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> int:
    return sum(int((tensors[name] == 0).sum()) for name in names)


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
@pytest.mark.parametrize("norm", NORMS)
def test_a_pruned_module_is_finite_and_exact(norm: str, allocation: AbstractAllocation) -> None:
    net = network(norm, scale=100.0)
    selection = select(open_checkpoint(net))
    magnitudes = {n: p.clone() for n, p in net.named_parameters() if n.endswith(("original0", "_g"))}
    assert not set(magnitudes) & set(selection.names)
    assert not set(magnitudes) & set(select(open_checkpoint(net), "all").names)
    assert len(selection.names) == 3
    sparsity = 0.6 if isinstance(allocation, UniformPlus) else 0.8  # a dense first layer leaves no more
    masks = prune(net, sparsity, allocation=allocation)
    state = dict(net.named_parameters())
    assert (
        pruned_zeros(state, selection.names)
        == round(sparsity * selection.entries)
        == masks.entries - masks.kept
    )
    assert net(torch.randn(2, 8, 20)).isfinite().all()
    assert all(torch.equal(state[name], before) for name, before in magnitudes.items())


@pytest.mark.parametrize("norm", NORMS)
def test_a_pruned_file_is_the_pruned_module(norm: str, tmp_path: Path) -> None:
    net = network(norm, scale=100.0)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    selection = select(checkpoint)
    assert selection == select(open_checkpoint(net.state_dict()))
    assert selection.names == select(open_checkpoint(net)).names
    result = prune_file(checkpoint, selection, 0.9, tmp_path / "y.safetensors")
    assert result.zeros == round(0.9 * selection.entries)
    masks = prune(net, 0.9)
    net.load_state_dict(load_file(tmp_path / "y.safetensors"))
    masks.verify(net)
    assert net(torch.randn(2, 8, 20)).isfinite().all()


def test_a_larger_budget_takes_no_entry_away_and_random_scores_fill_every_row() -> None:
    for allocation in (Global(), Uniform(), ERK(), LAMP()):
        last: dict[str, int] = {}
        for sparsity in (0.95, 0.9, 0.7, 0.3, 0.0):
            masks = prune(network("parametrized"), sparsity, score=Random(1), allocation=allocation)
            assert all(last.get(name, 0) <= count for name, count in masks.counts.items())
            for name in ("0.parametrizations.weight.original1", "2.parametrizations.weight.original1"):
                assert masks[name].flatten(1).any(1).all()
            last = masks.counts


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
def test_a_sparsity_that_empties_rows_is_refused(allocation: AbstractAllocation) -> None:
    net = network("parametrized")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(EspalierError, match=r"row of a weight norm.* largest sparsity that can be reached"):
        prune(net, 0.995, allocation=allocation)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_row_of_zeros_stays_and_needs_nothing() -> None:
    net = network("old")
    with torch.no_grad():
        net.get_parameter("0.weight_v")[0] = 0
    masks = prune(net, 0.9)
    rows = masks["0.weight_v"].flatten(1).any(1)
    assert not rows[0] and rows[1:].all()
    assert masks.sparsity == 1 - (masks.entries - round(0.9 * masks.entries)) / masks.entries


def test_masks_of_training_keep_every_row_too() -> None:
    net = network("old", scale=1000.0)
    names = select(open_checkpoint(net)).names
    masks = choose(Magnitude(), Global(), gather(net, names, frozenset({"weights"}), None), 0.9)
    assert masks["0.weight_v"].flatten(1).any(1).all()


def test_the_best_entry_of_each_group_is_required() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [-INF, -INF, -INF], [-2.0, -INF, INF]])
    top = torch.finfo(torch.float32).max
    assert with_required(scores, (3, 1)).tolist() == [[1, INF, 3], [-INF] * 3, [-2, -INF, INF]]
    assert with_required(scores, (1, 3)).tolist() == [[INF, INF, 3], [-INF] * 3, [-2, -INF, INF]]
    assert with_required(scores, (1, 1)).tolist() == [[1, 3, 3], [-INF] * 3, [-2, -INF, INF]]
    assert with_required(torch.tensor([[INF, INF]]), (1, 1)).tolist() == [[INF, top]]
    assert with_required(torch.zeros(0, 3), (0, 1)).shape == (0, 3)


@pytest.mark.parametrize(
    "names",
    [
        ("a.w_v", "a.w_g"),
        ("a.value_v", "a.value_g"),
        ("a.weight_v", "b.weight_g"),
        ("a.weight_v", "a.weight_u"),
    ],
)
def test_other_names_are_no_norm(names: tuple[str, str]) -> None:
    selection = select(open_checkpoint({name: torch.rand(4, 4) for name in names}))
    assert selection.names == names and not selection.groups


def test_a_normed_embedding_and_norm_keep_their_kind() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Embedding(5, 4)), nn.Linear(4, 4))
    assert select(open_checkpoint(net)).names == ("1.weight",)
    named = {
        "embed.weight_g": torch.rand(5, 1),
        "embed.weight_v": torch.rand(5, 4),
        "w.weight": torch.rand(2, 2),
    }
    assert select(open_checkpoint(named)).names == ("w.weight",)


def test_other_parametrizations_are_weights() -> None:
    net = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)))
    selection = select(open_checkpoint(net))
    assert selection.names == ("0.parametrizations.weight.original",) and not selection.groups
