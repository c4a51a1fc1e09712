"""What a held module must survive: every case x every optimizer, and everything people do to modules.

`torch.nn.utils.prune` is run once in the same situations, to keep our comparison with it true.
"""

import copy
import io
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from espalier._errors import EspalierError
from espalier.apply import Hold, hold
from espalier.masks import Masks, named_parameters
from espalier.pruning import prune
from espalier.scores import Random
from tests.contract.cases import CASES, Case, LowRank, TiedLinear

Optimizer = torch.optim.Optimizer
Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd maximize loop": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, maximize=True, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}

CNN = CASES["cnn with batch norm"]


def trained(parameters: Iterator[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def pruned(case: Case, sparsity: float = 0.6) -> tuple[nn.Module, Masks]:
    module = case.module()
    return module, prune(module, sparsity, score=Random(1), scope=case.scope)  # type: ignore[arg-type]


def train(case: Case, module: nn.Module, optimizer: Optimizer, steps: int = 3, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        case.loss(module, seed=step).backward()
        optimizer.step()


def setup(
    case: Case, make: Make = OPTIMIZERS["sgd momentum decay"]
) -> tuple[nn.Module, Optimizer, Masks, Hold]:
    module, masks = pruned(case)
    optimizer = make(trained(module.parameters()))
    return module, optimizer, masks, hold(module, masks, optimizer)


def assert_zero(module: nn.Module, masks: Masks) -> None:
    """Exactly +0.0 where pruned, and still trained elsewhere."""
    masks.verify(module)
    parameters = named_parameters(module)
    for name in masks:
        weights = parameters[name].detach()[~masks[name]]
        assert not torch.signbit(weights).any(), f"{name} holds -0.0"
        assert weights.dtype == parameters[name].dtype


def assert_state_zero(module: nn.Module, masks: Masks, optimizer: Optimizer) -> None:
    for name, parameter in named_parameters(module).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if (
                name in masks
                and isinstance(value, Tensor)
                and value.shape == parameter.shape
                and key != "step"
            ):
                assert (value[~masks[name]] == 0).all(), f"{key} of {name}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_zeros_stay_zero_in_every_module_under_every_optimizer(case: str, optimizer: str) -> None:
    module = CASES[case].module()
    keys, identities = list(module.state_dict()), [id(p) for p in module.parameters()]
    masks = prune(module, 0.6, score=Random(1), scope=CASES[case].scope)  # type: ignore[arg-type]
    assert tuple(masks) == CASES[case].names
    assert masks.entries - masks.kept == round(0.6 * masks.entries)
    step = OPTIMIZERS[optimizer](trained(module.parameters()))
    before = copy.deepcopy(module.state_dict())
    with hold(module, masks, step):
        train(CASES[case], module, step)
        assert_zero(module, masks)
    assert list(module.state_dict()) == keys and [id(p) for p in module.parameters()] == identities
    assert any(not torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd momentum decay", "adam", "adamw fused", "rmsprop"])
def test_state_gathered_before_holding_is_cleared(optimizer: str) -> None:
    module = CNN.module()
    step = OPTIMIZERS[optimizer](module.parameters())
    train(CNN, module, step)
    masks = prune(module, 0.5)
    with hold(module, masks, step):
        assert_state_zero(module, masks, step)
        train(CNN, module, step)
        assert_zero(module, masks)


def test_without_holding_zeros_come_back() -> None:
    """The need for all this: after one step of plain momentum nothing is zero."""
    module = CNN.module()
    step = OPTIMIZERS["sgd momentum decay"](module.parameters())
    train(CNN, module, step)
    masks = prune(module, 0.8)
    train(CNN, module, step, steps=1)
    with pytest.raises(EspalierError, match=r"pruned entries of .* are not zero"):
        masks.verify(module)


def test_holding_changes_nothing_that_is_kept() -> None:
    """With every entry kept the training is bit for bit the same as without."""
    held, free = CNN.module(), CNN.module()
    masks = prune(held, 0.0)
    steps = [OPTIMIZERS["adamw"](module.parameters()) for module in (held, free)]
    with hold(held, masks, steps[0]):
        train(CNN, held, steps[0])
        train(CNN, free, steps[1])
    for name, value in free.state_dict().items():
        assert torch.equal(held.state_dict()[name], value)


def test_release_ends_it() -> None:
    module, step, _masks, held = setup(CNN)
    train(CNN, module, step)
    held.release()
    held.release()
    with torch.no_grad():
        named_parameters(module)["0.weight"].add_(1)
    train(CNN, module, step, steps=1)
    with pytest.raises(EspalierError, match=r"pruned entries of '0.weight' are not zero"):
        held.verify()
    held.apply_()
    held.verify()
    dense = CNN.module(1).state_dict()
    module.load_state_dict(dense)
    assert torch.equal(module.state_dict()["0.weight"], dense["0.weight"])


def test_an_error_inside_releases_too() -> None:
    _module, step, _masks, held = setup(CNN)
    with pytest.raises(KeyboardInterrupt), held:
        raise KeyboardInterrupt
    assert not step._optimizer_step_post_hooks


@pytest.mark.parametrize("case", CASES)
def test_deepcopy_of_module_optimizer_and_hold_is_held(case: str) -> None:
    module, step, masks, held = setup(CASES[case])
    train(CASES[case], module, step)
    module2, step2, held2 = copy.deepcopy((module, step, held))
    assert held2.module is module2 and held2.optimizer is step2
    for m, s in ((module, step), (module2, step2)):
        train(CASES[case], m, s, start=3)
        assert_zero(m, masks)
    for name, value in module.state_dict().items():
        assert torch.equal(module2.state_dict()[name], value)
    held.release()
    train(CASES[case], module2, step2)
    assert_zero(module2, masks)
    held2.release()
    assert not step2._optimizer_step_post_hooks and not module2._load_state_dict_post_hooks


def test_deepcopy_of_the_module_alone_copies_no_optimizer() -> None:
    module, _step, masks, _held = setup(CNN)
    twin = copy.deepcopy(module)
    assert_zero(twin, masks)
    twin.load_state_dict(CNN.module(1).state_dict())
    assert_zero(twin, masks)
    with pytest.raises(EspalierError, match="not zero"):
        masks.verify(CNN.module(1))
    hooks = list(twin._load_state_dict_post_hooks.values())
    assert hooks and all(isinstance(hook, MethodType) for hook in hooks)
    assert not any(isinstance(value, Optimizer) for hook in hooks for value in vars(hook.__self__).values())  # type: ignore[attr-defined]


def test_a_pickle_of_all_three_is_held() -> None:
    module, step, masks, held = setup(CNN)
    file = io.BytesIO()
    torch.save((module, step, held), file)
    file.seek(0)
    module2, step2, _ = torch.load(file, weights_only=False)
    train(CNN, module2, step2)
    assert_zero(module2, masks)


@pytest.mark.parametrize("case", CASES)
def test_strict_loading_both_ways(case: str) -> None:
    module, step, masks, _held = setup(CASES[case])
    train(CASES[case], module, step)
    fresh = CASES[case].module(1)
    fresh.load_state_dict(module.state_dict(), strict=True)
    masks.verify(fresh)
    module.load_state_dict(CASES[case].module(2).state_dict(), strict=True)
    assert_zero(module, masks)
    train(CASES[case], module, step)
    assert_zero(module, masks)


def test_loading_by_assignment_is_pruned_too() -> None:
    module, _step, masks, _held = setup(CNN)
    module.load_state_dict(CNN.module(1).state_dict(), assign=True)
    assert_zero(module, masks)


@pytest.mark.parametrize("optimizer", ["sgd momentum decay", "adam", "adamw fused"])
@pytest.mark.parametrize("case", ["cnn with batch norm", "tied weights", "lstm"])
def test_resuming_is_bit_identical(case: str, optimizer: str) -> None:
    module, step, masks, _held = setup(CASES[case], OPTIMIZERS[optimizer])
    train(CASES[case], module, step, steps=3)
    file = io.BytesIO()
    torch.save({"model": module.state_dict(), "optimizer": step.state_dict()}, file)
    train(CASES[case], module, step, steps=3, start=3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    module2 = CASES[case].module(5)
    module2.load_state_dict(saved["model"], strict=True)
    step2 = OPTIMIZERS[optimizer](trained(module2.parameters()))
    masks2 = Masks.from_zeros({name: named_parameters(module2)[name] for name in masks})
    assert masks2 == masks
    with hold(module2, masks2, step2):
        step2.load_state_dict(saved["optimizer"])
        train(CASES[case], module2, step2, steps=3, start=3)
        assert_zero(module2, masks)
    for name, value in module.state_dict().items():
        assert torch.equal(module2.state_dict()[name], value)


def test_state_of_a_dense_run_is_cleared_when_loaded() -> None:
    dense = CNN.module()
    step = OPTIMIZERS["adam"](dense.parameters())
    train(CNN, dense, step)
    module, step2, masks, _held = setup(CNN, OPTIMIZERS["adam"])
    step2.load_state_dict(step.state_dict())
    assert_state_zero(module, masks, step2)
    assert step2.state[named_parameters(module)["0.weight"]]["step"] == 3


def test_closures_see_the_pruned_network_only() -> None:
    module, masks = pruned(CNN)
    step = torch.optim.LBFGS(module.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    losses = []

    def closure() -> Tensor:
        step.zero_grad()
        loss = CNN.loss(module)
        loss.backward()
        masks.verify(module)  # also in the middle of a line search
        losses.append(loss.item())
        return loss

    with hold(module, masks, step):
        for _ in range(3):
            step.step(closure)
        step.step(closure=closure)
        assert_zero(module, masks)
    assert losses[-1] < losses[0]


def test_scaler_steps_taken_and_skipped() -> None:
    module, step, masks, _held = setup(CNN)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for broken in (False, True, False):
        step.zero_grad()
        scaler.scale(CNN.loss(module)).backward()
        if broken:
            named_parameters(module)["0.weight"].grad.fill_(float("inf"))  # type: ignore[union-attr]
        before = module.state_dict()["0.weight"].clone()
        scaler.step(step)
        scaler.update()
        assert torch.equal(before, module.state_dict()["0.weight"]) == broken
        assert_zero(module, masks)


def test_gradients_that_are_not_finite_do_not_reach_what_is_pruned() -> None:
    module, step, masks, _held = setup(CNN, OPTIMIZERS["adam"])
    CNN.loss(module).backward()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    step.step()
    assert_zero(module, masks)
    assert_state_zero(module, masks, step)


def test_parameters_without_gradient_and_groups_added_later() -> None:
    module, masks = pruned(CNN)
    first, *others = module.parameters()
    step = torch.optim.SGD([first], lr=0.1, momentum=0.9, weight_decay=0.1)
    with hold(module, masks, step):
        train(CNN, module, step, steps=1)
        step.add_param_group({"params": others, "lr": 0.5})
        train(CNN, module, step)
        assert_zero(module, masks)
        step.zero_grad(set_to_none=True)
        step.step()
        assert_zero(module, masks)


def test_sparse_gradients_of_embeddings() -> None:
    module = nn.Embedding(10, 4, sparse=True)
    masks = prune(module, 0.5, scope="all")
    step = torch.optim.SparseAdam(module.parameters(), lr=0.1)
    with hold(module, masks, step):
        for _ in range(3):
            step.zero_grad()
            module(torch.tensor([1, 1, 3, 7])).pow(2).sum().backward()
            step.step()
        assert_zero(module, masks)
        assert_state_zero(module, masks, step)


def test_bfloat16_keeps_its_dtype() -> None:
    case = CASES["depthwise convolution"]
    module = case.module().to(torch.bfloat16)
    masks = prune(module, 0.7)
    step = OPTIMIZERS["adamw"](module.parameters())
    with hold(module, masks, step):
        train(case, module, step)
        assert_zero(module, masks)
    assert masks.entries - masks.kept == round(0.7 * masks.entries)


def test_a_module_converted_while_held() -> None:
    module, step, masks, _held = setup(CASES["depthwise convolution"], OPTIMIZERS["sgd"])
    module.to(torch.float64)
    train(CASES["depthwise convolution"], module, step)
    assert_zero(module, masks)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules(backend: str) -> None:
    module, masks = pruned(CNN)
    compiled = torch.compile(module, backend=backend)
    step = OPTIMIZERS["adamw"](compiled.parameters())  # type: ignore[attr-defined]
    with hold(compiled, masks, step):  # type: ignore[arg-type]
        train(CNN, compiled, step)  # type: ignore[arg-type]
        assert_zero(module, masks)
        compiled.load_state_dict(compiled.state_dict())  # type: ignore[attr-defined]
    assert tuple(prune(compiled, 0.7)) == CNN.names  # type: ignore[arg-type]


def test_shared_weights_are_pruned_once_and_everywhere() -> None:
    module, step, masks, _held = setup(CASES["tied weights"])
    assert "head.weight" not in masks
    train(CASES["tied weights"], module, step)
    assert isinstance(module, TiedLinear) and module.head.weight is module.embed.weight
    assert_zero(module, masks)


def test_merging_an_adapter_revives_and_apply_mends() -> None:
    module = CASES["low-rank addition"].module()
    assert isinstance(module, LowRank)
    masks = prune(module, 0.8, include=["base.weight"])
    step = OPTIMIZERS["adamw"](trained(module.parameters()))
    with hold(module, masks, step):
        train(CASES["low-rank addition"], module, step)
        assert_zero(module, masks)
    module.merge()
    with pytest.raises(
        EspalierError, match=r"24 pruned entries of 'base.weight' are not zero .* merging an adapter"
    ):
        masks.verify(module)
    masks.apply_(module)
    masks.verify(module)


def test_without_optimizer_only_weights_are_set() -> None:
    module = CNN.module()
    masks = Masks({"0.weight": torch.rand(4, 2, 3, 3) > 0.5})
    with hold(module, masks) as held:
        held.verify()
        assert_zero(module, masks)
        held.apply_()
    assert not module._load_state_dict_post_hooks


def test_what_does_not_fit_leaves_everything_as_it_was() -> None:
    module = CNN.module()
    before = copy.deepcopy(module.state_dict())
    step = OPTIMIZERS["sgd"](module.parameters())
    some = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    with pytest.raises(
        EspalierError, match=r"a mask for '5.wait' but no such parameter. Did you mean '5.weight'"
    ):
        hold(module, Masks({"0.weight": some, "5.wait": torch.ones(1, dtype=torch.bool)}), step)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not step._optimizer_step_post_hooks and not module._load_state_dict_post_hooks


def test_what_torch_prune_does_in_the_same_situations() -> None:
    """Our documentation says that it cannot be copied, changes keys, doubles the file and revives; this "
    "checks it."""
    layer = nn.Linear(4, 4)
    dense_bytes = sum(t.nbytes for t in layer.state_dict().values())
    torch_prune.l1_unstructured(layer, "weight", amount=0.5)
    layer(torch.ones(1, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="weight_orig"):
        nn.Linear(4, 4).load_state_dict(layer.state_dict(), strict=True)
    assert sum(t.nbytes for t in layer.state_dict().values()) > 1.7 * dense_bytes
    torch_prune.remove(layer, "weight")
    step = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 4)).sum().backward()
    step.step()
    assert int((layer.weight == 0).sum()) == 0
