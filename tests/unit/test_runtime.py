import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

import espalier
from espalier import EspalierError
from espalier.allocate import Uniform
from espalier.runtime import (
    KERNELS,
    AbstractKernel,
    Bag,
    Choice,
    Csr,
    Machine,
    Plan,
    SparseConv2d,
    SparseLinear,
    accelerate,
    plan_of,
    semi_structured,
)
from espalier.runtime.acceleration import _candidates
from espalier.runtime.arrangement import Family, Way
from espalier.runtime.layers import Siblings, sparse_version, supported
from espalier.runtime.semi_structured import obstacle
from espalier.runtime.tracing import Call


def pruned(layer: nn.Module, sparsity: float = 0.8) -> Any:
    espalier.prune(layer, sparsity)
    return layer.eval().requires_grad_(False)


def forced(model: nn.Module, example: Any, **choices: Choice) -> nn.Module:
    """The model with a plan that was written rather than measured."""
    plan = plan_of(accelerate(model, example, seconds=0.0))
    plan = replace(plan, fell_back=False).with_choices(choices)
    return accelerate(model, example, plan=plan)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("positions", [1, 2, 33])
def test_kernels_multiply(kernel: AbstractKernel, positions: int) -> None:
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0], [0.0, 0.0, 5.0]])
    x = torch.randn(3, positions)
    packed = kernel.pack(weight)
    assert torch.allclose(kernel.matmul(packed, x), weight @ x, atol=1e-6)
    assert torch.allclose(kernel.matmul(copy.deepcopy(packed), x), weight @ x, atol=1e-6)
    assert kernel.nbytes(packed) == 4 * (4 + 4 + 5)
    empty = kernel.pack(torch.zeros(2, 3))
    assert torch.equal(kernel.matmul(empty, x), torch.zeros(2, positions))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(20,), (5, 20), (3, 7, 20), (2, 3, 9, 20), (4, 1, 20)])
