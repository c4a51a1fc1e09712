"""The same number of trials for every method: Optuna chooses on the validation split."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.atomic import made
from espalier.compare.cell import Cell
from espalier.compare.running import locked, networks
from espalier.selection import select
from espalier.train import Failed, fit
from espalier.train.loop import Progress


@dataclass(frozen=True)
class Range:
    """Where a number is looked for.

    Args:
        low: smallest.
        high: largest.
        log: on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise EspalierError(
                f"a range needs low < high, both positive on a logarithmic scale, got {self.low:g} to {self.high:g}"
            )


@dataclass(frozen=True)
class Tuning:
    """How every method is tuned, each with as many trials.

    Args:
        trials: per network, method, sparsity and teacher; the same for all.
        common: ranges of fields of the training, for every method.
        own: ranges by label of the method; "lr" is a field of the training, "method.end" of the method,
            "method.law.c" of its law.
        storage: URL of Optuna's database, such as one that several machines share; None is a file in the study's
            folder.

    Raises:
        EspalierError: no trials.
    """

    trials: int
    common: Mapping[str, Range] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise EspalierError(f"tuning needs at least one trial, got {self.trials}")

    def space(self, label: str) -> dict[str, Range]:
        """What is tuned for a method."""
        return {**self.common, **self.own.get(label, {})}


def tune(cell: Cell, tuning: Tuning, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """The best of the trials for a cell, by accuracy on the validation split after the last epoch.

    Goes on where it stopped. The test split is not read. A trial that fails counts as a trial.

    Args:
        cell: the run as it would be untuned; its seed is that of the trials, its result serves every seed.
        tuning: trials and ranges.
        folder: of the study.
        progress: called after every step.

    Returns:
        Changes: dotted field -> value, for `changed`.

    Raises:
        EspalierError: optuna is not installed, or every trial failed.
    """
    space = tuning.space(cell.contender.label)
    if not space:
        return {}
    try:
        import optuna
    except ImportError:
        raise EspalierError("tuning needs optuna: pip install 'espalier[compare]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = made(folder / "tuning" / cell.digest)
    storage = tuning.storage or f"sqlite:///{folder / 'tuning' / 'trials.db'}"

    def trial(asked: Any) -> float:
        values = {name: asked.suggest_float(name, r.low, r.high, log=r.log) for name, r in space.items()}
        try:
            return _validation(changed(cell, values), place / f"trial-{asked.number}", progress)
        except Failed:
            raise optuna.TrialPruned from None

    with locked(place / "lock", wait=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=storage, study_name=cell.digest, direction="maximize", load_if_exists=True
        )
        ended = [t for t in study.trials if t.state.is_finished()]
        study.sampler = optuna.samplers.TPESampler(seed=cell.seed + len(ended))
        if tuning.trials > len(ended):
            study.optimize(trial, n_trials=tuning.trials - len(ended))
        try:
            return dict(study.best_params)
        except ValueError:
            raise EspalierError(f"every tuning trial of {cell} failed: narrow its ranges") from None


def changed(cell: Cell, values: Mapping[str, Any]) -> Cell:
    """A cell with some of its numbers replaced: "lr" of the training, "method.end" or "method.law.c" of the method.

    Raises:
        EspalierError: there is no such field.
    """
    training, method = cell.training, cell.contender.method
    for name, value in values.items():
        if name.startswith("method."):
            method = _replaced(method, name.removeprefix("method.").split("."), value, name)
        else:
            training = _replaced(training, [name], value, name)
    return replace(cell, training=training, contender=replace(cell.contender, method=method))


def _replaced(value: Any, path: list[str], new: Any, name: str) -> Any:
    head, *rest = path
    if not dataclasses.is_dataclass(value) or head not in {f.name for f in dataclasses.fields(value)}:
        raise EspalierError(f"cannot tune {name!r}: {type(value).__name__} has no field {head!r}")
    found = _replaced(getattr(value, head), rest, new, name) if rest else new
    return dataclasses.replace(value, **{head: found})  # type: ignore[type-var]


def _validation(cell: Cell, place: Path, progress: Progress | None) -> float:
    """Accuracy on the validation split after the last epoch of a trial."""
    model, teacher = networks(cell)
    pruned = not cell.contender.smaller
    history = fit(
        model,
        cell.network.data(),
        cell.training,
        method=cell.contender.method,
        sparsity=cell.sparsity if pruned else None,
        teacher=teacher,
        names=select(open_checkpoint(model), cell.scope).names,
        folder=place,
        progress=progress,
    )
    if history.last.accuracy is None:
        raise EspalierError(f"{cell.network.name} has no validation split, which tuning chooses by")
    return history.last.accuracy
