"""Layer-wise pruning: rules by hand and against a slow transcription, the driver on modules of every kind."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier.layerwise import NM, AbstractLayerRule, LayerInputs, SparseGPT, Wanda, prune_linears
from espalier.layerwise._base import highest_of_groups
from espalier.layerwise.sparsegpt import inverse_factor
from espalier.layerwise.wanda import highest_of_rows
from espalier.masks import Masks
from tests.reference.scores import sparsegpt

RULES: list[AbstractLayerRule] = [
    Wanda(),
    SparseGPT(),
    SparseGPT(block=8),
    SparseGPT(block=12, damping=0.1, update=False),
]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)
targets = pytest.mark.parametrize("target", [0.0, 0.37, 0.5, 0.99, NM(2, 4), NM(1, 2)], ids=repr)


def inputs_of(x: Tensor) -> LayerInputs:
    cols = x.shape[-1]
    empty = LayerInputs(
        0, torch.zeros(cols, dtype=torch.float64), torch.zeros(cols, cols, dtype=torch.float64)
    )
    return empty.plus(x)


def correlated(rows: int, cols: int) -> Tensor:
    return torch.randn(rows, cols) @ (torch.eye(cols) + 0.5 * torch.randn(cols, cols))


def error(weight: Tensor, pruned: Tensor, x: Tensor) -> float:
    return float(((weight - pruned) @ x.T).square().sum())


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[3.0, -2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    x = torch.tensor([[1.0, 0.0, 3.0, 4.0], [0.0, 2.0, 0.0, 3.0]])  # norms 1, 2, 3, 5
    pruned, kept = Wanda().prune(weight, inputs_of(x), 0.5)  # scores 3, 4, 3, 2.5 and 1, 2, 3, 5
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert pruned.tolist() == [[3.0, -2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    _, kept = Wanda().prune(weight, inputs_of(x), NM(1, 2))
    assert kept.tolist() == [[False, True, True, False], [False, True, False, True]]


def test_rows_lose_the_same_number_up_to_one_and_the_layer_exactly_what_is_asked() -> None:
    scores = torch.randn(7, 13)
    for sparsity in (0.0, 0.1, 0.31, 0.5, 0.77, 0.99):
        lost = (~highest_of_rows(scores, sparsity)).sum(1)
        assert int(lost.sum()) == round(sparsity * 91)
        assert int(lost.max() - lost.min()) <= 1


def test_the_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    gram = torch.randn(40, 9).double()
    gram = gram.T @ gram
    upper = inverse_factor(gram.clone(), 0.05)
    damped = gram + 0.05 * gram.diagonal().mean() * torch.eye(9)
    torch.testing.assert_close(upper, torch.linalg.cholesky(torch.linalg.inv(damped), upper=True))


@pytest.mark.parametrize("block", [1, 16, 40, 64])
def test_sparsegpt_is_the_surgeon_weight_by_weight(block: int) -> None:
    weight, x = torch.randn(5, 40).double(), correlated(100, 40).double()
    pruned, kept = SparseGPT(block=block).prune(weight, inputs_of(x), 0.6)
    torch.testing.assert_close(pruned, sparsegpt(weight, x.T @ x, kept, 0.01), rtol=1e-7, atol=1e-9)
    assert torch.equal(pruned != 0, kept)


def test_sparsegpt_on_uncorrelated_equal_inputs_is_magnitude() -> None:
    weight = torch.randn(6, 8).double()
    pruned, _ = SparseGPT(block=8).prune(weight, inputs_of(torch.eye(8).double()), 0.5)
    smallest = weight.abs().flatten().sort().values[24]
    assert torch.equal(pruned, weight.masked_fill(weight.abs() < smallest, 0.0))


def test_the_surgeon_beats_its_own_mask_and_wanda_on_correlated_inputs() -> None:
    weight = torch.randn(16, 64)
    x = torch.randn(500, 16) @ torch.randn(16, 64) + 0.3 * torch.randn(500, 64)  # few directions, and noise
    found = {}
    for name, rule in {"full": SparseGPT(), "mask": SparseGPT(update=False), "wanda": Wanda()}.items():
        found[name] = error(weight, rule.prune(weight, inputs_of(x), 0.5)[0], x)
    assert found["full"] < 0.5 * min(found["mask"], found["wanda"])


@rules
@targets
def test_counts_are_exact_and_the_arguments_left_alone(rule: AbstractLayerRule, target: float | NM) -> None:
    weight, x = torch.randn(10, 24), correlated(50, 24)
    inputs = inputs_of(x)
    before = copy.deepcopy((weight, inputs.squares))
    pruned, kept = rule.prune(weight, inputs, target)
    assert torch.equal(pruned != 0, kept) and pruned.is_contiguous()
    assert not torch.signbit(pruned[~kept]).any()
    if isinstance(target, NM):
        assert (kept.view(10, -1, target.m).sum(-1) == target.n).all()
    else:
        assert int((~kept).sum()) == round(target * 240)
    assert torch.equal(weight, before[0]) and torch.equal(inputs.squares, before[1])


@rules
def test_zeros_that_are_there_stay(rule: AbstractLayerRule) -> None:
    weight, x = torch.randn(10, 24), correlated(50, 24)
    zero = torch.rand(10, 24, generator=torch.Generator().manual_seed(1)) < 0.4
    weight[zero] = 0.0
    for target in (0.2, 0.7, NM(2, 4)):
        pruned, kept = rule.prune(weight, inputs_of(x), target)
        assert not (pruned[zero] != 0).any() and torch.equal(pruned != 0, kept)
    assert int((rule.prune(weight, inputs_of(x), 0.95)[0] == 0).sum()) == round(0.95 * 240)


@rules
def test_inputs_that_are_never_active_are_pruned_first_and_harm_nothing(rule: AbstractLayerRule) -> None:
    weight, x = torch.randn(4, 12), correlated(50, 12)
    x[:, [2, 7]] = 0.0
    pruned, kept = rule.prune(weight, inputs_of(x), 0.5)
    assert pruned.isfinite().all() and int((~kept).sum()) == 24


class Block(nn.Module):
    """Called by keyword, with a skip connection, a layer used twice, and one never used."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(16, 8), nn.Linear(8, 16, bias=False)
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        x = self.norm(x + self.drop(self.second(torch.relu(self.first(input=x)))))
        out: Tensor = self.twice(self.twice(x)) * scale
        return out


