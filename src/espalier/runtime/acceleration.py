"""`accelerate`: sparse kernels where they were measured to be faster, the dense layer everywhere else."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import device_of
from espalier.runtime import semi_structured
from espalier.runtime.arrangement import TILES, arrange, join
from espalier.runtime.clock import SHORT, Clock, doubts, interleave, steady
from espalier.runtime.kernels import KERNELS, AbstractKernel
from espalier.runtime.layers import Choice, SparseConv2d, SparseLinear, sparse_version, supported, tile_of
from espalier.runtime.plan import LayerPlan, Machine, Plan, alike, difference
from espalier.runtime.tracing import (
    Call,
    Example,
    Trace,
    call,
    disagreement,
    inference,
    shapes_of,
    tensors_of,
    trace,
)

GAIN = 1.03
"""A sparse layer, and the network with them, must be this many times as fast as the dense one to take its place."""
TOLERANCE = 1e-4
"""Largest difference of outputs, over the largest output, that sums in another order may make."""
HOPELESS = 1.7
"""A kernel that takes this many times as long as the best so far, and over 10 ms, is not tried with other tiles."""
WORTH_TRYING = 0.7
"""Density above which no sparse kernel has a chance, so that none is timed."""
Progress = Callable[[str, int, int], object]


def accelerate(
    model: nn.Module,
    example_input: Example,
    *,
    plan: Plan | None = None,
    stale: Literal["refuse", "measure"] = "refuse",
    kernels: Sequence[AbstractKernel] = KERNELS,
    seconds: float = 0.5,
    progress: Progress | None = None,
) -> nn.Module:
    """A copy of a pruned model for inference, with sparse kernels wherever they were measured to be faster.

    Each Linear and Conv2d that runs on the example is timed, dense and sparse in turn, on inputs of the very
    shape and strides it meets, with the number of threads torch is set to; it is replaced only where a sparse
    kernel wins. Layers of one shape that meet one input and have about as many zeros are timed once. Then
    whole networks are timed in turn, and if the accelerated one is not 3 % faster than the dense one, the
    dense one is what is returned. Outputs are compared on the example. Modules are replaced by name, so
    attention and everything else stay the code they were; their layers keep parameters and names.

    The copy is in eval mode and its parameters ask for no gradient. Put in training mode, given an input that
    asks for a gradient, another dtype or device, or written weights, its layers compute densely as before.
    Other input shapes give right results, at a speed that was not measured.

    For a network on a GPU the one kernel is that for 2:4 weights, by the same rules.

        >>> import torch, espalier
        >>> from espalier.runtime import accelerate, plan_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
        >>> masks = espalier.prune(model, 0.95)
        >>> fast = accelerate(model, torch.randn(8, 64), seconds=0.01)
        >>> torch.allclose(fast(torch.ones(8, 64)), model(torch.ones(8, 64)), atol=1e-5)
        True
        >>> [layer.name for layer in plan_of(fast).layers]
        ['0']

    Args:
        model: pruned: its zeros are what is not computed. Not changed; run in eval mode, modes restored.
        example_input: as in inference: batch, shapes and memory layout are what is optimised for.
        plan: decisions made before, applied without measuring.
        stale: what to do with a plan for another machine, torch, number of threads, input or network: refuse
            it, or measure anew and say so in the notes of the new plan.
        kernels: what is tried, and what the names in a plan mean.
        seconds: time to spend per kind of layer and on each comparison of whole networks, about.
        progress: called with what is being done, and how many of how many layers are done.

    Returns:
        The copy; `plan_of` gives its plan.

    Raises:
        EspalierError: the model does not run on the example or is accelerated already, or the plan was made for
            something else.
    """
    _check(model, plan, stale)
    traced = trace(model, example_input)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    machine, inputs = Machine.here(device_of(model)), shapes_of(example_input)
    layers = tuple(
        _unmeasured(name, network.get_submodule(name), calls) for name, calls in traced.calls.items()
    )
    notes: tuple[str, ...] = ()
    if plan is not None and (why := difference(plan, machine, inputs, layers)):
        if stale == "refuse":
            raise EspalierError(
                f"the plan does not fit: {why}; measure anew without a plan, or give stale='measure'"
            )
        notes, plan = (f"the plan given does not fit, so all was measured anew: {why}",), None
    table = {kernel.name: kernel for kernel in kernels}
    if plan is not None:
        network = _apply(network, plan, table)
        if (gap := _gap(network, example_input, traced)) > _tolerance(device_of(model)):
            raise EspalierError(
                f"the plan does not fit: outputs differ by {gap:.1e} of the largest with it; measure anew without it"
            )
        return _finish(network, plan)
    measured: list[LayerPlan] = []
    kinds: dict[object, list[LayerPlan]] = {}
    for i, layer in enumerate(layers):
        if progress is not None:
            progress(layer.name, i, len(layers))
        module, calls = network.get_submodule(layer.name), traced.calls[layer.name]
        kind = kinds.setdefault((type(module), module.extra_repr(), frozenset(calls.items())), [])
        if not layer.reason and (twin := next((x for x in kind if alike(x, layer)), None)):
            reason = f"{twin.reason}, as {twin.name}"
            measured.append(replace(layer, timings=twin.timings, choice=twin.choice, reason=reason))
            continue
        measured.append(_measure(layer, module, calls, kernels, seconds))
        if measured[-1].timings:
            kind.append(measured[-1])
    plan = Plan(machine, inputs, tuple(measured), notes=notes)
    if progress is not None:
        progress("the whole network", len(layers), len(layers))
    return _whole(model, network, example_input, traced, plan, table, seconds)


def plan_of(model: nn.Module) -> Plan:
    """The plan of an accelerated model.

    Raises:
        EspalierError: `accelerate` did not make this model.
    """
    plan = getattr(model, "_espalier_plan", None)
    if not isinstance(plan, Plan):
        raise EspalierError("this model has no runtime plan: espalier.runtime.accelerate did not make it")
    return plan


def _check(model: nn.Module, plan: object, stale: str) -> None:
    """Refuse what would be misunderstood."""
    if any(isinstance(module, SparseLinear | SparseConv2d) for module in model.modules()):
        raise EspalierError("this model is accelerated already: give the one that it was made from")
    if isinstance(model, torch.jit.ScriptModule):
        raise EspalierError(
            "the layers of a TorchScript module cannot be replaced: give the module that it was made from"
        )
    if plan is not None and not isinstance(plan, Plan):
        raise EspalierError(f"plan must be a Plan, such as Plan.load(path), got {type(plan).__name__}")
    if stale not in ("refuse", "measure"):
        raise EspalierError(f"stale must be 'refuse' or 'measure', got {stale!r}")


def _finish(network: nn.Module, plan: Plan) -> nn.Module:
    object.__setattr__(network, "_espalier_plan", plan)
    return network


def _unmeasured(name: str, layer: nn.Module, calls: Counter[Call]) -> LayerPlan:
    """What can be said of a layer without a clock; `reason` is "" if it is worth timing."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    shapes: Counter[tuple[int, ...]] = Counter()
    for met, count in calls.items():
        shapes[met.shape] += count
    nonzeros = int(torch.count_nonzero(weight))
    reason = ""
    if semi_structured.responsible(weight.device):
        reason = f"dense: {why}" if (why := semi_structured.unfit(layer, weight)) else ""
    elif (why := supported(layer)) is not None:
        reason = f"dense: {why} has no sparse version"
    elif "weight" not in layer._parameters:
        reason = "dense: its weight is computed anew in each call (torch.nn.utils.prune.remove ends that)"
    elif weight.dtype is not torch.float32 or any(met.dtype is not torch.float32 for met in calls):
        reason = "dense: only float32 has sparse kernels"
    elif nonzeros > WORTH_TRYING * weight.numel():
        reason = f"dense: {1 - nonzeros / weight.numel():.0%} zeros are too few to try"
    elif any(isinstance(layer, nn.Conv2d) and len(met.shape) != 4 for met in calls):
        reason = "dense: an input without batch axis"
    positions = sum(met.positions * count for met, count in calls.items())
    return LayerPlan(name, tuple(weight.shape), nonzeros, tuple(shapes.items()), {}, None, reason, positions)


