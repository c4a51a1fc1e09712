"""The same number of trials for every method: Optuna chooses on the validation split."""

import dataclasses
import json
import traceback
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from espalier._errors import EspalierError, first_line, near
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.atomic import atomic, made
from espalier.compare.cell import Cell, Contender, Range, check_equal
from espalier.compare.running import locked, networks
from espalier.compare.trials import FILE, chosen, database, search
from espalier.methods import AbstractMethod
from espalier.selection import select
from espalier.train import Failed, Training, fit
from espalier.train.loop import Progress
from espalier.train.state import digest_of

FOUND = "found.json"
"""What tuning has found for a cell: of how many trials, and their best values or why there are none."""


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


def tune(
    cell: Cell, tuning: Tuning, folder: Path, progress: Progress | None = None, *, wait: bool = True
) -> dict[str, Any] | None:
    """The best of the trials for a cell, by accuracy on the validation split after the last epoch.

    Goes on where it stopped; other ranges are other trials. The test split is not read. A trial that diverges counts
    as a trial. Why it failed is recorded, and it is tried again when it is asked for again.

    Args:
        cell: the run as it would be untuned; its seed is that of the trials, its result serves every seed.
        tuning: trials and ranges.
        folder: of the study.
        progress: called after every step.
        wait: for another process that is at it.

    Returns:
        Changes: dotted field -> value, for `changed`; None while another process is at it, without `wait`.

    Raises:
        EspalierError: every trial failed, or one broke, whatever the reason.
    """
    space = tuning.space(cell.contender)
    if not space:
        return {}
    check_space(cell.contender, cell.training, space)
    place = made(_place(cell, space, folder))
    with locked(place / "lock", wait=wait) as ours:
        if not ours:
            return None
        if (found := _recorded(place, tuning.trials).get("values")) is not None:
            return dict(found)
        try:
            best = _searched(cell, tuning, space, folder, progress)
        except Exception as error:  # whatever it is, the study goes on and shows it
            reason = str(error)
            if not isinstance(error, EspalierError):
                (place / "traceback.txt").write_text(traceback.format_exc())
                reason = (
                    f"{type(error).__name__}: {first_line(error)} (see traceback.txt in tuning/{place.name})"
                )
            _record(place, {"trials": tuning.trials, "failure": reason})
            raise EspalierError(reason) from None
        _record(place, {"trials": tuning.trials, "values": best})
    return best


def _searched(
    cell: Cell, tuning: Tuning, space: Mapping[str, Range], folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """The best values, after the trials that are missing."""
    storage = database(tuning.storage, folder)
    import optuna

    def trial(asked: Any) -> float:
        values = {
            key: asked.suggest_int(key, int(r.low), int(r.high), log=r.log)
            if _kind(cell.contender, cell.training, key) is int
            else asked.suggest_float(key, r.low, r.high, log=r.log)
            for key, r in space.items()
        }
        tried = changed(cell, values)
        try:  # in a folder of these values, from where they go on if they are tried again
            return _validation(tried, _place(cell, space, folder) / tried.digest, progress)
        except Failed:
            raise optuna.TrialPruned from None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        best = search(
            storage, _name(cell, space), trial, tuning.trials, cell.seed, alone=tuning.storage is None
        )
    if best is None:
        raise EspalierError(f"every tuning trial of {cell} diverged: narrow its ranges")
    return best


def known(cell: Cell, tuning: Tuning, folder: Path) -> dict[str, Any] | None:
    """What `tune` has found for a cell, without training; None where it has not been tuned so.

    Raises:
        EspalierError: the trials have to be looked up, and their database cannot be read.
    """
    space = tuning.space(cell.contender)
    if not space:
        return {}
    place = _place(cell, space, folder)
    if (found := _recorded(place, tuning.trials)) or not (place / FOUND).exists():
        return found.get("values")
    # It is of another number of trials, which may hold as many as are asked for now.
    if tuning.storage is None and not (folder / "tuning" / FILE).exists():
        return None
    return chosen(database(tuning.storage, folder), _name(cell, space), tuning.trials)


def untuned(cell: Cell, tuning: Tuning, folder: Path) -> str | None:
    """Why the last try to tune a cell failed, if it did."""
    found = _recorded(_place(cell, tuning.space(cell.contender), folder), tuning.trials)
    return found.get("failure")


def check_tuning(cells: Iterable[Cell], tuning: Tuning, folder: Path) -> None:
    """Refuse a tuning that could record no trial, before anything is trained.

    Raises:
        EspalierError: optuna is not installed, or its database cannot be used.
    """
    if any(tuning.space(cell.contender) for cell in cells):
        database(tuning.storage, folder)


def untunable(cell: Cell, tuning: Tuning) -> str | None:
    """Why a cell cannot be tuned, found without training; None if nothing speaks against it."""
    if not tuning.space(cell.contender) or len(cell.network.data().validation):
        return None
    return (
        f"{cell.network.name} has no validation split, which tuning chooses by: give its data a larger `validation`, "
        "or leave the tuning out"
    )


def _name(cell: Cell, space: Mapping[str, Range]) -> str:
    """Names the trials of a cell in these ranges."""
    return digest_of({"cell": cell.spec, "ranges": {key: asdict(value) for key, value in space.items()}})


def _place(cell: Cell, space: Mapping[str, Range], folder: Path) -> Path:
    return folder / "tuning" / _name(cell, space)


def _record(place: Path, found: dict[str, Any]) -> None:
    with atomic(place / FOUND) as temporary:
        temporary.write_text(json.dumps(found) + "\n")


def _recorded(place: Path, trials: int) -> dict[str, Any]:
    """What is recorded for so many trials; empty where nothing is, or it does not say for how many."""
    try:
        found = json.loads((place / FOUND).read_text())
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) and found.get("trials") == trials else {}


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
