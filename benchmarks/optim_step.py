"""Time of `step` on ResNet-50's shapes, as a ratio to torch's fused SGD with momentum in the same run."""

import math
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torch.nn import Parameter

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier.optim import GRDA, DualAveraging, TargetSparsity

Shapes = list[tuple[int, ...]]


def shapes() -> Shapes:
    with torch.device("meta"):
        return [tuple(p.shape) for p in torchvision.models.resnet50().parameters()]


def parameters(made: Shapes, device: str) -> list[Parameter]:
    """Weights with gradients."""
    weights = [Parameter(0.02 * torch.randn(shape, device=device)) for shape in made]
    for p in weights:
        p.grad = torch.randn_like(p)
    return weights


def candidates(made: Shapes, device: str, *, compiled: bool) -> dict[str, Callable[[], object]]:
    target = TargetSparsity(0.9, 10**9)
    paths = {"": False, " compiled": True} if compiled else {"": False}
    found: dict[str, Callable[[], object]] = {
        "SGD momentum .9 fused": torch.optim.SGD(
            parameters(made, device), 1e-6, momentum=0.9, fused=True
        ).step,
        "SGD fused": torch.optim.SGD(parameters(made, device), 1e-6, fused=True).step,
    }
    for name, path in paths.items():
        found[f"GRDA{name}"] = GRDA(parameters(made, device), 1e-6, compiled=path).step
        found[f"GRDA momentum .9{name}"] = GRDA(
            parameters(made, device), 1e-6, momentum=0.9, compiled=path
        ).step
        found[f"target sparsity{name}"] = DualAveraging(
            parameters(made, device), 1e-6, law=target, compiled=path
        ).step
    return found


def wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def search_seconds(shapes: Shapes, device: str) -> float:
    """One threshold search over the whole network."""
    law = TargetSparsity(0.9, 1000)
    optimizer = DualAveraging(parameters(shapes, device), 1e-6, law=law)
    optimizer.step()
    best = float("inf")
    for step in range(1, 6):
        optimizer.param_groups[0]["steps"] = 1 + step * law.interval
        wait(device)
        start = time.perf_counter()
        with torch.no_grad():
            optimizer._search(law, optimizer.param_groups)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def bytes_of(state: dict[Tensor, dict[str, object]]) -> int:
    return sum(v.nbytes for s in state.values() for v in s.values() if isinstance(v, Tensor))


def optimizer_step(quick: bool = False, device: str = "cpu") -> Part:
    """One step of the optimizer against fused SGD; the first ones (state, compilation) are not timed.

    Quick runs leave the compiled path out: compiling takes most of a minute.
    """
    everything = shapes()
    made = everything[:12] if quick else everything
    steps = candidates(made, device, compiled=not quick)
    for step in steps.values():
        step()
    times = interleaved(steps, 2 if quick else 20, wait=lambda: wait(device))
    base = "SGD momentum .9 fused"
    ratios = {name: ratio(times[name], times[base]) for name in steps}
    search = search_seconds(made, device)
    return Part(
        [
            Goal(f"step of {name} over {base}", 1.1, *found)
            for name, found in ratios.items()
            if not name.startswith("SGD")
        ],
        {
            "parameters": sum(math.prod(shape) for shape in made),
            "device": device,
            "seconds": table(times),
            "state bytes": {name: bytes_of(step.__self__.state) for name, step in steps.items()},  # type: ignore[attr-defined]
            "seconds of one threshold search, every 32 steps at most": search,
        },
    )