def test_linear_equals_dense(
    kernel: AbstractKernel, layout: Literal["rows", "columns"], bias: bool, shape: tuple[int, ...]
) -> None:
    dense = pruned(nn.Linear(20, 11, bias=bias))
    x = torch.randn(shape)
    for tile in (4, 7, 1000):
        sparse = sparse_version(copy.deepcopy(dense), kernel, Choice(kernel.name, tile, layout))
        assert torch.allclose(sparse(x), dense(x), atol=1e-5)
        if len(shape) > 1:
            assert torch.allclose(sparse(x.mT.contiguous().mT), dense(x), atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [
        (1, 1, 0, 1),
        (1, 2, 0, 1),
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (3, 1, "same", 2),
        ((2, 3), (1, 2), (0, 1), (2, 1)),
        (4, 1, "valid", 1),
    ],
)
def test_convolution_equals_dense(
    kernel: AbstractKernel, size: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    dense = pruned(nn.Conv2d(5, 7, size, stride, padding, dilation, bias=size != 3))
    x = torch.randn(3, 5, 9, 11)
    for tile in (1, 10, 60, 1000):
        sparse = sparse_version(copy.deepcopy(dense), kernel, Choice(kernel.name, tile))
        for given in (x, x.contiguous(memory_format=torch.channels_last), x.flip(3)[:, :, :, ::1]):
            assert torch.allclose(sparse(given), dense(given), atol=1e-5)


def test_everything_but_inference_in_float32_is_dense() -> None:
    dense = pruned(nn.Linear(8, 8))
    sparse = sparse_version(copy.deepcopy(dense), Bag(), Choice("bag", 64))
    assert isinstance(sparse, SparseLinear)
    x = torch.randn(3, 8)
    assert sparse._usable(x)
    assert not sparse._usable(x.double()) and not sparse._usable(x[:0])
    assert not sparse._usable(x.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not sparse._usable(x)
    assert not copy.deepcopy(sparse).train()._usable(x)
    with_gradient = x.clone().requires_grad_()
    sparse(with_gradient).sum().backward()
    assert with_gradient.grad is not None
    assert torch.allclose(with_gradient.grad, dense.weight.sum(0).expand(3, 8))
    with torch.no_grad():
        sparse.weight.mul_(2)
    assert not sparse._usable(x) and not copy.deepcopy(sparse)._usable(x)
    assert torch.allclose(sparse(x), nn.functional.linear(x, 2 * dense.weight, dense.bias))


def test_another_weight_is_not_computed_with_the_packed_one() -> None:
    dense, x = pruned(nn.Linear(8, 8)), torch.randn(3, 8)
    other = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    changes: list[Callable[[SparseLinear], object]] = [
        lambda layer: setattr(layer, "weight", other),
        lambda layer: setattr(layer.weight, "data", other.data),
        lambda layer: layer.load_state_dict({"weight": other, "bias": dense.bias}),
        lambda layer: layer.load_state_dict({"weight": other, "bias": dense.bias}, assign=True),
    ]
    for change in changes:
        sparse = sparse_version(copy.deepcopy(dense), Bag(), Choice("bag", 64))
        assert isinstance(sparse, SparseLinear) and sparse._usable(x)
        change(sparse)
        assert not sparse._usable(x) and not copy.deepcopy(sparse)._usable(x)
        assert torch.allclose(sparse(x), nn.functional.linear(x, other, dense.bias))
    rounded = sparse_version(copy.deepcopy(dense), Bag(), Choice("bag", 64)).half().float()
    assert torch.equal(
        rounded(x), nn.functional.linear(x, dense.weight.half().float(), dense.bias.half().float())
    )


def test_a_weight_that_is_made_in_each_call_stays_dense() -> None:
    layer = nn.Linear(16, 16)
    l1_unstructured(layer, "weight", 0.9)
    x = torch.randn(8, 16)
    assert "torch.nn.utils.prune.remove ends that" in plan_of(accelerate(layer.eval(), x)).layers[0].reason


def test_copies_and_files_stay_sparse() -> None:
    dense = pruned(nn.Linear(8, 8))
    for kernel in KERNELS:
        sparse = sparse_version(copy.deepcopy(dense), kernel, Choice(kernel.name, 64))
        file = io.BytesIO()
        torch.save(sparse, file)
        file.seek(0)
        for other in (copy.deepcopy(sparse), torch.load(file, weights_only=False)):
            x = torch.randn(2, 8)
            assert other._usable(x) and torch.allclose(other(x), dense(x), atol=1e-5)
        assert list(sparse.state_dict()) == ["weight", "bias"]


def test_copies_made_in_inference_mode_stay_sparse() -> None:
    model, x = pruned(Attention()), torch.randn(2, 4, 16)
    shared = {name: Choice("bag", 64, "rows", "query") for name in ("query", "key", "value")}
    fast = forced(model, (x,), **shared)
    with torch.inference_mode():
        other = copy.deepcopy(fast)
        assert torch.allclose(other(x)["y"], model(x)["y"], atol=1e-5)
        for found in (other, copy.deepcopy(other)):
            layer = found.get_submodule("query")
            assert isinstance(layer, SparseLinear) and layer._usable(x)
        again = accelerate(copy.deepcopy(model), (x,), plan=plan_of(fast))
        assert torch.allclose(again(x)["y"], model(x)["y"], atol=1e-5)
    layer = fast.get_submodule("query")
    assert isinstance(layer, SparseLinear)
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.inference_mode():
        assert not copy.deepcopy(layer)._usable(x)  # what was written to stays dense


def test_siblings_compute_once_and_never_mix_inputs_up() -> None:
    one, two = pruned(nn.Linear(8, 4)), pruned(nn.Linear(8, 6))
    layers = [sparse_version(copy.deepcopy(m), Bag(), Choice("bag", 64)) for m in (one, two)]
    assert isinstance(layers[0], SparseLinear) and isinstance(layers[1], SparseLinear)
    siblings = Siblings([layers[0], layers[1]])
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    a = siblings.output(0, x)
    assert torch.allclose(siblings.output(1, x), two(x), atol=1e-5)
    assert siblings._waiting is None  # nothing is held once all have been asked
    assert torch.allclose(a, one(x), atol=1e-5)
    siblings.output(0, x)
    assert torch.allclose(siblings.output(1, y), two(y), atol=1e-5)  # another input
    siblings.output(0, x)
    x.add_(1)
    assert torch.allclose(siblings.output(1, x), two(x), atol=1e-5)  # written to in between
    assert torch.allclose(siblings.output(1, x), two(x), atol=1e-5)  # asked twice


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return {"y": self.out(nn.functional.scaled_dot_product_attention(q, k, v))}


def test_accelerated_networks_answer_the_same_and_leave_the_original_alone() -> None:
    model = Attention().train()
    espalier.prune(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = {"x": torch.randn(2, 32, 16)}
    fast = accelerate(model, example, seconds=0.02)
    assert model.training and type(model.query) is nn.Linear and model.query.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not fast.training and list(fast.state_dict()) == list(before)
    x = torch.randn(3, 5, 16)  # another shape gives right results too
    with torch.no_grad():
        assert torch.allclose(fast(x)["y"], model(x)["y"], atol=1e-5)
    plan = plan_of(fast)
    assert [layer.name for layer in plan.layers] == ["query", "key", "value", "out"]
    assert plan.layers[0].dense_macs == 64 * 256 and plan.layers[0].macs == 64 * plan.layers[0].nonzeros
    assert all("dense" in layer.timings and layer.reason for layer in plan.layers)


def test_a_plan_is_saved_and_applied_without_measuring(tmp_path: Path) -> None:
    model = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)))
    x = torch.randn(2, 3, 8, 8)
    choices = {"0": Choice("bag", 64), "2": Choice("csr", 64, "columns")}
    fast = forced(model, x, **choices)
    first, _, last = fast.children()
    assert isinstance(first, SparseConv2d) and isinstance(last, SparseLinear)
    assert torch.allclose(fast(x), model(x), atol=1e-5)
    plan_of(fast).save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == plan_of(fast) and len(plan.sparse) == 2
    assert torch.allclose(accelerate(model, x, plan=plan)(x), model(x), atol=1e-5)


