"""Pruning a module or a checkpoint: exact counts, existing zeros, and every message."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from espalier._errors import EspalierError
from espalier.allocate import ERK, LAMP, Global, Uniform
from espalier.amount import CosineTarget
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.write import rewrite
from espalier.masks import Masks
from espalier.profiling import profile
from espalier.pruning import kept_entries, prune, prune_checkpoint
from espalier.scores import Magnitude, Random
from espalier.selection import select


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def zeros(module: nn.Module) -> dict[str, int]:
    return {name: int((p == 0).sum()) for name, p in module.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK(), LAMP(), Global(floor=0.05)])
@pytest.mark.parametrize("score", [Magnitude(), Random(3)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.837, 0.94])
def test_exactly_what_was_asked(sparsity: float, score: Magnitude | Random, allocation: Global) -> None:
    module = net()
    masks = prune(module, sparsity, score=score, allocation=allocation)
    assert sum(zeros(module).values()) == round(sparsity * 116) == masks.entries - masks.kept
    assert list(masks) == ["0.weight", "3.weight"]
    masks.verify(module)


def test_the_smallest_magnitudes_go() -> None:
    module = nn.Linear(4, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-4.0, 1.0, -2.0, 3.0]]))
    prune(module, 0.5)
    assert module.weight.tolist() == [[-4.0, 0.0, 0.0, 3.0]]


def test_equal_weights_are_kept_from_the_front() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    masks = prune(module, 0.625)
    assert masks["0.weight"].tolist() == [[True, True], [True, False]]
    assert masks["1.weight"].tolist() == [[False, False], [False, False]]


@pytest.mark.parametrize("score", [Magnitude(), Random(0)])
def test_pruning_again_keeps_the_zeros(score: Magnitude | Random) -> None:
    module = net()
    first = prune(module, 0.5, score=Random(1))
    second = prune(module, 0.7, score=score)
    assert (first & second) == second
    again = prune(module, 0.3)  # fewer zeros than there are: all nonzeros stay
    assert again == second and again.sparsity == pytest.approx(0.7, abs=0.005)


def test_only_the_selected_weights_change() -> None:
    module = net().eval()
    gradient = torch.ones(5, 16)
    module.get_parameter("3.weight").grad = gradient
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = torch.random.get_rng_state()
    masks = prune(module, 0.5, include=["3.*"], score=Random(0))
    assert list(masks) == ["3.weight"]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name != "3.weight")
    assert (
        not module.training
        and module.get_parameter("3.weight").grad is gradient
        and int(gradient.sum()) == 80
    )
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_changes_when_it_cannot_be_done() -> None:
    module = net()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(EspalierError, match=r"the largest sparsity that can be reached is 0.5"):
        prune(module, 0.9, allocation=Uniform(floor=0.5))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        module.get_parameter("3.weight")[0, 0] = float("nan")
    with pytest.raises(EspalierError, match=r"'3.weight' holds 1 entries that are NaN"):
        prune(module, 0.5, allocation=ERK())
    assert torch.equal(before["0.weight"], module.get_parameter("0.weight"))
    assert int((module.get_parameter("3.weight") == 0).sum()) == 0


def test_tensors_outside_the_selection_may_hold_anything() -> None:
    module = net()
    with torch.no_grad():
        module.get_parameter("0.bias").fill_(float("nan"))
    assert prune(module, 0.5).kept == 58


def test_an_amount_rule_chooses() -> None:
    module = net()
    checkpoint = open_checkpoint(module)
    amount = CosineTarget(0.95).choose(profile(checkpoint, select(checkpoint)))
    dense = torch.cat([p.detach().flatten() for p in module.parameters() if p.dim() > 1])
    masks = prune(module, CosineTarget(0.95))
    assert masks.kept == amount.kept
    kept = torch.cat([p.detach().flatten() for p in module.parameters() if p.dim() > 1])
    assert torch.cosine_similarity(dense, kept, dim=0) >= 0.95


@pytest.mark.parametrize("sparsity", [0, 0.0, np.float32(0.5), np.float64(0.25)])
def test_numbers_that_are_sparsities(sparsity: float) -> None:
    assert kept_entries(8, sparsity) == 8 - 8 * float(sparsity)


def test_the_count_is_rounded_to_the_nearest() -> None:
    assert kept_entries(10, 0.84) == 2 and kept_entries(10, 0.86) == 1
    assert kept_entries(10**12 + 1, 0.9) == 10**11


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (1, r"a sparsity of 1 would leave nothing; .* 0.01 prunes one percent"),
        (np.int64(1), r"a sparsity of 1 would leave nothing"),
        (1.0, r"a sparsity is a fraction in \[0, 1\), got 1.0\.$"),
        (True, r"fraction in \[0, 1\), got True"),
        (False, r"fraction in \[0, 1\), got False"),
        (90, r"got 90; did you mean 0.9\?"),
        (62.5, r"got 62.5; did you mean 0.625\?"),
        (-0.1, r"got -0.1"),
        (float("nan"), r"got nan"),
        ("0.5", r"got '0.5'"),
    ],
)
def test_numbers_that_are_not(sparsity: float, message: str) -> None:
    with pytest.raises(EspalierError, match=message):
        prune(net(), sparsity)


def test_a_file_is_pruned_like_the_module(tmp_path: Path) -> None:
    module = net()
    save_file(module.state_dict(), tmp_path / "dense.safetensors")
    checkpoint = open_checkpoint(tmp_path / "dense.safetensors")
    selection = select(checkpoint)
    masks = prune_checkpoint(checkpoint, selection, 0.8, allocation=LAMP())
    assert masks == prune(module, 0.8, allocation=LAMP())
    rewrite(checkpoint, tmp_path / "pruned.safetensors", masks.masked, {})
    written = load_file(tmp_path / "pruned.safetensors")
    for name, tensor in module.state_dict().items():
        assert torch.equal(written[name], tensor)
    assert Masks.from_zeros({name: written[name] for name in masks}) == masks


def test_a_checkpoint_is_read_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {f"{i}.weight": torch.randn(8, 8) for i in range(4)}
    checkpoint = open_checkpoint(weights)
    reads: Counter[str] = Counter()
    read = type(checkpoint).__getitem__

    def counted(self: object, name: str) -> torch.Tensor:
        reads[name] += 1
        return read(checkpoint, name)

    monkeypatch.setattr(type(checkpoint), "__getitem__", counted)
    masks = prune_checkpoint(checkpoint, select(checkpoint), 0.5)
    assert masks.kept == 128
    assert set(reads.values()) == {2}  # two passes for the threshold, and nothing yet for the masks
    masks.masked("0.weight", weights["0.weight"])
    assert reads["0.weight"] == 3 and reads["1.weight"] == 2