def _measure(
    plan: LayerPlan, layer: nn.Module, calls: Counter[Call], kernels: Sequence[AbstractKernel], seconds: float
) -> LayerPlan:
    """Time a layer dense and sparse, and decide."""
    if plan.reason:
        return plan
    generator = torch.Generator().manual_seed(0)
    device = device_of(layer)
    inputs = [(met.input(generator).to(device), count) for met, count in calls.items()]
    if semi_structured.responsible(device):
        assert isinstance(layer, nn.Linear)
        with torch.inference_mode():
            return semi_structured.measure(plan, layer, inputs, seconds, GAIN)
    clock = steady(torch.get_num_threads())
    with torch.inference_mode():
        found = _candidates(layer, kernels, list(calls), [x for x, _ in inputs], clock)
        timings = interleave(
            {"dense": _repeated(layer, inputs)} | {way: _repeated(x, inputs) for way, x in found.items()},
            rounds=50,
            budget=seconds,
            least=3,
            keep=1.3,
            always=frozenset({"dense"}),
            warm=True,
            clock=clock,
        )
    shortest = {way: timing.minimum for way, timing in timings.items()}
    best = min(shortest, key=lambda way: shortest[way])
    gain = shortest["dense"] / shortest[best]
    if best == "dense" or gain < GAIN:
        return replace(plan, timings=shortest, reason="dense: no sparse kernel was faster")
    reason = f"{gain:.2f} times dense alone"
    return replace(plan, timings=shortest, choice=found[best].choice, reason=reason)


