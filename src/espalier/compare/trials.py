"""The trials of a tuning in Optuna's database: taken up where they stopped, counted, chosen from."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espalier._errors import EspalierError, first_line
from espalier.checkpoint.atomic import made
from espalier.compare.running import locked

FILE = "trials.db"


def database(url: str | None, folder: Path) -> Any:
    """Optuna's storage at a URL, or in a file of the study's folder; made where it is missing.

    Raises:
        EspalierError: optuna is not installed, or the database cannot be used.
    """
    optuna = _optuna()
    place = made(folder / "tuning")
    own = {"connect_args": {"timeout": 60}}  # seconds: several processes write to the one file
    with locked(place / "lock", wait=True):  # two that make the tables at once break each other
        try:
            if url is None:
                return optuna.storages.RDBStorage(f"sqlite:///{place / FILE}", own)
            try:
                return optuna.storages.RDBStorage(url)
            except Exception:  # another machine, which this lock does not hold, may just have made the tables
                return optuna.storages.RDBStorage(url)
        except Exception as error:  # of SQLAlchemy, of a driver, or that there is none
            where = place / FILE if url is None else re.sub(r":[^:@/]*@", ":***@", url)
            raise EspalierError(
                f"trials cannot be kept in {where} ({first_line(error)}): give tuning a `storage` that can be written, "
                "such as sqlite:////shared/trials.db, and install the driver of its database"
            ) from None


def search(
    storage: Any, name: str, trial: Callable[[Any], float], count: int, seed: int, *, alone: bool
) -> dict[str, Any] | None:
    """The best of so many trials; those that are missing are tried now.

    What is tried depends on the seed and on the trials before, so that an interrupted search ends as another would.

    Args:
        storage: the database.
        name: of the search in it.
        trial: tries values; raises `optuna.TrialPruned` where they lead nowhere.
        count: of trials.
        seed: of the first trial; the next ones follow.
        alone: no other process searches under this name, so a trial that is still running was killed.

    Returns:
        The values, or None where every trial led nowhere.
    """
    optuna = _optuna()
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    state = optuna.trial.TrialState
    for killed in study.get_trials(states=(state.RUNNING,)) if alone else ():
        study.tell(killed.number, state=state.FAIL)
        study.enqueue_trial(killed.params)
    while len(_ended(study)) < count:  # trials of other machines count
        # Those of other machines count, so that no two try the same.
        begun = len(study.get_trials(states=(state.COMPLETE, state.PRUNED, state.RUNNING)))
        study.sampler = optuna.samplers.TPESampler(seed=seed + begun)
        study.optimize(trial, n_trials=1)
    return _best(study, count)


def chosen(storage: Any, name: str, count: int) -> dict[str, Any] | None:
    """The best of the first so many trials of a search; None where there are not as many, or none led anywhere."""
    try:
        study = _optuna().load_study(storage=storage, study_name=name)
    except KeyError:
        return None
    return _best(study, count) if len(_ended(study)) >= count else None


def _best(study: Any, count: int) -> dict[str, Any] | None:
    """More trials than are asked for would favor this method over the others."""
    done = [trial for trial in _ended(study)[:count] if trial.value is not None]
    return dict(max(done, key=lambda trial: trial.value).params) if done else None


def _ended(study: Any) -> list[Any]:
    """Trials that count, in their order: those that led nowhere do, those of a killed process do not."""
    state = _optuna().trial.TrialState
    return sorted(study.get_trials(states=(state.COMPLETE, state.PRUNED)), key=lambda trial: trial.number)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise EspalierError("tuning needs optuna: pip install 'espalier[compare]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that breaks is reported by us
    return optuna
