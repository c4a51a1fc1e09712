"""Training the bend of a curve between two networks, so that the loss stays low all the way."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as File
from typing import Any, Literal

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape.path import Path, Progress
from espalier.landscape.surface import Surface
from espalier.processes import from_main
from espalier.train.state import load_state, save_state, tensors_digest

Support = Literal["all", "union", "intersection"]


@dataclass(frozen=True)
class CurveTraining:
    """How the bend is trained.

    Every step draws t uniformly from (0, 1) and takes one batch at the point there: the loss is an unbiased
    estimate of the mean over t. The rate is `lr` for the first half, falls linearly to a hundredth until nine
    tenths, and stays there (the schedule of Garipov et al.).

    Args:
        epochs: passes over the training examples of the surface; at least 1.
        lr: of SGD.
        momentum: in [0, 1).
        weight_decay: of the point on the curve: half of it times the squared norm is added to the loss.
        batch_size: examples a step, also of a loader (unless the inputs of its batches differ in shape).
        seed: of the order of the examples and of t.
        clip: largest norm of a gradient; larger ones are scaled down. Far from both ends a batch can have a
            gradient that throws the bend away for good.
    """

    epochs: int = 30
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    seed: int = 0
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("clip", self.clip > 0, "positive"),
        ):
            if not ok:
                raise EspalierError(f"curve training `{name}` must be {need}, got {getattr(self, name)}")

    def rate(self, done: float) -> float:
        """Learning rate after a fraction `done` of the steps."""
        return self.lr * min(1.0, max(0.01, 1 - 0.99 * (done - 0.5) / 0.4))


def trained_path(
    surface: Surface,
    start: Tensor,
    end: Tensor,
    *,
    kind: Literal["bezier", "polygon"] = "bezier",
    training: CurveTraining | None = None,
    support: Support = "all",
    folder: File | None = None,
    progress: Progress | None = None,
) -> Path:
    """A Bezier curve or polygon with one trained bend; the networks at its ends stay as they are.

    The bend starts in the middle of the straight line. Batch norm uses batch statistics while training, and
    dropout is off (the reference implementation trains with dropout where the network has it). No
    augmentation. Steps depend on each other, so of several processes the main one trains and the others wait.

    Args:
        surface: the module and the training examples.
        start: network at t = 0, vector (d,).
        end: network at t = 1, vector (d,).
        kind: of the curve.
        training: how long, with which rate.
        support: which entries of the bend may differ from zero: all; those where an end is not zero (the curve
            is then zero wherever both ends are); those where neither is (every inner point has, beyond the
            entries of the two ends themselves, nothing new).
        folder: keeps the state after each epoch, to go on after a kill.
        progress: called after each epoch.

    Raises:
        EspalierError: the ends are the same network, training diverged, or the folder holds another curve.

    References:
        Garipov et al. (2018), arXiv 1802.10026, section 3.
    """
    training = training or CurveTraining()
    mask = support_of(start, end, support)
    bend = (start + end) / 2
    if mask is not None:
        bend *= mask
    path = Path(kind, start, end, bend)
    speed = torch.zeros_like(bend)
    spec = _spec(surface, path, training, support)
    state = None if folder is None else from_main(lambda: load_state(folder, spec))
    if state is not None:
        bend.copy_(state["bend"])
        speed.copy_(state["speed"])

    def train(epoch: int) -> Tensor:
        _epoch(surface, path, speed, mask, training, epoch)
        kept = bend.cpu()
        if folder is not None:
            save_state(folder, {"spec": spec, "epoch": epoch + 1, "bend": kept, "speed": speed.cpu()})
        return kept

    for epoch in range(0 if state is None else int(state["epoch"]), training.epochs):
        bend.copy_(from_main(partial(train, epoch)))
        if progress is not None:
            progress(epoch + 1, training.epochs)
    return path


def support_of(start: Tensor, end: Tensor, support: Support) -> Tensor | None:
    """Where the bend may differ from zero, bool (d,); None for everywhere.

    Raises:
        EspalierError: an unknown word, or nothing is left.
    """
    table: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
        "all": None,
        "union": torch.logical_or,
        "intersection": torch.logical_and,
    }
    if support not in table:
        raise EspalierError(f"the support of a curve is one of {', '.join(table)}, got {support!r}")
    combine = table[support]
    return None if combine is None else combine(start != 0, end != 0)


def _spec(surface: Surface, path: Path, training: CurveTraining, support: Support) -> dict[str, Any]:
    ends = tensors_digest({"start": path.start, "end": path.end})
    return {
        "curve": path.kind,
        "ends": ends,
        "data": surface.spec,
        "training": asdict(training),
        "support": support,
    }


def _epoch(
    surface: Surface, path: Path, speed: Tensor, mask: Tensor | None, training: CurveTraining, epoch: int
) -> None:
    """One pass over the training examples; t of each step depends on (seed, epoch) alone."""
    assert path.bend is not None
    generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
    steps = surface.train.steps(training.batch_size)
    for i, (x, y) in enumerate(surface.train.shuffled(training.batch_size, training.seed, epoch)):
        t = float(torch.rand((), generator=generator))
        if len(y) < 2:
            continue  # a last batch of one example has no batch statistics
        share = path.coefficients(t)[1]
        point = path.at(t).requires_grad_()
        loss = surface.batch_loss(point, x, y)
        (gradient,) = torch.autograd.grad(loss, point)
        if not math.isfinite(loss.item()):
            raise EspalierError(
                f"training the curve diverged in epoch {epoch + 1} (the loss is {loss.item()}): give a smaller lr than "
                f"{training.lr:g}"
            )
        with torch.no_grad():
            gradient = gradient.add_(point, alpha=training.weight_decay)
            if mask is not None:
                gradient *= mask
            norm = float(gradient.norm())
            speed.mul_(training.momentum).add_(
                gradient, alpha=share * min(1.0, training.clip / max(norm, 1e-30))
            )
            path.bend.sub_(speed, alpha=training.rate((epoch + i / steps) / training.epochs))