NAMES = ["second.weight", "first.weight", "twice.weight"]


def batches() -> list[Any]:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    return [x, (x + 1,), {"x": x - 1, "scale": 2.0}]


@rules
@pytest.mark.parametrize("sequential", [True, False])
def test_layers_of_a_module(rule: AbstractLayerRule, sequential: bool) -> None:
    model = Block().train()
    before = copy.deepcopy(model.state_dict())
    identities, state = {n: id(p) for n, p in model.named_parameters()}, torch.random.get_rng_state()
    seen: list[tuple[int, int, str]] = []
    masks = prune_linears(
        model,
        batches(),
        rule,
        0.6,
        exclude=["unused*"],
        sequential=sequential,
        progress=lambda *args: seen.append(args),
    )
    assert list(masks) == NAMES
    assert [name for _, _, name in seen] == ["first.weight", "second.weight", "twice.weight"]
    assert seen[-1][:2] == (3, 3)
    for name in NAMES:
        weight = model.get_parameter(name)
        assert masks.counts[name] == weight.numel() - round(0.6 * weight.numel())
        assert torch.equal(weight != 0, masks[name])
    assert all(module.training for module in model.modules())
    assert {n: id(p) for n, p in model.named_parameters()} == identities
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(NAMES)


def test_sequential_layers_see_what_the_pruned_ones_before_them_make() -> None:
    """The second layer's weights are those the rule gives for the inputs it really gets."""
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), torch.randn(60, 8)
    dense = copy.deepcopy(model)
    prune_linears(model, [x[:30], x[30:]], SparseGPT(), 0.5)
    with torch.no_grad():
        hidden = torch.relu(model[0](x))
        expected, _ = SparseGPT().prune(dense.get_parameter("2.weight"), inputs_of(hidden), 0.5)
        torch.testing.assert_close(model.get_parameter("2.weight"), expected, rtol=1e-3, atol=1e-5)
        one_pass = copy.deepcopy(dense)
        prune_linears(one_pass, [x], SparseGPT(), 0.5, sequential=False)
        expected, _ = SparseGPT().prune(
            dense.get_parameter("2.weight"), inputs_of(torch.relu(dense[0](x))), 0.5
        )
        torch.testing.assert_close(one_pass.get_parameter("2.weight"), expected, rtol=1e-3, atol=1e-5)