def test_siblings_of_a_plan() -> None:
    model = pruned(Attention())
    x = torch.randn(2, 4, 16)
    shared = {name: Choice("bag", 64, "rows", "query") for name in ("query", "key", "value")}
    fast = forced(model, (x,), **shared)
    layers = [fast.get_submodule(name) for name in shared]
    assert len({id(layer.siblings) for layer in layers if isinstance(layer, SparseLinear)}) == 1
    assert torch.allclose(fast(x)["y"], model(x)["y"], atol=1e-5)
    assert torch.allclose(copy.deepcopy(fast)(x)["y"], model(x)["y"], atol=1e-5)


def test_layers_that_are_alike_are_timed_once() -> None:
    class Counting(Bag):
        packed: ClassVar[list[tuple[int, ...]]] = []

        def pack(self, weight: Tensor) -> Any:
            self.packed.append(tuple(weight.shape))
            return super().pack(weight)

    layers = [nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32)]
    model = nn.Sequential(*layers).eval()
    espalier.prune(model, 0.9, include=["0.weight", "1.weight", "2.weight"], allocation=Uniform())
    espalier.prune(model, 0.95, include=["3.weight"])
    plan = plan_of(accelerate(model, torch.randn(16, 32), kernels=(Counting(),), seconds=0.0))
    first, second, without_bias, sparser = plan.layers
    assert second.reason == f"{first.reason}, as 0" and second.timings == first.timings
    assert "as 0" not in without_bias.reason + sparser.reason
    used = [layer for layer in plan.layers if layer.choice is not None]
    assert len(Counting.packed) == 3 + len(used)  # three were timed; then each that is used is packed


def test_a_kernel_that_is_hopeless_is_not_tried_with_every_tile() -> None:
    layer, x = pruned(nn.Linear(16, 16)), torch.randn(600, 16)
    call = Call(tuple(x.shape), x.stride(), x.dtype, 600)
    for second, tiles in ((0.05, 1), (0.001, 4)):
        seconds = iter([0.001] * 4 + [second] * 4)
        now = 0.0
        reads = 0

        def clock() -> float:
            nonlocal now, reads
            reads += 1
            now += next(seconds) if reads % 2 == 0 else 0.0  # noqa: B023
            return now

        found = _candidates(layer, (Bag(), Csr()), [call], [x], clock)
        assert [way.split()[0] for way in found] == ["bag"] * 4 + ["csr"] * tiles


