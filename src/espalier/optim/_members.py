"""One parameter of the optimizer as the other modules see it, and thresholds searched over many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError, near
from espalier.optim import _quantile
from espalier.optim._groups import BUFFERS, wide
from espalier.optim._kernels import Threshold
from espalier.optim._sharding import local, send, sum_rows
from espalier.optim.laws import TargetSparsity
from espalier.optim.options import check_room, most_zeros
from espalier.optim.prox import lost_scale, soft_threshold

_SAMPLE = 1 << 18  # entries of all tensors together that a search reads
_FEWEST = 1 << 12  # but so many of each tensor, where it has them


@dataclass(frozen=True)
class Member:
    """A thresholded parameter: its name, itself (possibly a DTensor) and its state."""

    name: str
    parameter: Tensor
    state: dict[str, Any]

    @property
    def entries(self) -> int:
        """Entries over all processes."""
        return self.parameter.numel()

    @property
    def latent(self) -> Tensor:
        """Local part of what is thresholded; the weights until the first gradient."""
        return local(self.state.get("latent", self.parameter).detach())


def owners(members: Sequence[Member]) -> list[Tensor]:
    """The parameters, which know over which processes they are split."""
    return [member.parameter for member in members]


def limits(members: Sequence[Member], least: Sequence[float]) -> list[int]:
    """Most entries of each tensor that may be zero."""
    return [most_zeros(member.entries, share) for member, share in zip(members, least, strict=True)]


def check_target(law: TargetSparsity, members: Sequence[Member], caps: Sequence[int]) -> None:
    """Refuse a target that these parameters cannot reach. Reads the number of zeros from the device, once."""
    entries = sum(member.entries for member in members)
    zeros = round(law.sparsity * entries)
    check_room(law.sparsity, entries, sum(caps))
    now = int(sum_rows(torch.stack([(m.latent == 0).sum() for m in members]), owners(members)).sum())
    if now > zeros:
        raise EspalierError(
            f"a sparsity of {law.sparsity} is {zeros} zeros, but {now} of {entries} entries are zero"
            " already; ask for a larger sparsity, or keep their zeros with a mask"
        )
    if law.kept is not None:
        _check_allocation(law.kept, members, caps, entries - zeros)


def _check_allocation(
    kept: Mapping[str, int], members: Sequence[Member], caps: Sequence[int], budget: int
) -> None:
    """Refuse an allocation that does not fit the thresholded parameters."""
    names = [member.name for member in members]
    for name in kept:
        if name not in names:
            raise EspalierError(f"`kept` names {name!r}, which is not thresholded here.{near(name, names)}")
    for member, cap in zip(members, caps, strict=True):
        if member.name not in kept:
            raise EspalierError(
                f"`kept` says nothing of {member.name!r}; give every thresholded parameter a count"
            )
        if not 0 <= kept[member.name] <= member.entries:
            raise EspalierError(
                f"`kept` asks for {kept[member.name]} of {member.entries} entries of {member.name!r}"
            )
        if kept[member.name] < member.entries - cap:
            raise EspalierError(
                f"`kept` leaves {kept[member.name]} entries of {member.name!r}, but `min_kept` asks for"
                f" {member.entries - cap}; change one of them"
            )
    if sum(kept.values()) != budget:
        raise EspalierError(f"`kept` sums to {sum(kept.values())} entries, but the sparsity leaves {budget}")


def _coarse(members: Sequence[Member]) -> Tensor:
    """Cumulative counts of sampled magnitudes, shape (T, bins), in entries."""
    every = max(1, sum(member.entries for member in members) // _SAMPLE)
    strides = [_odd(min(every, max(1, member.entries // _FEWEST))) for member in members]
    return _quantile.coarse_counts([m.latent for m in members], strides, owners(members)).cumsum(1)


def _odd(stride: int) -> int:
    """A stride near this one that no kernel of 2, 3, 5 or 7 taps divides, so that every tap is sampled."""
    while stride > 1 and any(stride % tap == 0 for tap in (2, 3, 5, 7)):
        stride += 1
    return stride


def set_thresholds(law: TargetSparsity, members: Sequence[Member], caps: Sequence[int], step: int) -> None:
    """Put the thresholds of the ramp at `step` into the members' states, as tensors on the device."""
    share = law.share(step)
    cumulative = _coarse(members)
    device = cumulative.device
    if law.kept is not None:
        ranks = [(member.entries - law.kept[member.name]) * share for member in members]
        found = _quantile.quantile(cumulative, send(ranks, torch.float64, device))
    else:
        most = send(caps, torch.int64, device)
        rank = share * round(law.sparsity * sum(member.entries for member in members))
        pooled = torch.minimum(cumulative, most[:, None]).sum(0, keepdim=True)
        common = _quantile.quantile(pooled, torch.full((1,), rank, dtype=torch.float64, device=device))
        found = torch.minimum(common, _quantile.quantile(cumulative, most.double()))
    for member, threshold in zip(members, found.unbind(), strict=True):
        member.state["threshold"] = threshold.to(member.latent.dtype, copy=True)


