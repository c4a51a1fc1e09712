"""Saving and loading: what torch casts stays as it was, and what is code stays out of the file."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from espalier._errors import EspalierError

_CODE = ("law", "freeze_below")  # frozen values of ours: a file must load with weights_only=True


def portable(state: dict[str, Any]) -> dict[str, Any]:
    """The state with the groups' laws and rules as their `repr`, in place."""
    for group in state["param_groups"]:
        for key in _CODE:
            if not isinstance(group[key], float | None):
                group[key] = repr(group[key])
    return state


def remember(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load pre-hook: refuse other laws, keep the state as saved and the laws as they are for `put_back`."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        law = saved.get("law")
        if law != repr(group["law"]):
            raise EspalierError(
                f"the state was saved under {law or 'another optimizer, without a law'}, but this optimizer has"
                f" {group['law']!r}; build it with the same law"
            )
    code = [{key: group[key] for key in _CODE} for group in optimizer.param_groups]
    optimizer.__dict__["_loading"] = (state_dict, code)


def forget(optimizer: Optimizer) -> None:
    """The loading is over."""
    optimizer.__dict__.pop("_loading", None)


def put_back(optimizer: Optimizer) -> None:
    """Undo what torch's loading did to dtypes and laws, if a loading is going on."""
    if "_loading" not in optimizer.__dict__:
        return
    incoming, code = optimizer.__dict__["_loading"]
    saved = [index for group in incoming["param_groups"] for index in group["params"]]
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved, live, strict=True):
        if index in incoming["state"]:
            optimizer.state[parameter] = _restored(incoming["state"][index], parameter)
    for group, own in zip(optimizer.param_groups, code, strict=True):
        group.update(own)


def _restored(saved: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Copies of saved values on the parameter's device."""
    return {
        key: value.to(device=parameter.device, copy=True) if isinstance(value, Tensor) else value
        for key, value in saved.items()
    }