def test_larger_tiles_and_other_layouts_are_tried_on_the_whole_network() -> None:
    model = pruned(Attention())
    layers = {
        name: sparse_version(module, Bag(), Choice("bag", 64)) for name, module in model.named_children()
    }
    family = Family([("query", "key", "value")], layers)  # type: ignore[arg-type]
    assert family.ways()[0] == Way() and len(set(family.ways())) == 8
    family.set(Way("columns", shared=True, whole=True))
    query, key, out = (layers[name] for name in ("query", "key", "out"))
    assert isinstance(query, SparseLinear) and isinstance(key, SparseLinear)
    assert query.choice == key.choice == Choice("bag", 512, "columns", "query")
    together = query.siblings
    assert together is not None and together is key.siblings and together.choice == query.choice
    family.set(Way())
    assert query.choice == out.choice == Choice("bag", 64) and query.siblings is None
    assert len(Family([("out",)], {"out": out}).ways()) == 4  # type: ignore[dict-item]


def test_encoders_of_transformers_work() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model = pruned(transformers.BertModel(config), 0.9)
    ids = torch.randint(0, 50, (2, 12))
    example = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [9]])).long()}
    names = [f"encoder.layer.{i}.attention.self." for i in range(2)]
    shared = {
        f"{name}{part}": Choice("bag", 64, "rows", f"{name}query")
        for name in names
        for part in ("query", "key", "value")
    }
    inner = {f"encoder.layer.{i}.intermediate.dense": Choice("csr", 64, "columns") for i in range(2)}
    fast = forced(model, example, **shared, **inner)
    assert len(plan_of(fast).sparse) >= 8 and type(fast) is type(model)
    with torch.no_grad():
        ours, theirs = fast(**example), model(**example)
    assert torch.allclose(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5)
    assert torch.allclose(ours.pooler_output, theirs.pooler_output, atol=1e-5)


class Slow(Bag):
    """A kernel whose measured times lie: quick while a layer is measured alone, slow in the whole network."""

    def __init__(self) -> None:
        self.calls = 0

    def matmul(self, packed: Any, activations: Tensor) -> Tensor:
        self.calls += 1
        if activations.shape[1] == 7:
            for _ in range(200):
                super().matmul(packed, activations)
        return super().matmul(packed, activations)


def test_never_slower_than_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    import espalier.runtime.acceleration as module

    def pretend(plan: Any, *rest: Any) -> Any:
        return replace(
            plan, choice=Choice("bag", 64), timings={"dense": 2.0, "bag 64": 1.0}, reason="so it seemed"
        )

    monkeypatch.setattr(module, "_measure", pretend)
    model = pruned(nn.Sequential(nn.Linear(16, 16)))
    fast = accelerate(model, torch.randn(7, 16), kernels=(Slow(),), seconds=0.02)
    plan = plan_of(fast)
    assert plan.fell_back and type(fast.get_submodule("0")) is nn.Linear
    assert "times as long as dense" in " ".join(plan.notes)
    assert plan.summary().startswith("the dense network as it was")


class Wrong(Bag):
    def matmul(self, packed: Any, activations: Tensor) -> Tensor:
        return super().matmul(packed, activations) + 1


def test_a_kernel_that_is_wrong_is_never_used() -> None:
    model = pruned(nn.Sequential(nn.Linear(64, 64)), 0.99)
    x = torch.randn(64, 64)
    plan = plan_of(accelerate(model, x, kernels=(Wrong(),), seconds=0.01))
    assert not plan.sparse and set(plan.layers[0].timings) == {"dense"}
    with pytest.raises(EspalierError, match=r"outputs differ by .* of the largest with it; measure anew"):
        accelerate(model, x, kernels=(Wrong(),), plan=plan.with_choices({"0": Choice("bag", 64)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 99}, r"does not fit: it is for threads 99 \(here 1\); measure anew"),
        ({"processor": "Z80"}, "it is for processor 'Z80'"),
    ],
)
def test_plans_for_other_machines_are_refused_or_measured_anew(
    change: Mapping[str, Any], message: str
) -> None:
    model, x = pruned(nn.Linear(8, 8)), torch.randn(4, 8)
    plan = plan_of(accelerate(model, x, seconds=0.0))
    other = replace(plan, machine=replace(plan.machine, **change))
    with pytest.raises(EspalierError, match=message):
        accelerate(model, x, plan=other)
    again = plan_of(accelerate(model, x, plan=other, stale="measure", seconds=0.0))
    assert again.machine == plan.machine and "measured anew: it is for" in again.notes[0]


