"""Two processes on gloo: DDP replicas stay identical, FSDP2 shards agree with one process, targets are exact."""

import io
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from espalier.optim import GRDA, DualAveraging, PowerLaw, TargetSparsity
from tests.conftest import two_processes

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no distributed")

TARGET = TargetSparsity(0.8, 12)
RESCALED = TargetSparsity(0.8, 12, rescale=True)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))


def backward(module: nn.Module, step: int, share: slice) -> None:
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(step))
    module.zero_grad()
    (module(x[share]) - 1).square().mean().backward()


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def fit(module: nn.Module, law: Any, steps: int, rank: int | None, **options: Any) -> DualAveraging:
    share = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    optimizer = DualAveraging(module.named_parameters(), 0.05, law=law, momentum=0.9, **options)
    for step in range(steps):
        backward(module, step, share)
        optimizer.step()
    return optimizer


def work(rank: int) -> None:
    dist.init_process_group("gloo")
    check_replicas(rank)
    check_shards(rank)
    check_ties(rank)


def check_replicas(rank: int) -> None:
    for law in (PowerLaw(0.3, 0.6), TARGET):
        module = nn.parallel.DistributedDataParallel(net())
        fit(module, law, 15, rank)
        mine = torch.cat([p.detach().flatten() for p in module.parameters()])
        parts = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(parts, mine)
        assert torch.equal(*parts)
        assert (mine == 0).any()


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    module = net()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def check_shards(rank: int) -> None:
    floor = {"min_kept": 0.3 / 2}
    for law, options in ((PowerLaw(0.3, 0.6), {}), (TARGET, {}), (TARGET, floor), (RESCALED, {})):
        alone, module = net(), sharded()
        fit(alone, law, 15, None, **options)
        optimizer = fit(module, law, 15, rank, **options)
        for a, b in zip(alone.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(full(b), full(a), rtol=1e-4, atol=1e-5)
        report = optimizer.mask_report()
        assert report.zeros == sum(int((full(p) == 0).sum()) for p in module.parameters() if p.ndim > 1)
        if isinstance(law, TargetSparsity):
            assert report.zeros == round(0.8 * (63 + 45 + 15))
            assert optimizer.frozen
        check_resume(module, optimizer, law, rank, options)


def check_resume(
    module: nn.Module, optimizer: DualAveraging, law: Any, rank: int, options: dict[str, Any]
) -> None:
    state = next(iter(optimizer.state.values()))
    assert type(state["momentum_buffer"]) is type(
        next(module.parameters()).data
    )  # sharded like its parameter
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = DualAveraging(module.named_parameters(), 0.05, law=law, momentum=0.9, **options)
    again.load_state_dict(torch.load(file, weights_only=False))
    start = [p.detach().clone() for p in module.parameters()]
    backward(module, 99, slice(4 * rank, 4 * rank + 4))
    optimizer.step()
    expected = [full(p) for p in module.parameters()]
    with torch.no_grad():
        for p, old in zip(module.parameters(), start, strict=True):
            p.copy_(old)
    again.step()
    assert all(torch.equal(full(p), old) for p, old in zip(module.parameters(), expected, strict=True))


def check_ties(rank: int) -> None:
    """All latents equal: the cut goes by index across the shards."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    w = nn.Parameter(distribute_tensor(torch.ones(5, 3), mesh, [Shard(0)]))
    optimizer = DualAveraging([w], 0.1, law=TargetSparsity(0.7, 2))
    for _ in range(3):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert (full(w).flatten() == 0).tolist() == [True] * 10 + [False] * 5


def test_two_processes() -> None:
    two_processes(work)


def test_one_process_needs_no_process_group() -> None:
    module = net()
    optimizer = GRDA(module.parameters(), 0.1)
    backward(module, 0, slice(None))
    optimizer.step()
    assert optimizer.mask_report().entries == 123
