"""What the optimizer costs in a real training: the whole step of ResNet-20, and its threshold searches."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn import Module
from torch.optim import Optimizer

from benchmarks._measure import Goal, Part, Times, ratio, spread, table
from benchmarks.optim_step import wait
from espalier.models import CifarResNet
from espalier.optim import GRDA, DualAveraging, TargetSparsity

RAMP = 1056
"""Steps of the shortest ramp anybody would call one: 90 % of 3 epochs of CIFAR-10; its searches are the densest."""

BASE, TARGET = "SGD momentum .9", "target sparsity momentum .9"

OPTIMIZERS: dict[str, Callable[[Module], Optimizer]] = {
    BASE: lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
    "GRDA": lambda model: GRDA(model.named_parameters(), 0.05),
    "GRDA momentum .9": lambda model: GRDA(model.named_parameters(), 0.05, momentum=0.9),
    TARGET: lambda model: DualAveraging(
        model.named_parameters(), 0.05, law=TargetSparsity(0.95, RAMP), momentum=0.9
    ),
}


def training_step(quick: bool = False, device: str = "cpu") -> Part:
    """Forward, backward and `step` of ResNet-20 on 128 images, against SGD with momentum.

    The passes are the same work for every optimizer, so their least time over all is added to each one's `step`, timed
    after a backward pass. A search is timed alone, and spread over the steps between two.
    """
    batch, rounds = (2, 2) if quick else (128, 8)
    passes, steps, optimizers = _measured(batch, rounds, device)
    least = min(passes)
    over = {
        name: ratio([least + own for own in steps[name]], [least + own for own in steps[BASE]])
        for name in steps
    }
    search, interval = _search(optimizers[TARGET], device)
    share = search / interval / (least + min(steps[TARGET]))
    goals = [
        Goal(f"ResNet-20 training step, {name} over {BASE}", 1.02, *over[name])
        for name in steps
        if name != BASE
    ]
    return Part(
        [*goals, Goal("threshold searches, share of ResNet-20's training step", 0.01, share, share, share)],
        {
            "batch": batch,
            "device": device,
            "seconds of forward and backward": spread(passes),
            "seconds of step": table(steps),
            "seconds of a search": search,
            "steps between searches": interval,
        },
    )


def _measured(batch: int, rounds: int, device: str) -> tuple[list[float], Times, dict[str, Optimizer]]:
    """Times of the passes, and of `step` per optimizer; the optimizers take turns."""
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    y = (torch.arange(batch) % 10).to(device)
    models = {name: CifarResNet(20).to(device) for name in OPTIMIZERS}
    optimizers = {name: make(models[name]) for name, make in OPTIMIZERS.items()}
    passes: list[float] = []
    steps: Times = {name: [] for name in OPTIMIZERS}
    for turn in range(rounds + 2):
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            started = _now(device)
            torch.autograd.backward(F.cross_entropy(models[name](x), y))
            middle = _now(device)
            optimizer.step()
            if turn >= 2:  # the first makes the state, the second may search for the first time
                passes.append(middle - started)
                steps[name].append(_now(device) - middle)
    return passes, steps, optimizers


def _now(device: str) -> float:
    wait(device)
    return time.perf_counter()


def _search(optimizer: Optimizer, device: str) -> tuple[float, int]:
    """Least time of one search, and the steps between two."""
    assert isinstance(optimizer, DualAveraging)
    group = optimizer.param_groups[0]
    law: TargetSparsity = group["law"]
    found = []
    for number in range(1, 11):
        group["steps"] = 1 + number * law.interval
        started = _now(device)
        with torch.no_grad():
            optimizer._search(law, [group])
        found.append(_now(device) - started)
    return min(found), law.interval
