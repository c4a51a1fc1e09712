"""What a parameter group's options and clock mean for its parameters; plain functions of the group's dict."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from espalier.optim._kernels import Base, Kind, Threshold
from espalier.optim.laws import AbstractPathLaw, Clock, TargetSparsity
from espalier.optim.options import effective_rate

Group = dict[str, Any]

BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def named(groups: list[Group], group: Group) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters of a group; without names, the positions."""
    number = next(i for i, other in enumerate(groups) if other is group)
    names = group.get("param_names") or [f"{number}.{i}" for i in range(len(group["params"]))]
    return zip(names, group["params"], strict=True)


def prunes(group: Group, parameter: Tensor) -> bool:
    """Whether the parameter is thresholded."""
    if group["prune"] is not None:
        return bool(group["prune"])
    return group["scope"] == "paper" or parameter.ndim >= 2


def wide(dtype: torch.dtype) -> torch.dtype | None:
    """The dtype that takes the steps of a parameter too coarse for them; None if its own will do."""
    return None if dtype in {torch.float32, torch.float64} else torch.float32


def buffers(group: Group) -> tuple[str, ...]:
    """Names of the base step's buffers."""
    if group.get("betas") is not None:
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if group["momentum"] else ()


def tick(group: Group) -> None:
    """Advance a group's clock by a step."""
    rate = effective_rate(group)
    group["steps"] += 1
    law = group["law"]
    if isinstance(law, AbstractPathLaw) and not group["frozen"]:
        group["threshold"] = law.threshold(Clock(group["steps"], group["time"], rate, group["threshold"]))
    group["time"] += rate


def threshold_of(group: Group, state: dict[str, Any]) -> Threshold:
    """The threshold of one parameter; a number where that needs no wait for the device."""
    if "threshold" in state and isinstance(group["law"], TargetSparsity):
        return _readable(state["threshold"])
    if "ceiling" not in state:
        return float(group["threshold"])
    ceiling = _readable(state["ceiling"])
    if isinstance(ceiling, float):
        return min(ceiling, float(group["threshold"]))
    return ceiling.clamp(max=group["threshold"])


def _readable(value: Tensor) -> Threshold:
    """A CPU scalar as a number: vectorized kernels take numbers, and reading it costs nothing."""
    return float(value) if value.device.type == "cpu" else value


def ridge(group: Group, *, dual: bool) -> float:
    """The prox's share of the weight decay: the whole path's for a latent, this step's for weights.

    In effective rates both, as the threshold is: penalty and gradient then weigh alike whatever the momentum.
    """
    if group["decay"] != "prox":
        return 0.0
    return float(group["weight_decay"] * (group["time"] if dual else effective_rate(group)))


def base_step(group: Group, kind: Kind) -> Base:
    """The base step's numbers for one kind of parameter."""
    decay, lr = group["weight_decay"], float(group["lr"])
    return Base(
        lr=lr,
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        betas=group.get("betas"),
        eps=group["eps"],
        coupled=decay if group["decay"] == "coupled" else 0.0,
        shrink=1 - lr * decay if group["decay"] == "decoupled" else 1.0,
        ridge=ridge(group, dual=kind is Kind.LATENT),
        maximize=group["maximize"],
    )
