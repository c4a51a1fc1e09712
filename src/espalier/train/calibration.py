"""c and mu for those who want the paper's law: proposed from short pilot runs, with how far off they may be."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.data import Dataset
from espalier.optim import (
    DualAveraging,
    Law,
    Polynomial,
    PowerLaw,
    TargetSparsity,
    power_law_reaching,
    threshold_path,
)
from espalier.train.loop import fit
from espalier.train.optimizers import rate
from espalier.train.training import Training

__all__ = ["Calibration", "Pilot", "calibrate"]

_TOLERANCE = 0.1  # of the density wanted: closer than the extrapolation is good for
_STEEPEST, _FLATTEST = 4.0, 0.4  # believable powers of c by which a density falls
_OF_TRAINING = ("lr", "law", "momentum", "nesterov", "betas", "eps", "weight_decay")  # options it decides
_AT_ONCE = Polynomial(30.0)  # a ramp that is at its end for most of the run, as a power law is


@dataclass(frozen=True)
class Pilot:
    """One short run under a power law, on a copy of the network.

    Args:
        law: what was tried.
        sparsity: zeros / thresholded entries at its end.
        halfway: the same when half of its time (sum of the rates) had passed.
        accuracy: on the validation split at its end; None without one.
    """

    law: PowerLaw
    sparsity: float
    halfway: float
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """A proposal for c and mu.

    Args:
        law: hand it to `DualAveraging`, or its c and mu to `GRDA`.
        sparsity: what was asked for.
        predicted: sparsity expected at the end of the whole training.
        low: sparsity if the pilot's last value stays.
        high: sparsity if the density keeps falling, at every doubling of the time, as it did at the pilot's
            last. Not an interval: most trainings end outside.
        threshold: of the law after the last step of the whole training.
        stretch: epochs of the whole training / epochs of a pilot; 1 leaves only the seed's error.
        pilots: every run, in order.
    """

    law: PowerLaw
    sparsity: float
    predicted: float
    low: float
    high: float
    threshold: float
    stretch: float
    pilots: tuple[Pilot, ...]


Progress = Callable[[int, int, str], None]


def calibrate(
    model: nn.Module,
    data: Dataset,
    training: Training,
    sparsity: float,
    *,
    mu: float = 0.51,
    pilot_epochs: int | None = None,
    rounds: int = 6,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Search the c with which a training ends near a sparsity, by short runs on copies of the network.

    A pilot is the whole training shrunk to `pilot_epochs`, schedule and warm-up included. The first one follows
    a target sparsity and yields the threshold that gives it; the others follow the power law, and c is
    corrected by the sparsity they end at.
    What a longer run adds is extrapolated from the second half of the pilot: between nothing (`low`) and the
    same relative fall of the density at each doubling (`high`); the geometric mean of the densities is
    predicted. mu just above 1/2 makes this possible: the noise of the latents grows with the square root of the
    time, as such a threshold nearly does. At mu = 0.7 the prediction means little.

    A starting point, not a promise: in our trainings the density came out up to three times the one asked for, and
    outside `low` to `high` more often than inside (`results/calibration_error.py`). Where a sparsity matters, ask for
    it by `TargetSparsity`.

    The network, its modes and the global random generators are left as they were.

    Args:
        model: where the training will start from.
        data: train split to train on, validation split to report accuracies on.
        training: the whole training, with steps of type "sgd".
        sparsity: in (0, 1), zeros / thresholded entries wanted at its end.
        mu: in [0, 1].
        pilot_epochs: between 1 and `training.epochs`; default a fifth of them.
        rounds: >= 1, most pilots under a power law; fewer when the prediction is within a tenth of the density
            wanted.
        progress: called after every step of every pilot.
        options: of `DualAveraging`, such as `scope="paper"` or `decay="prox"`, but none that the training decides.

    Returns:
        The law of the pilot whose prediction is nearest.

    Raises:
        EspalierError: a value is out of range, or steps that are not of type "sgd".
        Diverged: a pilot's loss is not finite; lower `training.lr`.
    """
    epochs = _check(training, sparsity, pilot_epochs, rounds, options)
    warmup = training.warmup * epochs / training.epochs
    short = replace(training, epochs=epochs, warmup=warmup, stop_below=None)
    search = _Search(model, data, training, short, options, progress)
    law = search.start(sparsity, mu)
    pilots: list[Pilot] = []
    for _ in range(rounds):
        pilots.append(search.pilot(law))
        if abs(_density(pilots[-1], search.stretch) / (1 - sparsity) - 1) <= _TOLERANCE:
            break
        law = PowerLaw(_next(pilots, search.stretch, sparsity), mu)
    best = min(pilots, key=lambda pilot: _gap(pilot, search.stretch, sparsity))
    return Calibration(
        law=best.law,
        sparsity=sparsity,
        predicted=1 - _density(best, search.stretch),
        low=1 - _density(best, search.stretch, share=0.0),
        high=1 - _density(best, search.stretch, share=1.0),
        threshold=threshold_path(best.law, _rates(training, search.steps))[-1],
        stretch=search.stretch,
        pilots=tuple(pilots),
    )


