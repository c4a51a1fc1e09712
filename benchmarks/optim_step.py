"""Time of `step` on ResNet-50's shapes, as a ratio to torch's fused SGD with momentum in the same run.

    python benchmarks/optim_step.py --threads 2 --rounds 20 [--compiled]

Candidates take turns within every round, so what else the machine does hits all alike; the minimum over the rounds is
compared, and the median shows the spread. The first steps (state, compilation) are not timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torch.nn import Parameter

from espalier.optim import GRDA, DualAveraging, TargetSparsity


def shapes() -> list[tuple[int, ...]]:
    with torch.device("meta"):
        return [tuple(p.shape) for p in torchvision.models.resnet50().parameters()]


def parameters(device: str) -> list[Parameter]:
    """Weights with gradients."""
    made = [Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes()]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def candidates(device: str, compiled: bool) -> dict[str, Callable[[], object]]:
    target = TargetSparsity(0.9, 10**9)
    paths = {"": {}, " compiled": {"compiled": True}} if compiled else {"": {}}
    found: dict[str, Callable[[], object]] = {
        "SGD momentum .9 fused": torch.optim.SGD(parameters(device), 1e-6, momentum=0.9, fused=True).step,
        "SGD fused": torch.optim.SGD(parameters(device), 1e-6, fused=True).step,
    }
    for name, path in paths.items():
        found[f"GRDA{name}"] = GRDA(parameters(device), 1e-6, **path).step
        found[f"GRDA momentum .9{name}"] = GRDA(parameters(device), 1e-6, momentum=0.9, **path).step
        found[f"target sparsity{name}"] = DualAveraging(parameters(device), 1e-6, law=target, **path).step
    return found


def measure(steps: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds per step, round by round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(2):
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            step()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def search_seconds(device: str) -> float:
    """One threshold search over the whole network."""
    law = TargetSparsity(0.9, 1000)
    made = parameters(device)
    optimizer = DualAveraging(made, 1e-6, law=law)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also the compiled path (minutes to compile)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = candidates(options.device, options.compiled)
    times = measure(steps, options.rounds, options.device)
    base = min(times["SGD momentum .9 fused"])
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':32}{'min ms':>8}{'median':>8}{'ratio':>8}{'state MB':>10}")
    for name, step in steps.items():
        state = bytes_of(step.__self__.state) / 1e6  # type: ignore[attr-defined]
        low, middle = min(times[name]), statistics.median(times[name])
        print(f"{name:32}{low * 1e3:8.2f}{middle * 1e3:8.2f}{low / base:8.2f}{state:10.1f}")
    print(f"one threshold search {search_seconds(options.device) * 1e3:.1f} ms, every 32 steps at most")


if __name__ == "__main__":
    main()
