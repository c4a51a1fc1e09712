"""What a parameter group may say, each mistake with its own message."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import is_number, plain
from espalier.optim.laws import Law, TargetSparsity
from espalier.optim.stopping import Settled

DECAYS = ("coupled", "decoupled", "prox")
SCOPES = ("weights", "paper")
_OF_LAWS = ("c", "mu", "penalty")  # hyper-parameters of laws, not of groups


def check_group(group: dict[str, Any]) -> None:
    """Raise `EspalierError` for the first option of a parameter group that cannot be used."""
    for key in _OF_LAWS:
        if key in group:
            raise EspalierError(f"a group has `{key}`, which no step reads; give the group a `law` with it")
    if not isinstance(group["law"], Law):
        raise EspalierError(f"`law` is {group['law']!r}; give a law, such as PowerLaw(c=0.005, mu=0.51)")
    _check_rate(group["lr"])
    _check_base(group)
    _check_decay(group)
    if group["scope"] not in SCOPES:
        raise EspalierError(
            f"`scope` is {group['scope']!r}; it must be one of {', '.join(map(repr, SCOPES))}"
        )
    if group["prune"] not in (None, True, False):
        raise EspalierError(
            f"`prune` is {group['prune']!r}; it must be True, False, or None to decide by `scope`"
        )
    check_kept(group["min_kept"])
    if group["min_kept"] and not group["law"].dual:
        raise EspalierError(
            "`min_kept` needs a law with a latent; Lasso has none, so lower its penalty instead"
        )
    _check_freezing(group)
    if group["compiled"] and group["foreach"]:
        raise EspalierError("`compiled` and `foreach` exclude each other; set one of them")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with plain numbers for NumPy's: they enter the saved state, which loads with `weights_only=True`."""
    found = {key: plain(value) for key, value in options.items()}
    if isinstance(found.get("betas"), tuple | list):
        found["betas"] = tuple(map(plain, found["betas"]))
    return found


def check_kept(min_kept: Any) -> None:
    """Refuse what is no fraction of a tensor that can be kept in any case."""
    if not is_number(min_kept) or not 0 <= min_kept < 1:
        raise EspalierError(f"`min_kept` is {min_kept!r}; it is a fraction of each tensor, in [0, 1)")


def most_zeros(entries: int, min_kept: float) -> int:
    """Most entries of a tensor that may be zero where a share of them must stay.

    The share is the decimal that was written: 0.07 of 100 entries are 7, where the float is a little more.
    """
    return entries - math.ceil(Fraction(str(min_kept)) * entries)


def check_room(sparsity: float, entries: int, room: int) -> None:
    """Refuse a sparsity of so many entries that needs more zeros than `min_kept` leaves room for."""
    zeros = round(sparsity * entries)
    if room < zeros:
        raise EspalierError(
            f"a sparsity of {sparsity} needs {zeros} zeros, but `min_kept` leaves room for {room} in {entries} "
            "entries; lower one of them"
        )


def _check_rate(lr: Any) -> None:
    """The rate is read on the host at every step, so it must be there."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.device.type != "cpu":
            raise EspalierError("`lr` is a tensor with several entries or on an accelerator; give a float")
        lr = float(lr)
    if not is_number(lr) or not 0 <= lr < math.inf:
        raise EspalierError(f"`lr` is {lr!r}; it must be a number >= 0")


def _check_base(group: dict[str, Any]) -> None:
    """Momentum or betas, not both, each in range."""
    momentum, betas = group["momentum"], group.get("betas")
    if not is_number(momentum) or not 0 <= momentum < 1:
        raise EspalierError(f"`momentum` is {momentum!r}; it must be in [0, 1)")
    if group["nesterov"] and momentum == 0:
        raise EspalierError("`nesterov` needs a `momentum` above 0")
    if betas is None:
        return
    if momentum:
        raise EspalierError("`betas` (Adam-type steps) and `momentum` exclude each other; set one of them")
    pair = isinstance(betas, Sequence) and len(betas) == 2
    if not pair or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise EspalierError(f"`betas` is {betas!r}; it must be two numbers in [0, 1), such as (0.9, 0.999)")
    if not is_number(group["eps"]) or not group["eps"] > 0:
        raise EspalierError(f"`eps` is {group['eps']!r}; it must be above 0")


def _check_decay(group: dict[str, Any]) -> None:
    """Weight decay is a strength and a place."""
    strength = group["weight_decay"]
    if not is_number(strength) or not 0 <= strength < math.inf:
        raise EspalierError(f"`weight_decay` is {strength!r}; it must be a number >= 0")
    if group["decay"] not in DECAYS:
        raise EspalierError(
            f"`decay` is {group['decay']!r}; it must be one of {', '.join(map(repr, DECAYS))}"
        )


def _check_freezing(group: dict[str, Any]) -> None:
    """A level of churn, for laws that do not freeze by themselves."""
    level = group["freeze_below"]
    if level is None:
        return
    check_level(level)
    if isinstance(group["law"], TargetSparsity):
        raise EspalierError(
            "`freeze_below` and TargetSparsity exclude each other: a target freezes at its end"
        )


def check_level(level: Any) -> None:
    """Refuse what says of no churn whether it is small."""
    if isinstance(level, Settled):
        return
    if not is_number(level) or isinstance(level, bool):
        raise EspalierError(
            f"`freeze_below` is {level!r}; give a fraction of the entries, such as 0.001, or a Settled"
        )
    if not 0 <= level <= 1:
        raise EspalierError(f"`freeze_below` is {level}; it is a fraction of the entries, in [0, 1]")


def effective_rate(group: dict[str, Any]) -> float:
    """The laws' gamma, lr / (1 - momentum): how far a constant gradient comes to move per step."""
    return float(group["lr"]) / (1 - float(group["momentum"]))


def check_parameter(parameter: Tensor) -> None:
    """Refuse parameters whose entries have no order by magnitude and sign."""
    if parameter.is_complex():
        raise EspalierError(
            "a parameter is complex; soft thresholding needs real entries, so split it in two"
        )
    if not parameter.is_floating_point():
        raise EspalierError(
            f"a parameter has dtype {parameter.dtype}; only real floating dtypes can be optimized"
        )


def check_gradient(grad: Tensor, name: str) -> None:
    """Refuse gradients that the dense step would silently drop or misread."""
    if grad.layout != torch.strided:
        raise EspalierError(
            f"the gradient of {name!r} is sparse; every entry moves at every step, so make it dense"
            " (for an embedding: sparse=False)"
        )
