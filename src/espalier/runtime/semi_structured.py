"""2:4 weights on a GPU, through the semi-structured tensors of torch, where that is possible and measured faster.

The decisions are tested with another product in place of the GPU's, which itself has not been run by us.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.runtime.clock import interleave
from espalier.runtime.layers import Choice
from espalier.runtime.plan import LayerPlan
from espalier.runtime.tracing import disagreement

NAME = "2:4"
"""What a plan calls this way to multiply."""
TOLERANCE = 1e-2
"""Largest difference of outputs over the largest output: sums of half precision in another order."""
STEPS = {torch.float16: (32, 64), torch.bfloat16: (32, 64)}
"""Multiples that the rows and columns of a weight must be, by dtype."""


def responsible(device: torch.device) -> bool:
    """Whether a network on this device is accelerated here, or by the kernels for the CPU."""
    return device.type != "cpu"


def unfit(layer: nn.Module, weight: Tensor) -> str | None:
    """Why a layer cannot be computed as 2:4 where it lies, or None if it can."""
    if not isinstance(layer, nn.Linear):
        return f"a {type(layer).__name__} has no 2:4 version"
    cuda = weight.device.type == "cuda"
    capability = torch.cuda.get_device_capability(weight.device) if cuda else (0, 0)
    return obstacle(weight, cuda=cuda, capability=capability)


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


def pack(weight: Tensor) -> nn.Parameter:
    """The weight as a semi-structured tensor, which takes its place in the layer."""
    return nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach()), requires_grad=False)


def finished(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """A function that returns when the device has done the work, so that it can be timed."""

    def function() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return function


def measure(
    plan: LayerPlan, layer: nn.Linear, inputs: Sequence[tuple[Tensor, int]], seconds: float, least: float
) -> LayerPlan:
    """Time a layer dense and 2:4, in turn, and decide.

    Args:
        plan: what is known of the layer.
        layer: dense, where it will run.
        inputs: what it meets, and how often each.
        seconds: for all rounds, about.
        least: times dense that it must reach to be 2:4.
    """
    packed = pack(layer.weight)

    def run(weight: Tensor) -> Callable[[], None]:
        def function() -> None:
            for x, count in inputs:
                for _ in range(count):
                    F.linear(x, weight, layer.bias)

        return finished(function, weight.device)

    outputs, expected = ([F.linear(x, w, layer.bias) for x, _ in inputs] for w in (packed, layer.weight))
    gap = disagreement(outputs, expected)
    if gap > TOLERANCE:
        return replace(plan, reason=f"dense: 2:4 differs by {gap:.1e} of the largest output")
    ways = {"dense": run(layer.weight), NAME: run(packed)}
    found = interleave(ways, rounds=30, budget=seconds, least=5, clock=time.perf_counter)
    timings = {way: timing.minimum for way, timing in found.items()}
    gain = timings["dense"] / timings[NAME]
    if gain < least:
        return replace(plan, timings=timings, reason="dense: 2:4 was not faster")
    return replace(plan, timings=timings, choice=Choice(NAME, 1), reason=f"{gain:.2f} times dense alone")