def test_plans_for_other_inputs_and_networks_are_refused() -> None:
    model, x = pruned(nn.Sequential(nn.Linear(8, 8))), torch.randn(4, 8)
    plan = plan_of(accelerate(model, x, seconds=0.0))
    with pytest.raises(EspalierError, match="inputs of shape 4×8, not 5×8"):
        accelerate(model, torch.randn(5, 8), plan=plan)
    with pytest.raises(EspalierError, match=r"another network: '0' has weight \[9, 8\], not \[8, 8\]"):
        accelerate(pruned(nn.Sequential(nn.Linear(8, 9))), x, plan=plan)
    with pytest.raises(EspalierError, match="another network: '0' is in one of them only"):
        accelerate(pruned(nn.Sequential(nn.Sequential(nn.Linear(8, 8)))), x, plan=plan)
    with pytest.raises(EspalierError, match="other weights: '0' has 6 nonzeros, not 13"):
        accelerate(pruned(nn.Sequential(nn.Linear(8, 8)), 0.9), x, plan=plan)
    with pytest.raises(EspalierError, match="wants the kernel 'gpu' for '0'; known: bag, csr"):
        accelerate(model, x, plan=plan.with_choices({"0": Choice("gpu", 1)}))


def test_bad_input_is_told_in_a_sentence(tmp_path: Path) -> None:
    model = pruned(nn.Linear(8, 8))
    with pytest.raises(EspalierError, match=r"does not run on the example input \(\[4, 9\]\): RuntimeError"):
        accelerate(model, torch.randn(4, 9))
    with pytest.raises(EspalierError, match="tuple of arguments or a dict of them, got str"):
        accelerate(model, "a sentence")
    with pytest.raises(EspalierError, match=r"the example input is empty \(\[0, 8\]\)"):
        accelerate(model, torch.randn(0, 8))
    with pytest.raises(EspalierError, match=r"must be a Plan, such as Plan.load\(path\), got str"):
        accelerate(model, torch.randn(4, 8), plan="plan.json")  # type: ignore[arg-type]
    with pytest.raises(EspalierError, match="stale must be 'refuse' or 'measure', got 'anew'"):
        accelerate(model, torch.randn(4, 8), stale="anew")  # type: ignore[arg-type]
    fast = forced(nn.Sequential(model), torch.randn(4, 8), **{"0": Choice("bag", 64)})
    with pytest.raises(EspalierError, match="accelerated already: give the one that it was made from"):
        accelerate(fast, torch.randn(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.trace(model, torch.randn(4, 8))
    with pytest.raises(
        EspalierError, match="layers of a TorchScript module cannot be replaced: give the module"
    ):
        accelerate(scripted, torch.randn(4, 8))
    with pytest.raises(EspalierError, match="returns no floating tensor"):
        accelerate(nn.Identity(), torch.ones(3, dtype=torch.long))
    with pytest.raises(EspalierError, match="this model has no runtime plan"):
        plan_of(model)
    path = tmp_path / "plan.json"
    with pytest.raises(EspalierError, match="cannot be read as a runtime plan"):
        Plan.load(path)
    path.write_text('{"format": "something"}')
    with pytest.raises(EspalierError, match="its format is not 'espalier runtime plan 1'"):
        Plan.load(path)
    path.write_text('{"format": "espalier runtime plan 1", "layers": [{"name": "0"}]}')
    with pytest.raises(EspalierError, match="a runtime plan that cannot be read: KeyError: 'shape'"):
        Plan.load(path)


def test_inputs_whose_entries_share_memory_are_imitated() -> None:
    class Expanding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.linear = nn.Parameter(torch.randn(1, 4, 16)), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.start.expand(len(x), -1, -1)) + x  # type: ignore[no-any-return]

    model, x = pruned(Expanding(), 0.9), torch.randn(3, 4, 16)
    assert torch.allclose(accelerate(model, x, seconds=0.0)(x), model(x), atol=1e-5)
    met = Call((3, 2), (1, 1), torch.float32, 3).input(torch.Generator().manual_seed(0))
    assert met.stride() == (1, 1) and met[0, 1] == met[1, 0]


def test_what_has_no_sparse_version_stays() -> None:
    assert supported(nn.Linear(2, 2)) is None and supported(nn.Conv2d(2, 2, 1)) is None
    assert supported(nn.Conv2d(2, 2, 1, groups=2)) == "2 groups"
    assert supported(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")) == "padding mode reflect"
    assert supported(nn.Conv1d(2, 2, 1)) == "a Conv1d"
    dense = nn.Linear(8, 8)  # nothing pruned
    plan = plan_of(accelerate(dense, torch.randn(4, 8)))
    assert plan.layers[0].reason == "dense: 0% zeros are too few to try" and not plan.sparse


def test_which_weights_can_be_2_4_on_a_gpu() -> None:
    weight = torch.ones(64, 64, dtype=torch.float16)
    weight.view(-1, 4)[:, 2:] = 0
    assert obstacle(weight, cuda=True, capability=(8, 0)) is None
    for other, cuda, capability, message in [
        (weight, False, (0, 0), "need a CUDA device"),
        (weight, True, (7, 5), "need compute capability 8.0, this device has 7.5"),
        (weight.float(), True, (9, 0), "need float16 or bfloat16, got float32"),
        (weight[:40], True, (9, 0), r"multiples of 32 rows and 64 columns, got [40, 64]"),
        (torch.ones_like(weight), True, (9, 0), "more than 2 of 4 neighboring weights"),
    ]:
        found = obstacle(other, cuda=cuda, capability=capability)
        assert found is not None and message in found


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU that takes some seconds for a dense and for a 2:4 product, each on a CPU in truth."""
    cost, now, product = {"dense": 2.0, "2:4": 1.0}, [0.0], nn.functional.linear

    class Packed(nn.Parameter):
        pass

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        now[0] += cost["2:4" if isinstance(weight, Packed) else "dense"]
        return product(x, weight.data, bias)

    monkeypatch.setattr(semi_structured, "responsible", lambda device: True)
    monkeypatch.setattr(semi_structured, "unfit", lambda layer, weight: None if len(weight) > 4 else "small")
    monkeypatch.setattr(semi_structured, "pack", lambda weight: Packed(weight.data, requires_grad=False))
    monkeypatch.setattr(nn.functional, "linear", linear)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return cost


def test_many_small_gains_on_a_gpu_add_up(pretended: dict[str, float]) -> None:
    # 2:4 is twice as fast in each of thirty layers: a thirtieth of the network each
    model = pruned(nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)), nn.Linear(8, 4)))
    x = torch.randn(3, 8)
    fast = accelerate(model, x)
    plan = plan_of(fast)
    assert [layer.choice is not None for layer in plan.layers] == [True] * 30 + [False]
    assert plan.layers[30].reason == "dense: small" and (plan.dense, plan.ours) == (62.0, 32.0)
    assert plan.summary().startswith("30 of 31 layers sparse, 1.94 times dense")
    assert torch.allclose(fast(x), model(x))
    pretended["2:4"] = 5.0  # nothing is measured any more
    again = accelerate(model, x, plan=Plan.from_dict(json.loads(json.dumps(plan.to_dict()))))
    assert type(again.get_submodule("0").weight) is type(fast.get_submodule("0").weight) is not nn.Parameter
    with pytest.raises(EspalierError, match="inputs of shape 3×8, not 5×8"):
        accelerate(model, torch.randn(5, 8), plan=plan)


def test_a_gpu_that_gains_too_little_stays_dense(pretended: dict[str, float]) -> None:
    model, x = pruned(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))), torch.randn(3, 8)
    pretended["2:4"] = 1.97
    assert plan_of(accelerate(model, x)).layers[0].reason == "dense: 2:4 was not faster"
    pretended["2:4"] = 1.92  # by 4 % in the layer, by 2 % in the network
    plan = plan_of(accelerate(model, x))
    assert plan.layers[0].reason == "1.04 times dense alone" and plan.fell_back


def test_a_machine_with_a_gpu_is_named_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    machine = Machine.here(torch.device("cuda"))
    assert (machine.processor, machine.vectors) == ("a GPU", "compute capability 9.0")
    assert Machine.here(torch.device("cpu")) == Machine.here()


def test_csr_is_used_for_single_positions() -> None:
    kernel = Csr()
    weight = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert kernel.matmul(kernel.pack(weight), torch.tensor([[3.0], [4.0]])).tolist() == [[4.0], [6.0]]