def _candidates(
    layer: nn.Module,
    kernels: Sequence[AbstractKernel],
    calls: Sequence[Call],
    inputs: Sequence[Tensor],
    clock: Clock,
) -> dict[str, SparseLinear | SparseConv2d]:
    """Sparse versions of a layer that give its outputs, with every kernel and tile that has a chance."""
    expected = [layer(x) for x in inputs]
    found: dict[str, SparseLinear | SparseConv2d] = {}
    least = float("inf")
    for kernel in kernels:
        packed = None
        for tile in _tile_candidates(layer, calls):
            choice = Choice(kernel.name, tile)
            packed = packed or sparse_version(layer, kernel, choice)
            sparse = copy.copy(packed)
            sparse.choice = choice
            start = clock()
            outputs = [sparse(x) for x in inputs]
            took = clock() - start
            if disagreement(outputs, expected) <= TOLERANCE:
                found[f"{kernel.name} {tile}"] = sparse
            least = min(least, took)
            if took > max(SHORT, HOPELESS * least):
                break
    return found


def _repeated(layer: nn.Module, inputs: Sequence[tuple[Tensor, int]]) -> Callable[[], None]:
    def run() -> None:
        for x, count in inputs:
            for _ in range(count):
                layer(x)

    return run


def _tile_candidates(layer: nn.Module, calls: Sequence[Call]) -> Iterator[int]:
    """Tile sizes that really differ for these inputs, largest first."""
    seen = set()
    for tile in sorted(TILES, reverse=True):
        if isinstance(layer, nn.Conv2d):
            effective: Any = tuple(tile_of(tile, *_pixels(layer, met)) for met in calls)
        else:
            effective = tuple(min(tile, met.positions) for met in calls)
        if effective not in seen:
            seen.add(effective)
            yield tile


def _pixels(layer: nn.Conv2d, met: Call) -> tuple[int, int]:
    """Height and width of the output."""
    with torch.device("meta"):
        like = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
        h, w = like(torch.empty(1, 1, *met.shape[2:])).shape[2:]
    return h, w


def _apply(network: nn.Module, plan: Plan, table: Mapping[str, AbstractKernel]) -> nn.Module:
    """Put the sparse layers of a plan into a network, in place; if the network is one layer, what replaces it."""
    for layer in plan.sparse:
        assert layer.choice is not None
        if layer.choice.kernel == semi_structured.NAME:
            module: Any = network.get_submodule(layer.name)
            module.weight = semi_structured.pack(module.weight)
            continue
        if layer.choice.kernel not in table:
            raise EspalierError(
                f"the plan wants the kernel {layer.choice.kernel!r} for {layer.name!r}; known: {', '.join(table)}"
            )
        new = sparse_version(network.get_submodule(layer.name), table[layer.choice.kernel], layer.choice)
        if not layer.name:
            return new
        network.set_submodule(layer.name, new)
    join(network, plan)
    return network


def _gap(network: nn.Module, example: Example, traced: Trace) -> float:
    """How far the outputs on the example are from those of the dense network."""
    with inference(network):
        return disagreement(tensors_of(call(network, example)), traced.outputs)


def _tolerance(device: torch.device) -> float:
    return semi_structured.TOLERANCE if semi_structured.responsible(device) else TOLERANCE


def _whole(
    model: nn.Module,
    network: nn.Module,
    example: Example,
    traced: Trace,
    plan: Plan,
    table: Mapping[str, AbstractKernel],
    seconds: float,
) -> nn.Module:
    """Choose memory layouts, compare whole networks, and fall back if that is faster."""
    if not plan.sparse:
        return _finish(network, plan)
    device, dense = device_of(model), copy.deepcopy(network)
    network = _apply(network, plan, table)
    with inference(model, network):
        plan = arrange(network, example, plan, traced.together, seconds)
        gap = _gap(network, example, traced)
        ways = {"dense": model, "ours": network}
        timings = interleave(
            {n: semi_structured.finished(partial(call, way, example), device) for n, way in ways.items()},
            rounds=30,
            budget=seconds,
            least=5,
            clock=time.perf_counter
            if semi_structured.responsible(device)
            else steady(torch.get_num_threads()),
        )
    plan = replace(plan, dense=timings["dense"].minimum, ours=timings["ours"].minimum)
    assert plan.dense is not None and plan.ours is not None
    notes = [*plan.notes, *(f"these timings are doubtful: {why}" for why in doubts(timings))]
    if gap > _tolerance(device):
        notes.append(f"the outputs differ by {gap:.1e} of the largest, so the dense network was kept")
    elif GAIN * plan.ours > plan.dense:
        notes.append(
            f"the whole network took {plan.ours / plan.dense:.2f} times as long as dense, so the dense one was kept"
        )
    else:
        return _finish(network, replace(plan, notes=tuple(notes)))
    return _finish(dense, replace(plan, notes=tuple(notes), fell_back=True))