class _Search:
    """What the pilots have in common."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        whole: Training,
        short: Training,
        options: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self.model, self.data, self.short = model, data, short
        self.options, self.progress = options, progress
        self.steps = data.train.steps(short.batch_size)
        self.rates = _rates(short, self.steps)
        self.stretch = whole.epochs / short.epochs

    def start(self, sparsity: float, mu: float) -> PowerLaw:
        """The law that ends at the threshold of a pilot which follows the target."""
        law = TargetSparsity(sparsity, len(self.rates) + 1, _AT_ONCE, every=1)
        optimizer, _ = self.run(law, lambda _: None)
        levels = [float(state["threshold"]) for state in optimizer.state.values() if "threshold" in state]
        return power_law_reaching(max(levels), self.rates, mu)

    def pilot(self, law: PowerLaw) -> Pilot:
        """Run one, and look at its zeros at half time and at the end."""
        total, passed, halfway = sum(self.rates), 0.0, 0.0
        left = iter(self.rates)

        def look(optimizer: DualAveraging) -> None:
            nonlocal passed, halfway
            before, passed = passed, passed + next(left)
            if before < total / 2 <= passed:
                halfway = optimizer.mask_report().sparsity

        optimizer, accuracy = self.run(law, look)
        return Pilot(law, optimizer.mask_report().sparsity, halfway, accuracy)

    def run(self, law: Law, look: Callable[[DualAveraging], None]) -> tuple[DualAveraging, float | None]:
        """Train a copy; `look` is called after every step."""
        made: list[DualAveraging] = []

        def build(parameters: Sequence[nn.Parameter]) -> Optimizer:
            t = self.short
            steps: dict[str, Any] = {
                "momentum": t.momentum,
                "nesterov": t.nesterov and t.momentum > 0,
                "weight_decay": t.weight_decay,
            }
            made.append(DualAveraging(parameters, t.lr, law=law, **steps, **self.options))
            made[0].register_step_post_hook(lambda *_: look(made[0]))
            return made[0]

        history = fit(
            copy.deepcopy(self.model), self.data, self.short, optimizer=build, progress=self.progress
        )
        return made[0], history.last.accuracy


def _check(
    training: Training, sparsity: float, pilot_epochs: int | None, rounds: int, options: dict[str, Any]
) -> int:
    """Epochs of a pilot, if all can be used."""
    if decided := [name for name in _OF_TRAINING if name in options]:
        raise EspalierError(
            f"calibrate takes the steps of the training, also its {decided[0]}: change the training, or leave it out"
        )
    if not 0 < sparsity < 1:
        raise EspalierError(f"`sparsity` is {sparsity}; calibrate needs a fraction in (0, 1), such as 0.9")
    if training.optimizer != "sgd":
        raise EspalierError(
            f"calibrate proposes c for steps of type 'sgd', but the training has {training.optimizer!r};"
            " use TargetSparsity, which needs no c"
        )
    if not isinstance(rounds, int) or rounds < 1:
        raise EspalierError(f"`rounds` is {rounds}; it counts pilots, and calibrate needs at least one")
    epochs = max(1, round(training.epochs / 5)) if pilot_epochs is None else pilot_epochs
    if not 1 <= epochs <= training.epochs:
        raise EspalierError(
            f"`pilot_epochs` is {epochs}; it must be between 1 and the training's {training.epochs}"
        )
    return epochs


def _rates(training: Training, steps_per_epoch: int) -> list[float]:
    """Effective rate of every step of a training."""
    whole = training.lr / (1 - training.momentum)
    steps = range(training.epochs * steps_per_epoch)
    return [whole * rate(training, step, steps_per_epoch) for step in steps]


def _density(pilot: Pilot, stretch: float, share: float = 0.5) -> float:
    """Density at the end of a training `stretch` times as long, if the pilot's trend goes on at a share of itself.

    A density that rises is a network that recovers from a collapse at the start, which does not go on.
    """
    last, half = max(1 - pilot.sparsity, 1e-9), max(1 - pilot.halfway, 1e-9)
    trend: float = min(1.0, last / half) ** (share * math.log2(stretch))
    return last * trend


def _gap(pilot: Pilot, stretch: float, sparsity: float) -> float:
    """How far a pilot's prediction is off, as a ratio of densities on a logarithmic scale."""
    return abs(math.log(_density(pilot, stretch) / (1 - sparsity)))


def _next(pilots: Sequence[Pilot], stretch: float, sparsity: float) -> float:
    """The next c: secant of log density over log c, kept inside what is known to be too small and too large.

    A step is a factor of two at most: where the network has collapsed, its density says nothing.
    """
    wanted = 1 - sparsity
    points = sorted((pilot.law.c, _density(pilot, stretch)) for pilot in pilots)
    (c, density), *others = sorted(points, key=lambda point: abs(math.log(point[1] / wanted)))
    power = 1.0
    if others and others[0][0] != c:
        power = math.log(density / others[0][1]) / math.log(others[0][0] / c)
    power = min(max(power, _FLATTEST), _STEEPEST)
    found = c * min(max(float((density / wanted) ** (1 / power)), 0.5), 2.0)
    too_small = [c for c, density in points if density > wanted]
    too_large = [c for c, density in points if density <= wanted]
    if too_small and too_large and not max(too_small) < found < min(too_large):
        found = math.sqrt(max(too_small) * min(too_large))
    return found
