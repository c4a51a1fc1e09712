"""2:4 weights on a GPU, through the semi-structured tensors of torch, where that is possible and measured faster.

Only the decision has been tested; the products themselves have not been run by us on a GPU.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from espalier.runtime.clock import interleave
from espalier.runtime.plan import LayerPlan, Machine, Plan
from espalier.runtime.tracing import Example, Trace, call, disagreement, inference, shapes_of, tensors_of

GAIN = 1.03
TOLERANCE = 1e-2
"""Of half precision; the largest difference over the largest output."""
STEPS = {torch.float16: (32, 64), torch.bfloat16: (32, 64)}
"""Multiples that the rows and columns of a weight must be, by dtype."""


def obstacle(weight: Tensor, *, cuda: bool, capability: tuple[int, int]) -> str | None:
    """Why a weight cannot be multiplied as a 2:4 tensor, or None if it can.

    Args:
        weight: (rows, columns).
        cuda: whether it lies on a CUDA device.
        capability: of that device.
    """
    if not cuda:
        return "2:4 kernels need a CUDA device"
    if capability < (8, 0):
        return f"2:4 kernels need compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    if weight.dtype not in STEPS:
        return f"2:4 kernels need float16 or bfloat16, got {str(weight.dtype).removeprefix('torch.')}"
    rows, columns = STEPS[weight.dtype]
    if weight.ndim != 2 or weight.shape[0] % rows or weight.shape[1] % columns:
        return f"2:4 kernels need multiples of {rows} rows and {columns} columns, got {list(weight.shape)}"
    if int((weight.detach().reshape(-1, 4) != 0).sum(1).max()) > 2:
        return "more than 2 of 4 neighboring weights are not zero: prune with --nm 2:4"
    return None


def accelerate_on_cuda(
    network: nn.Module, device: torch.device, example: Example, traced: Trace, seconds: float
) -> nn.Module:
    """Replace the weights of Linear layers by semi-structured tensors, each only if the whole network gets faster.

    Args:
        network: a copy in eval mode that asks for no gradient; changed in place and returned.
        device: where it lies.
        example: its input.
        traced: one dense run.
        seconds: for each comparison.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    layers, notes = [], []
    for name, calls in traced.calls.items():
        layer = network.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        nonzeros = int(torch.count_nonzero(weight))
        shapes = tuple((met.shape, count) for met, count in calls.items())
        positions = sum(met.positions * count for met, count in calls.items())
        why = obstacle(weight, cuda=device.type == "cuda", capability=capability)
        plan = LayerPlan(name, tuple(weight.shape), nonzeros, shapes, {}, None, f"dense: {why}", positions)
        layers.append(plan if why is not None else _try(network, plan, example, traced, seconds))
    if not any(layer.reason.startswith("2:4") for layer in layers):
        notes.append("no layer is computed as 2:4 on this device")
    plan_of_all = Plan(Machine.here(), shapes_of(example), tuple(layers), notes=tuple(notes))
    object.__setattr__(network, "_espalier_plan", plan_of_all)
    return network


def _try(network: nn.Module, plan: LayerPlan, example: Example, traced: Trace, seconds: float) -> LayerPlan:
    """Time the network with this layer dense and 2:4, and leave it the faster way."""
    layer: Any = network.get_submodule(plan.name)
    dense = layer.weight
    packed = nn.Parameter(torch.sparse.to_sparse_semi_structured(dense.detach()), requires_grad=False)

    def run(weight: Tensor) -> Callable[[], None]:
        def function() -> None:
            layer.weight = weight
            call(network, example)
            torch.cuda.synchronize()

        return function

    with inference(network):
        layer.weight = packed
        gap = disagreement(tensors_of(call(network, example)), traced.outputs)
        ways = {"dense": run(dense), "2:4": run(packed)}
        found = interleave(ways, rounds=30, budget=seconds, least=5, clock=time.perf_counter)
    timings = {way: timing.minimum for way, timing in found.items()}
    layer.weight = dense
    if gap > TOLERANCE:
        return replace(plan, timings=timings, reason=f"dense: 2:4 differs by {gap:.1e} of the largest output")
    if timings["dense"] < GAIN * timings["2:4"]:
        return replace(plan, timings=timings, reason="dense: 2:4 was not faster")
    layer.weight = packed
    return replace(plan, timings=timings, reason="2:4: measured faster in the whole network")
