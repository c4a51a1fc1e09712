"""The same number of trials for every method: Optuna chooses on the validation split."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from espalier._errors import EspalierError, near
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.atomic import atomic, made
from espalier.compare.cell import Cell, Contender, Range, check_equal
from espalier.compare.running import locked, networks
from espalier.methods import AbstractMethod
from espalier.selection import select
from espalier.train import Failed, Training, fit
from espalier.train.loop import Progress
from espalier.train.state import digest_of

FOUND = "found.json"


@dataclass(frozen=True)
class Tuning:
    """How every method is tuned, each with as many trials.

    Args:
        trials: per network, method, sparsity and teacher; the same for all.
        common: ranges of fields of the training, for every method.
        storage: URL of Optuna's database, such as one that several machines share; None is a file in the study's
            folder.

    Raises:
        EspalierError: no trials, or a range of what must be equal for all.
    """

    trials: int
    common: Mapping[str, Range] = field(default_factory=dict)
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise EspalierError(f"tuning needs at least one trial, got {self.trials}")
        check_equal(self.common)

    def space(self, contender: Contender) -> dict[str, Range]:
        """What is tuned for a method."""
        return {**self.common, **contender.ranges}


def tune(cell: Cell, tuning: Tuning, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """The best of the trials for a cell, by accuracy on the validation split after the last epoch.

    Goes on where it stopped; other ranges are other trials. The test split is not read. A trial that diverges counts
    as a trial.

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
    space = tuning.space(cell.contender)
    if not space:
        return {}
    check_space(cell.contender, cell.training, space)
    try:
        import optuna
    except ImportError:
        raise EspalierError("tuning needs optuna: pip install 'espalier[compare]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = _name(cell, space)
    place = made(folder / "tuning" / name)
    storage = tuning.storage or f"sqlite:///{folder / 'tuning' / 'trials.db'}"

    def trial(asked: Any) -> float:
        values = {
            key: asked.suggest_int(key, int(r.low), int(r.high), log=r.log)
            if _kind(cell.contender, cell.training, key) is int
            else asked.suggest_float(key, r.low, r.high, log=r.log)
            for key, r in space.items()
        }
        try:
            return _validation(changed(cell, values), place / f"trial-{asked.number}", progress)
        except Failed:
            raise optuna.TrialPruned from None

    with locked(place / "lock", wait=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        counted = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        ended = [t for t in study.trials if t.state in counted]
        study.sampler = optuna.samplers.TPESampler(seed=cell.seed + len(ended))
        if tuning.trials > len(ended):
            study.optimize(trial, n_trials=tuning.trials - len(ended))
        try:
            best = dict(study.best_params)
        except ValueError:
            raise EspalierError(f"every tuning trial of {cell} diverged: narrow its ranges") from None
        with atomic(place / FOUND) as temporary:
            temporary.write_text(json.dumps(best) + "\n")
    return best


def known(cell: Cell, tuning: Tuning, folder: Path) -> dict[str, Any] | None:
    """What `tune` has found for a cell, without training; None where it has not been tuned in these ranges."""
    space = tuning.space(cell.contender)
    if not space:
        return {}
    path = folder / "tuning" / _name(cell, space) / FOUND
    return dict(json.loads(path.read_text())) if path.exists() else None


def _name(cell: Cell, space: Mapping[str, Range]) -> str:
    """Names the trials of a cell in these ranges."""
    return digest_of({"cell": cell.spec, "ranges": {key: asdict(value) for key, value in space.items()}})


def check_space(contender: Contender, training: Training, space: Mapping[str, Range]) -> None:
    """Refuse ranges of fields that there are not, or whose ends they do not take.

    Raises:
        EspalierError: names the field.
    """
    for name, values in space.items():
        for value in (values.low, values.high):
            try:
                kind = _kind(contender, training, name)
                if kind not in (int, float):
                    raise EspalierError("it is no number")
                whole = kind is int
                if whole and value != int(value):
                    raise EspalierError("it counts, so both ends must be whole numbers")
                _changed(contender, training, {name: int(value) if whole else value})
            except (EspalierError, TypeError, ValueError) as error:
                raise EspalierError(
                    f"cannot tune {name!r} of {contender.label} to {value:g}: {error}"
                ) from None


def changed(cell: Cell, values: Mapping[str, Any]) -> Cell:
    """A cell with some of its numbers replaced: "lr" of the training, "method.end" or "method.law.c" of the method.

    Raises:
        EspalierError: there is no such field.
    """
    contender, training = _changed(cell.contender, cell.training, values)
    return replace(cell, training=training, contender=contender)


def _changed(
    contender: Contender, training: Training, values: Mapping[str, Any]
) -> tuple[Contender, Training]:
    method = contender.method
    for name, value in values.items():
        root, path = _root(method, training, name)
        new = _replaced(root, path, value)
        method, training = (method, new) if root is training else (new, training)
    return replace(contender, method=method), training


def _root(method: AbstractMethod, training: Training, name: str) -> tuple[Any, list[str]]:
    """What a dotted field belongs to, and the path in there."""
    if name.startswith("method."):
        return method, name.removeprefix("method.").split(".")
    return training, [name]


def _kind(contender: Contender, training: Training, name: str) -> Any:
    """The type that a dotted field is declared with; of `int | None`, int."""
    value, (*path, last) = _root(contender.method, training, name)
    for head in path:
        value = getattr(value, _field(value, head))
    declared = get_type_hints(type(value))[_field(value, last)]
    several = [kind for kind in get_args(declared) if kind is not NoneType]
    return several[0] if len(several) == 1 else declared


def _field(value: Any, name: str) -> str:
    known = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if name not in known:
        raise EspalierError(f"{type(value).__name__} has no field {name!r}.{near(name, known)}")
    return name


def _replaced(value: Any, path: list[str], new: Any) -> Any:
    head, *rest = path
    found = _replaced(getattr(value, _field(value, head)), rest, new) if rest else new
    return dataclasses.replace(value, **{_field(value, head): found})


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
