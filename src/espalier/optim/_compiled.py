"""The step as one graph for `torch.compile`: every tensor is read and written once.

Hyper-parameters that a scheduler may change come as tensors; Python numbers would be compiled in and
recompiled.
"""

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from espalier.optim._kernels import Base, Batch, Kind, by_size, step_all


def _graph(
    kind: Kind,
    nesterov: bool,
    maximize: bool,
    tensors: dict[str, list[Tensor]],
    numbers: dict[str, Tensor],
) -> None:
    """The arithmetic of `_kernels.step_all`, entry by entry; branches are decided when the graph is made."""
    for i, moved in enumerate(tensors["moved"]):
        value = moved * numbers["shrink"] if "shrink" in numbers else moved
        grad = tensors["grads"][i].to(moved.dtype)
        if maximize:
            grad = -grad
        if "coupled" in numbers:
            weight = tensors["weights"][i] if "weights" in tensors else moved
            grad = grad + numbers["coupled"] * weight
        if "first" in tensors:
            first = torch.lerp(tensors["first"][i], grad, 1 - numbers["beta1"].to(grad.dtype))
            second = numbers["beta2"] * tensors["second"][i] + (1 - numbers["beta2"]) * grad * grad
            tensors["first"][i].copy_(first)
            tensors["second"][i].copy_(second)
            scale = second.sqrt() / numbers["bias2"][i] + numbers["eps"]
            value = value - numbers["lr"] / numbers["bias1"][i] * first / scale
        elif "momentum" in tensors:
            buffer = numbers["momentum"] * tensors["momentum"][i] + grad
            tensors["momentum"][i].copy_(buffer)
            value = value - numbers["lr"] * (grad + numbers["momentum"] * buffer if nesterov else buffer)
        else:
            value = value - numbers["lr"] * grad
        _store(kind, i, value, tensors, numbers)


def _store(
    kind: Kind, i: int, value: Tensor, tensors: dict[str, list[Tensor]], numbers: dict[str, Tensor]
) -> None:
    """Write the moved tensor and the weights."""
    weight = value
    if kind in {Kind.LATENT, Kind.LAST}:
        threshold = numbers["thresholds"][i].to(value.dtype)
        weight = value - torch.clamp(value, -threshold, threshold)
    if "ridge" in numbers:
        weight = weight / (1 + numbers["ridge"])
    if kind is Kind.MASKED:
        weight = torch.where(tensors["masks"][i], weight, 0.0)
    tensors["moved"][i].copy_(value if kind is Kind.LATENT else weight)
    if "weights" in tensors:
        tensors["weights"][i].copy_(weight)


@lru_cache(maxsize=64)
def _compiled(*_: Any) -> Callable[..., Any]:
    """A graph of its own for each kind of batch: `torch.compile` refuses to make many of one function."""
    code = _graph.__code__.replace()  # equal, but another object, which is what torch counts by
    return torch.compile(
        FunctionType(code, _graph.__globals__, _graph.__name__), fullgraph=True, dynamic=False
    )


def step_compiled(batch: Batch, base: Base) -> None:
    """Update the batch with the compiled graph; made at the first call for these shapes.

    On a CPU small tensors are left to the loop: they cost as long to compile as large ones, and save nothing.
    """
    rest: Batch | None = batch
    if batch.moved[0].device.type == "cpu":
        small, rest = by_size(batch)
        if small is not None:
            step_all(small, base)
    if rest is not None:
        _run_graph(rest, base)


def _run_graph(batch: Batch, base: Base) -> None:
    """The whole batch by the graph."""
    names = ("moved", "grads", "weights", "momentum", "first", "second", "masks")
    tensors = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
    numbers = {
        name: torch.tensor(value, dtype=torch.float64) for name, value in _numbers(batch, base).items()
    }
    device = batch.moved[0].device
    if device.type != "cpu":
        numbers = {name: value.to(device, non_blocking=True) for name, value in numbers.items()}
    if batch.kind in {Kind.LATENT, Kind.LAST}:
        numbers["thresholds"] = _stacked(batch)
    key = (
        batch.kind,
        base.nesterov,
        base.maximize,
        *tensors,
        *numbers,
        *(moved.shape for moved in batch.moved),
    )
    _compiled(*key)(batch.kind, base.nesterov, base.maximize, tensors, numbers)


def _numbers(batch: Batch, base: Base) -> dict[str, float | list[float]]:
    """Hyper-parameters the graph reads; those without effect are left out, and with them their arithmetic."""
    numbers: dict[str, float | list[float]] = {"lr": base.lr}
    if base.coupled:
        numbers["coupled"] = base.coupled
    if base.shrink != 1.0:
        numbers["shrink"] = base.shrink
    if base.ridge:
        numbers["ridge"] = base.ridge
    if base.betas is not None:
        beta1, beta2 = base.betas
        numbers |= {"beta1": beta1, "beta2": beta2, "eps": base.eps}
        numbers["bias1"] = [1 - beta1**age for age in batch.ages]
        numbers["bias2"] = [(1 - beta2**age) ** 0.5 for age in batch.ages]
    elif batch.momentum is not None:
        numbers["momentum"] = base.momentum
    return numbers


def _stacked(batch: Batch) -> Tensor:
    """Thresholds as one vector on the device."""
    device, dtype = batch.moved[0].device, batch.moved[0].dtype
    if all(isinstance(threshold, float) for threshold in batch.thresholds):
        return torch.tensor(batch.thresholds, dtype=dtype).to(device, non_blocking=True)
    return torch.stack([torch.as_tensor(t, dtype=dtype, device=device) for t in batch.thresholds])
