"""What is different when a parameter is a DTensor (FSDP2): its local part, and sums over its shards."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import DTensor
else:  # a build of torch without distributed has no DTensor either
    DTensor = None  # type: ignore[assignment, misc]


def local(tensor: Tensor) -> Tensor:
    """The part on this process; the tensor itself unless it is a DTensor."""
    if DTensor is not None and isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def send(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host numbers as a tensor on the device, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _shard_groups(tensor: Tensor) -> tuple[Any, ...]:
    """The process groups over which a tensor is split; empty when it is whole on every process."""
    if DTensor is None or not isinstance(tensor, DTensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements
    return tuple(mesh.get_group(i) for i, placement in enumerate(placements) if placement.is_shard())


def sum_rows(rows: Tensor, owners: Sequence[Tensor]) -> Tensor:
    """Add row i over the processes that share `owners[i]`, in place; rows of whole tensors stay as they are."""
    for groups, indices in _rows_by_groups(owners).items():
        picked = rows[indices]
        for group in groups:
            dist.all_reduce(picked, group=group)
        rows[indices] = picked
    return rows


def sum_before(rows: Tensor, owners: Sequence[Tensor]) -> Tensor:
    """Row i summed over the processes that hold earlier entries of `owners[i]`: those of lower rank."""
    before = torch.zeros_like(rows)
    for groups, indices in _rows_by_groups(owners).items():
        mine = rows[indices]
        # Rows that are split over several mesh dimensions are ordered by the first; dimension 0 shards nest
        # outward.
        for group in reversed(groups):
            size, rank = dist.get_world_size(group), dist.get_rank(group)
            parts = [torch.empty_like(mine) for _ in range(size)]
            dist.all_gather(parts, mine, group=group)
            for part in parts[:rank]:
                before[indices] += part
            mine = torch.stack(parts).sum(0)
    return before


def _rows_by_groups(owners: Sequence[Tensor]) -> dict[tuple[Any, ...], Tensor]:
    """Indices of the rows that are split, by the process groups that share them."""
    found: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, owner in enumerate(owners):
        if groups := _shard_groups(owner):
            found[groups].append(i)
    return {
        groups: send(indices, torch.int64, local(owners[indices[0]]).device)
        for groups, indices in found.items()
    }
