"""Every optimizer of the family is a good citizen: one table of instances, one list of checks, all crossed."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from espalier.optim import (
    GRDA,
    RDA,
    ConstantLaw,
    DualAveraging,
    PowerLaw,
    ProxSGD,
    TargetSparsity,
    TimePowerLaw,
    _compiled,
    _kernels,
    lost_scale,
)

Make = Callable[..., DualAveraging]


def da(law, **fixed) -> Make:
    return lambda params, **options: DualAveraging(params, 0.1, law=law, **{**fixed, **options})


OPTIMIZERS: dict[str, Make] = {
    "grda": lambda params, **options: GRDA(params, 0.1, 0.2, 0.51, **options),
    "grda heavy ball": lambda params, **options: GRDA(params, 0.02, 0.1, 0.6, momentum=0.9, **options),
    "grda paper scope": lambda params, **options: GRDA(params, 0.1, 0.2, 0.51, scope="paper", **options),
    "time law, nesterov": da(TimePowerLaw(0.05, 0.6), momentum=0.8, nesterov=True, weight_decay=1e-2),
    "rda, prox decay": lambda params, **options: RDA(
        params, 0.1, 0.5, weight_decay=0.1, decay="prox", **options
    ),
    "constant, adam type": da(ConstantLaw(0.1), betas=(0.9, 0.99), weight_decay=0.1, decay="decoupled"),
    "target": da(TargetSparsity(0.8, 12), momentum=0.9),
    "target, rescaled": da(TargetSparsity(0.8, 12, rescale=True), momentum=0.9),
    "target, guarded": da(TargetSparsity(0.8, 30), betas=(0.9, 0.99), min_kept=0.1),
    "power law, guarded": da(PowerLaw(2.0, 0.9), min_kept=0.3),
    "prox sgd": lambda params, **options: ProxSGD(params, 0.1, 0.3, momentum=0.5, **options),
}

table = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Linear(11, 13), nn.BatchNorm1d(13), nn.Linear(13, 4)).to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


def train(module: nn.Module, optimizer: DualAveraging, first: int, last: int, scheduler: Any = None) -> None:
    """Steps first..last-1 on gradients that depend on the step and the weights."""
    for n in range(first, last):
        generator = torch.Generator().manual_seed(100 + n)
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.grad = (p.detach().float() - 0.3 + noise).to(p.dtype)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@table
def test_prunes_with_positive_zeros_in_place(make: Make) -> None:
    module = net()
    storage = [p.data_ptr() for p in module.parameters()]
    train(module, make(module.named_parameters()), 0, 25)
    assert [p.data_ptr() for p in module.parameters()] == storage
    zeros = torch.cat([p.detach()[p.detach() == 0] for p in module.parameters()])
    assert zeros.numel()
    assert not torch.signbit(zeros).any()


@table
@pytest.mark.parametrize("cut", [1, 7, 20])
def test_resume_is_bit_identical_through_a_weights_only_file(make: Make, cut: int) -> None:
    whole = net()
    optimizer = make(whole.named_parameters())
    train(whole, optimizer, 0, 25)

    part = net()
    optimizer = make(part.named_parameters())
    train(part, optimizer, 0, cut)
    file = io.BytesIO()
    torch.save({"module": part.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(part, optimizer, cut, cut + 1)  # what was saved is not what goes on
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = net()
    resumed.load_state_dict(saved["module"])
    again = make(resumed.named_parameters())
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, cut, 25)
    assert same(weights(resumed), weights(whole))


@table
def test_loaded_state_is_not_shared(make: Make) -> None:
    module, other = net(), net()
    a, b = make(module.named_parameters()), make(other.named_parameters())
    train(module, a, 0, 3)
    b.load_state_dict(a.state_dict())
    before = [v.clone() for state in b.state.values() for v in state.values() if isinstance(v, Tensor)]
    train(module, a, 3, 6)
    assert same(before, [v for state in b.state.values() for v in state.values() if isinstance(v, Tensor)])


@pytest.mark.parametrize(
    "kind",
    [
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=16),
        partial(torch.optim.lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.05, step_size_up=4),
    ],
    ids=["one cycle", "cyclic"],
)
@table
def test_schedulers_that_move_the_momentum_too(make: Make, kind: Callable[..., Any]) -> None:
    module = net()
    optimizer = make(module.named_parameters())
    scheduler = kind(optimizer)
    train(module, optimizer, 0, 15, scheduler)
    assert all(p.isfinite().all() for p in module.parameters())


@table
def test_deepcopy_goes_on_alike(make: Make) -> None:
    module = net()
    optimizer = make(module.named_parameters())
    train(module, optimizer, 0, 5)
    module2, optimizer2 = copy.deepcopy((module, optimizer))
    train(module, optimizer, 5, 20)
    train(module2, optimizer2, 5, 20)
    assert same(weights(module), weights(module2))


@table
def test_foreach_equals_the_loop_bit_for_bit(make: Make) -> None:
    modules = [net(), net()]
    for module, foreach in zip(modules, (False, True)):
        train(module, make(module.named_parameters(), foreach=foreach), 0, 20)
    assert same(*map(weights, modules))


@table
def test_scheduler_and_closure(make: Make) -> None:
    module = net()
    optimizer = make(module.named_parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    train(module, optimizer, 0, 20, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    last = weights(module)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = module(torch.ones(3, 11)).square().sum()
        assert loss.requires_grad
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() > 0
    assert len(last) == len(weights(module))


@table
def test_gradient_none_stays_put_and_later_meets_the_groups_threshold(make: Make) -> None:
    module = net()
    optimizer = make(module.named_parameters())
    idle = next(module.parameters())
    before = idle.detach().clone()
    for n in range(5):
        train_some = [p for p in module.parameters() if p is not idle]
        for p in train_some:
            p.grad = torch.full_like(p, 0.1 * n)
        optimizer.step()
    assert torch.equal(idle, before)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["steps"] == 6
    if optimizer.param_groups[0]["law"].dual and optimizer.param_groups[0]["decay"] == "coupled":
        state = optimizer.state[idle]
        own = min(optimizer.param_groups[0]["threshold"], float(state.get("ceiling", float("inf"))))
        level = float(state.get("threshold", own))
        expected = (state["latent"].abs() - level).clamp(min=0)
        if getattr(optimizer.param_groups[0]["law"], "rescale", False):
            expected *= lost_scale(state["latent"], level)
        torch.testing.assert_close(idle.detach().abs(), expected, rtol=1e-5, atol=1e-6)


@table
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_parameters_keep_a_float32_latent_through_a_resume(make: Make, dtype: torch.dtype) -> None:
    module = net(dtype)
    optimizer = make(module.named_parameters())
    train(module, optimizer, 0, 6)
    other = net(dtype)
    other.load_state_dict(module.state_dict())
    again = make(other.named_parameters())
    again.load_state_dict(optimizer.state_dict())
    for state in again.state.values():
        assert state["latent"].dtype == torch.float32
        assert "mask" not in state or state["mask"].dtype == torch.bool
    train(module, optimizer, 6, 15)
    train(other, again, 6, 15)
    assert same(weights(module), weights(other))
    assert all(p.dtype == dtype for p in other.parameters())


@table
def test_float64_latents_are_float64(make: Make) -> None:
    module = net(torch.float64)
    optimizer = make(module.named_parameters())
    train(module, optimizer, 0, 3)
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert all(v.dtype in (torch.float64, torch.bool) for v in tensors)


@table
def test_maximize_is_the_negative_gradient(make: Make) -> None:
    a, b = Parameter(torch.randn(6, 5)), Parameter(torch.empty(6, 5))
    b.data.copy_(a.data)
    up, down = make([a], maximize=True), make([b])
    for _ in range(8):
        a.grad = torch.randn_like(a)
        b.grad = -a.grad
        up.step()
        down.step()
    assert torch.equal(a, b)


@table
def test_tied_weights_are_one_parameter(make: Make) -> None:
    module = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    module[2].weight = module[0].weight
    optimizer = make(module.named_parameters())
    for _ in range(14):
        optimizer.zero_grad()
        (module(torch.randn(8, 6)) - 1).square().mean().backward()
        optimizer.step()
    assert optimizer.mask_report().entries == 36
    assert len(list(module.parameters())) == 1
    assert torch.equal(*(layer.state_dict()["weight"] for layer in (module[0], module[2])))


@table
def test_memory_layouts_agree(make: Make) -> None:
    plain = Parameter(torch.randn(8, 4, 3, 3))
    last = Parameter(plain.detach().clone(memory_format=torch.channels_last))
    optimizers = make([plain]), make([last])
    for _ in range(10):
        plain.grad = torch.randn_like(plain)
        last.grad = plain.grad.clone()  # another layout than its parameter's
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


@table
def test_nan_stays_in_its_entry(make: Make) -> None:
    a, b = Parameter(torch.randn(6, 5)), Parameter(torch.empty(6, 5))
    b.data.copy_(a.data)
    one, two = make([a]), make([b])
    for n in range(6):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
        if n == 2:
            b.grad[1, 1] = float("nan")
        one.step()
        two.step()
    assert torch.isnan(b).sum() == 1
    assert torch.isfinite(a).all()
    if not isinstance(two.param_groups[0]["law"], TargetSparsity):  # one entry fewer changes a quantile
        a.data[1, 1] = b.data[1, 1] = 0.0
        assert torch.equal(a, b)


@table
def test_group_added_later_has_its_own_clock(make: Make) -> None:
    module = net()
    optimizer = make(list(module.parameters())[:4])
    train(module, optimizer, 0, 4)
    optimizer.add_param_group({"params": [module[2].weight]})
    assert optimizer.param_groups[1]["steps"] == 0
    train(module, optimizer, 4, 8)
    assert [group["steps"] for group in optimizer.param_groups] == [8, 4]


@table
def test_freeze_keeps_the_mask_and_trains_the_rest(make: Make) -> None:
    module = net()
    optimizer = make(module.named_parameters())
    train(module, optimizer, 0, 10)
    optimizer.freeze()
    assert optimizer.frozen
    before = weights(module)
    masks = [p == 0 if "mask" in optimizer.state[q] else None for p, q in zip(before, module.parameters())]
    assert any(mask is not None and mask.any() for mask in masks)
    train(module, optimizer, 10, 20)
    for p, old, mask in zip(module.parameters(), before, masks):
        if mask is not None:
            assert torch.equal(p == 0, mask)
            assert not torch.equal(p, old)
            assert not torch.signbit(p[mask]).any()


def test_norms_and_biases_are_dense_unless_asked() -> None:
    law = ConstantLaw(100.0)
    for options, pruned in (({}, [0, 4]), ({"scope": "paper"}, [0, 1, 2, 3, 4, 5]), ({"prune": False}, [])):
        module = net()
        optimizer = DualAveraging(module.parameters(), 0.1, law=law, **options)
        train(module, optimizer, 0, 1)
        assert [i for i, p in enumerate(module.parameters()) if (p == 0).all()] == pruned
        assert [i for i, p in enumerate(module.parameters()) if "latent" in optimizer.state[p]] == pruned


def test_groups_have_their_own_laws() -> None:
    a, b, c = (Parameter(torch.ones(2, 2)) for _ in range(3))
    groups = [{"params": [a]}, {"params": [b], "law": ConstantLaw(0.5)}, {"params": [c], "prune": False}]
    optimizer = DualAveraging(groups, 0.0, law=ConstantLaw(0.25))
    for p in (a, b, c):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [p.max().item() for p in (a, b, c)] == [0.75, 0.5, 1.0]
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["law"] for group in optimizer.param_groups] == [
        ConstantLaw(0.25),
        ConstantLaw(0.5),
        ConstantLaw(0.25),
    ]


def test_load_hooks_see_the_saved_dtypes() -> None:
    """What re-masks the state after loading must find the latents, not casts that are replaced later."""
    w = Parameter(torch.randn(4, 4).bfloat16())
    optimizer = GRDA([w], 0.1)
    w.grad = torch.ones_like(w)
    optimizer.step()

    def clear(loaded: torch.optim.Optimizer) -> None:
        assert loaded.state[w]["latent"].dtype == torch.float32
        loaded.state[w]["latent"][0] = 0

    optimizer.register_load_state_dict_post_hook(clear)
    optimizer.load_state_dict(optimizer.state_dict())
    assert (optimizer.state[w]["latent"][0] == 0).all()


def test_large_tensors_go_in_pieces_with_the_same_bits() -> None:
    ours, theirs = Parameter(torch.randn(1100, 1001)), Parameter(torch.empty(1100, 1001))
    theirs.data.copy_(ours.data)
    a, b = GRDA([ours], 0.1, 0.5, momentum=0.9), GRDA([theirs], 0.1, 0.5, momentum=0.9, foreach=True)
    for _ in range(2):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.equal(ours, theirs)
    assert (ours == 0).any()


COMPILED = {name: OPTIMIZERS[name] for name in ("constant, adam type", "target")}


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED.keys())
def test_compiled_path_agrees(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_SMALL", 0)  # else a small weight goes through the loop
    graphs: list[Any] = []
    run = _compiled._run_graph

    def counted(*given: Any) -> None:
        graphs.append(given)
        run(*given)

    monkeypatch.setattr(_compiled, "_run_graph", counted)
    modules = [net(), net()]
    for module, compiled in zip(modules, (False, True)):
        optimizer = make([next(module.parameters())], compiled=compiled)
        train(module, optimizer, 0, 15)
    torch.testing.assert_close(weights(modules[1]), weights(modules[0]), rtol=1e-5, atol=1e-6)
    assert (next(modules[1].parameters()) == 0).any()
    assert len(graphs) == 15


def test_many_shapes_compile_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "_SMALL", 0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the limit is torch's own
    for width in range(2, 14):
        w = Parameter(torch.ones(3, width))
        optimizer = GRDA([w], 0.5, 0.0, 0.6, compiled=True)
        w.grad = torch.ones_like(w)
        optimizer.step()
        assert torch.equal(w, torch.full_like(w, 0.5))


def test_state_is_one_tensor_per_thresholded_parameter_and_one_more_with_momentum() -> None:
    for momentum, count in ((0.0, 1), (0.9, 2)):
        w, bias = Parameter(torch.randn(8, 8)), Parameter(torch.randn(8))
        optimizer = GRDA([w, bias], 0.1, momentum=momentum)
        for p in (w, bias):
            p.grad = torch.randn_like(p)
        optimizer.step()
        entries = sum(
            v.numel() for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)
        )
        assert entries == 64 * count + 8 * (momentum > 0)
