"""The built-in optimizers, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from espalier.train.training import Training

OptimizerFactory = Callable[[Sequence[torch.nn.Parameter]], Optimizer]
"""Parameters -> optimizer; `functools.partial(torch.optim.RMSprop, lr=0.01)` is one."""


def build(training: Training, parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """The optimizer that `training.optimizer` names."""
    t = training
    if t.optimizer == "sgd":
        nesterov = t.nesterov and t.momentum > 0
        return torch.optim.SGD(
            parameters, lr=t.lr, momentum=t.momentum, nesterov=nesterov, weight_decay=t.weight_decay
        )
    kind = torch.optim.Adam if t.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=t.lr, weight_decay=t.weight_decay)


def rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Learning rate at a step (0, 1, ...) as a multiple of the optimizer's own, in [0, 1]."""
    total, warm = training.epochs * steps_per_epoch, training.warmup * steps_per_epoch
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1.0, total - warm)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if training.schedule == "step":
        return float(0.1 ** sum(done >= milestone for milestone in training.milestones))
    if training.schedule == "garipov":
        return min(1.0, max(0.01, 1.0 - 0.99 * (done - 0.5) / 0.4))
    return 1.0


def scheduler(
    training: Training,
    optimizer: Optimizer,
    steps_per_epoch: int,
    position: Callable[[int], int] = lambda step: step,
) -> LambdaLR:
    """The schedule on an optimizer; `step()` after every optimizer step.

    `position` says where the schedule stands after so many steps: behind them, where a method rewinds.
    """
    return LambdaLR(optimizer, lambda step: rate(training, position(step), steps_per_epoch))