def set_ceilings(members: Sequence[Member], caps: Sequence[int]) -> None:
    """Put the largest thresholds that leave each tensor its fewest kept entries into the members' states."""
    cumulative = _coarse(members)
    found = _quantile.quantile(cumulative, send(caps, torch.float64, cumulative.device))
    for member, ceiling in zip(members, found.unbind(), strict=True):
        member.state["ceiling"] = ceiling.to(member.latent.dtype, copy=True)


def settle(
    law: TargetSparsity, members: Sequence[Member], caps: Sequence[int], divisors: Sequence[float]
) -> list[Tensor]:
    """Prune to exactly the target: writes the weights and returns the local masks (True = kept)."""
    values = [member.latent for member in members]
    whole = owners(members)
    if law.kept is not None:
        wanted = [member.entries - law.kept[member.name] for member in members]
        counts = send(wanted, torch.int64, values[0].device)
    else:
        zeros = round(law.sparsity * sum(member.entries for member in members))
        most = send(caps, torch.int64, values[0].device)
        counts = _quantile.exact_counts(values, zeros, most, whole)
    masks = []
    selected = _quantile.exact_selection(values, counts, whole)
    for value, parameter, (pruned, threshold), divisor in zip(values, whole, selected, divisors, strict=True):
        weight = soft_threshold(value, threshold) / divisor
        if law.rescale:
            weight *= lost_scale(value, threshold)
        local(parameter.detach()).copy_(weight.masked_fill_(pruned, 0.0))
        masks.append(pruned.logical_not())
    return masks


def rescale(member: Member, threshold: Threshold) -> None:
    """Multiply each output unit's weights by what the threshold took from its latents; a unit lies on one process."""
    local(member.parameter.detach()).mul_(lost_scale(member.latent, threshold))


def fix(member: Member, mask: Tensor) -> None:
    """Freeze one parameter at a local mask (True = kept)."""
    state, parameter = member.state, member.parameter
    whole = torch.zeros_like(parameter, dtype=torch.bool)
    local(whole).copy_(mask)
    state["mask"] = whole
    for key in ("threshold", "ceiling"):
        state.pop(key, None)
    if wide(parameter.dtype) is None:
        state.pop("latent", None)
    elif "latent" in state:
        local(state["latent"]).copy_(local(parameter.detach()))
    for buffer in BUFFERS:
        if buffer in state:
            local(state[buffer]).masked_fill_(mask.logical_not(), 0.0)


def changes(member: Member) -> Tensor:
    """Zeros, pruned and regrown of the local part since the last call; int64, shape (3,)."""
    zero = local(member.parameter.detach()) == 0
    before = member.state.get("seen")
    old = torch.zeros_like(zero) if before is None else local(before)
    counts = torch.stack([zero.sum(), (zero & ~old).sum(), (old & ~zero).sum()])
    if before is None:
        before = member.state["seen"] = torch.zeros_like(member.parameter, dtype=torch.bool)
    local(before).copy_(zero)
    return counts