@rules
def test_the_same_inputs_give_the_same_bits_and_two_to_four_fits(rule: AbstractLayerRule) -> None:
    one, other = Block(), Block()
    other.load_state_dict(one.state_dict())
    for model in (one, other):
        prune_linears(model, batches(), rule, NM(), exclude=["unused*"])
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    for name in NAMES:
        assert (one.get_parameter(name).unflatten(1, (-1, 4)) != 0).sum(-1).eq(2).all()


@rules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_stay(rule: AbstractLayerRule, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 8)).to(dtype)
    masks = prune_linears(model, [torch.randn(50, 16).to(dtype)], rule, 0.5)
    weight = model.get_parameter("0.weight")
    assert weight.dtype == dtype and int((weight == 0).sum()) == 64 == masks.entries - masks.kept


def test_refusals() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(EspalierError, match="needs calibration inputs, and there are none"):
        prune_linears(nn.Linear(8, 4), [], Wanda(), 0.5)
    with pytest.raises(EspalierError, match=r"there is no nn\.Linear layer in this module"):
        prune_linears(nn.Conv1d(8, 4, 1), [x], Wanda(), 0.5)
    with pytest.raises(EspalierError, match=r"no weight of a linear layer is selected \(only 0.weight\)"):
        prune_linears(nn.Sequential(nn.Conv1d(8, 4, 1), nn.Linear(4, 4)), [x], Wanda(), 0.5, include=["0.*"])
    with pytest.raises(EspalierError, match=r"never reach 'unused\.weight'; leave them out with `exclude`"):
        prune_linears(Block(), [x], Wanda(), 0.5)
    with pytest.raises(EspalierError, match=r"a sparsity is a fraction in \[0, 1\), got 1.5"):
        prune_linears(nn.Linear(8, 4), [x], Wanda(), 1.5)
    with pytest.raises(EspalierError, match=r"'weight' has 6 inputs, which cannot be cut into groups of 4"):
        prune_linears(nn.Linear(6, 4), [x], Wanda(), NM())
    with pytest.raises(EspalierError, match="a block of 6 columns cannot be cut into groups of 4"):
        SparseGPT(block=6).prune(torch.ones(4, 8), inputs_of(x), NM())
    with pytest.raises(EspalierError, match="the calibration inputs of a layer are all zero"):
        prune_linears(nn.Linear(8, 4), [torch.zeros(2, 8)], SparseGPT(), 0.5)
    with pytest.raises(EspalierError, match="the calibration inputs of 'weight' are not finite"):
        prune_linears(nn.Linear(8, 4), [x * math.nan], Wanda(), 0.5)
    with pytest.raises(EspalierError, match="is not positive definite at damping 1e-30; raise `damping`"):
        SparseGPT(damping=1e-30).prune(torch.randn(4, 8), inputs_of(x[:1] * 1e3), 0.5)
    broken = nn.Linear(8, 4)
    with torch.no_grad():
        broken.weight[0, 0] = math.nan
    with pytest.raises(EspalierError, match="'weight' holds weights that are NaN or infinite"):
        prune_linears(broken, [x], Wanda(), 0.5)
    with pytest.raises(EspalierError, match="cannot keep 4 of every 4 entries; N:M needs 1 <= N < M"):
        NM(4, 4)
    with pytest.raises(EspalierError, match="`block` counts columns, at least 1, got 0"):
        SparseGPT(block=0)
    with pytest.raises(EspalierError, match="`damping` must be a positive number, got 0"):
        SparseGPT(damping=0.0)


def test_groups_keep_the_same_entries_as_masks_from_nm() -> None:
    scores = torch.randn(6, 24).round(decimals=1)
    scores[scores.abs() < 0.3] = -torch.inf
    for n, m in ((1, 2), (2, 4), (3, 8), (5, 6)):
        expected = Masks.from_nm({"w": scores}, n, m)["w"]
        assert torch.equal(highest_of_groups(scores, NM(n, m)), expected)
