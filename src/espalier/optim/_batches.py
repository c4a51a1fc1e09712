"""From a group's parameters and their states to batches that the kernels update, and the kernel for each."""

from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from espalier.optim._compiled import step_compiled
from espalier.optim._groups import Group, base_step, buffers, prunes, threshold_of, wide
from espalier.optim._kernels import Base, Batch, Kind, step_all, step_each
from espalier.optim._sharding import local

States = MutableMapping[Tensor, dict[str, Any]]


def start(group: Group, parameter: Tensor, state: dict[str, Any]) -> None:
    """Make what is missing of the state of a parameter that has a gradient."""
    master = wide(parameter.dtype)
    latent = group["law"].dual and not group["frozen"] and prunes(group, parameter) and "mask" not in state
    if "latent" not in state and (latent or master):
        state["latent"] = parameter.detach().clone().to(master or parameter.dtype)
    for buffer in buffers(group):
        if buffer not in state:
            state[buffer] = torch.zeros_like(parameter, dtype=master or parameter.dtype)


def batches(group: Group, states: States) -> Iterator[tuple[Batch, Base]]:
    """The group's parameters that have a gradient, by what can be updated together."""
    alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None:
            kind, separate = _kind(group, parameter, states[parameter]), "latent" in states[parameter]
            key = (kind, separate, parameter.device, parameter.dtype, parameter.grad.dtype)
            alike[key].append(parameter)
    for (kind, separate, *_), parameters in alike.items():
        owned = [states[parameter] for parameter in parameters]
        yield _batch(group, kind, separate, parameters, owned), base_step(group, kind)


def _kind(group: Group, parameter: Tensor, state: dict[str, Any]) -> Kind:
    """How this parameter's weights follow from what the base step moves."""
    if "mask" in state:
        return Kind.MASKED
    if group["frozen"] or not prunes(group, parameter):
        return Kind.DENSE
    return Kind.LATENT if group["law"].dual else Kind.LAST


def _batch(
    group: Group, kind: Kind, separate: bool, parameters: list[Tensor], states: list[dict[str, Any]]
) -> Batch:
    """Local tensors of parameters that are updated together; counts their updates."""
    keys = buffers(group)
    for state in states:
        state["step"] = state.get("step", 0) + 1

    def listed(key: str, wanted: bool) -> list[Tensor] | None:
        return [local(state[key]) for state in states] if wanted else None

    weights = [local(parameter.detach()) for parameter in parameters]
    return Batch(
        kind=kind,
        moved=[local(state["latent"]) for state in states] if separate else weights,
        grads=[local(parameter.grad) for parameter in parameters if parameter.grad is not None],
        weights=weights if separate else None,
        momentum=listed("momentum_buffer", "momentum_buffer" in keys),
        first=listed("exp_avg", "exp_avg" in keys),
        second=listed("exp_avg_sq", "exp_avg_sq" in keys),
        masks=listed("mask", kind is Kind.MASKED),
        ages=[state["step"] for state in states],
        thresholds=[threshold_of(group, state) for state in states],
    )


def kernel(group: Group, batch: Batch) -> Callable[[Batch, Base], None]:
    """Which implementation of the step a batch takes."""
    if group["compiled"]:
        return step_compiled
    foreach = group["foreach"]
    if foreach is None:
        foreach = batch.moved[0].device.type != "cpu"
    return step_all if foreach else step_each
