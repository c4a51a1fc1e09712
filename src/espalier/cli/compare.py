"""Compare pruning methods under equal conditions, from a study in YAML.

For example:

  espalier compare study.yaml -o compared

  espalier compare study.yaml -o compared --dry-run

  espalier compare study.yaml -o compared --add other-study --json

Start it again to go on, or start it twice at once: two processes share the runs. The test split is read once a run and
chooses nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from espalier._errors import EspalierError, plural
from espalier.cli import options
from espalier.cli.study_words import gather

if TYPE_CHECKING:
    from espalier.compare import Cell, Outcome, Tuning
    from espalier.train.loop import Progress


def command(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML file; see the documentation.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where runs and report go; default runs/STUDY."
        ),
    ] = None,
    data_root: options.DataRoot = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Also show the runs of another study; may be repeated."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="ray spreads the runs over a Ray cluster with a shared folder."),
    ] = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run and list them; train nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Show what is there; train nothing.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a study."""
    from espalier.checkpoint.atomic import made
    from espalier.compare import compare
    from espalier.recipe import YamlFile
    from espalier.report import compare as report
    from espalier.study import StudyRecipe

    file = YamlFile(study, StudyRecipe)
    folder = output or Path("runs") / study.stem
    if folder.exists() and not folder.is_dir():
        raise EspalierError(f"{folder} is a file; the runs need a folder")
    planned, tuning = gather(file, data_root)
    cells = list(planned.cells())
    if dry_run:
        print(report.plan_text(cells, _reasons(cells, tuning)))
        return
    made(folder)
    if report_only:
        found = _there(folder, cells, tuning)
    else:
        found = _run_all(study, cells, tuning, folder, data_root, engine, bar=not as_json)
    missing = len(
        {_name_of(cell.spec, cell.seed) for cell in cells} - {_name_of(o.spec, o.seed) for o in found}
    )
    result = compare([*found, *_outcomes(add or [])], missing=missing)
    report.write(file.value, result, folder)
    print(report.as_json(file.value, result) if as_json else report.as_text(file.value, result, folder))


def _reasons(cells: "Sequence[Cell]", tuning: "Tuning | None") -> dict[str, str]:
    """Why cells cannot be run, by digest; seeds differ in nothing that matters here."""
    from espalier.compare import check, untunable

    found: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str | None] = {}
    for cell in cells:
        key = (cell.network.name, cell.contender.label, cell.sparsity, cell.teacher)
        if key not in seen:
            seen[key] = check(cell) or (untunable(cell, tuning) if tuning else None)
        if (reason := seen[key]) is not None:
            found[cell.digest] = reason
    return found


def _failures(cells: "Sequence[Cell]", reasons: Mapping[str, str]) -> "dict[str, Outcome]":
    """The failures of cells, by digest, for which there is a reason."""
    from espalier.compare import Outcome

    return {
        c.digest: Outcome(c.spec, c.seed, failure=reasons[c.digest]) for c in cells if c.digest in reasons
    }


def _run_all(
    study: Path,
    cells: "Sequence[Cell]",
    tuning: "Tuning | None",
    folder: Path,
    root: Path | None,
    engine: str,
    *,
    bar: bool,
) -> "list[Outcome]":
    """Every cell that no other process is at; what cannot be run fails before anything is trained."""
    from espalier.compare import check_tuning
    from espalier.report.progress import progress_bar

    if tuning is not None:
        check_tuning(cells, tuning, folder)
    found = _failures(cells, _reasons(cells, tuning))
    todo = [cell for cell in cells if cell.digest not in found]
    untuned: dict[str, str] = {}
    _elsewhere(study, todo, folder, root, engine, bar=bar)
    with progress_bar(bar) as shown:
        whole = shown.add_task("runs", total=len(todo))
        one = shown.add_task("", total=None)
        waiting = todo
        for last in (False, True):  # what another process was at is looked for once more at the end
            left = []
            for cell in waiting:
                shown.update(one, description=str(cell), completed=0)

                def step(done: int, total: int, _: str) -> None:
                    shown.update(one, completed=done, total=total)

                outcome = _outcome(cell, tuning, folder, untuned, step, wait=last)
                if outcome is None:
                    left.append(cell)
                else:
                    found[cell.digest] = outcome
                    shown.update(whole, advance=1)
            waiting = left
    if waiting:
        options.say(f"{plural(len(waiting), 'run')} left to another process, which is at them")
    return [found[cell.digest] for cell in cells if cell.digest in found]


def _elsewhere(
    study: Path, cells: "Sequence[Cell]", folder: Path, root: Path | None, engine: str, *, bar: bool
) -> None:
    """Let a cluster, or a process for each of several GPUs, do the runs; their outcomes lie in the folder then."""
    from espalier.compare import on_devices, on_ray
    from espalier.report.progress import progress_bar

    gpus = on_devices.devices()
    if engine != "ray" and len(gpus) < 2:
        return
    arguments = [
        (str(study.absolute()), c.digest, str(folder.absolute()), root and str(root.absolute()))
        for c in cells
    ]
    with progress_bar(bar) as shown:
        task = shown.add_task(
            "runs on ray" if engine == "ray" else f"runs on {len(gpus)} GPUs", total=len(arguments)
        )

        def done(count: int) -> None:
            shown.update(task, completed=count)

        if engine == "ray":
            on_ray.spread(run_one, arguments, gpus=min(1, len(gpus)), done=done)
        else:
            on_devices.spread(run_one, arguments, gpus, done=done)


def run_one(study: str, digest: str, folder: str, root: str | None) -> None:
    """One run of a study, by its digest before tuning: what a worker does."""
    from espalier.recipe import YamlFile
    from espalier.study import StudyRecipe

    planned, tuning = gather(YamlFile(Path(study), StudyRecipe), Path(root) if root else None)
    cell = next(cell for cell in planned.cells() if cell.digest == digest)
    _outcome(cell, tuning, Path(folder), {}, wait=True)


def _outcome(
    cell: "Cell",
    tuning: "Tuning | None",
    folder: Path,
    untuned: dict[str, str],
    progress: "Progress | None" = None,
    *,
    wait: bool,
) -> "Outcome | None":
    """Run a cell with what tuning found by seed 0 for every seed; failing to tune it is the failure of all of them.

    Args:
        cell: as it would be untuned.
        tuning: how it is tuned, if it is.
        folder: of the study.
        untuned: why tuning failed, by the digest of what is tuned; added to, and not tried again for the next seed.
        progress: called after every step.
        wait: for another process that tunes it.

    Returns:
        The outcome, or None while another process is at it.
    """
    from espalier.compare import Outcome, changed, run, tune

    if tuning is not None:
        first = _first(cell)
        if first.digest not in untuned:
            try:
                values = tune(first, tuning, folder, progress, wait=wait)
            except EspalierError as error:
                untuned[first.digest] = str(error)
        if first.digest in untuned:
            return Outcome(cell.spec, cell.seed, failure=_not_tuned(untuned[first.digest]))
        if values is None:
            return None
        cell = changed(cell, values)
    return run(cell, folder, progress)


def _not_tuned(reason: str) -> str:
    return f"not tuned: {reason}"


def _first(cell: "Cell") -> "Cell":
    """The cell whose tuning serves all seeds."""
    return replace(cell, seed=0, training=replace(cell.training, seed=0))


def _name_of(spec: "Mapping[str, Any]", seed: int) -> tuple[Any, ...]:
    """What a run is called, whatever else its specification says."""
    return (spec["network"], spec["label"], spec["sparsity"], spec["teacher"], seed)


def _there(folder: Path, cells: "Sequence[Cell]", tuning: "Tuning | None") -> "list[Outcome]":
    """What lies in the folder for these runs, as they are specified now, and why others cannot be done."""
    from espalier.compare import changed, known, untuned
    from espalier.train.state import digest_of

    asked, reasons = set(), {}
    for cell in cells:
        values = {} if tuning is None else known(_first(cell), tuning, folder)
        if values is not None:
            asked.add(changed(cell, values).digest)
        elif tuning is not None and (reason := untuned(_first(cell), tuning, folder)) is not None:
            reasons[cell.digest] = _not_tuned(reason)
    found = [outcome for outcome in _outcomes([folder]) if digest_of(outcome.spec) in asked]
    there = {_name_of(outcome.spec, outcome.seed) for outcome in found}
    left = [cell for cell in cells if _name_of(cell.spec, cell.seed) not in there]
    return [*found, *_failures(left, {**reasons, **_reasons(left, tuning)}).values()]


def _outcomes(folders: Sequence[Path]) -> "list[Outcome]":
    """Everything that lies in folders of studies."""
    from espalier.compare import Outcome
    from espalier.compare.running import RESULT

    for folder in folders:
        if not folder.is_dir():
            raise EspalierError(f"there is no folder {folder} with the runs of a study")
    return [Outcome.load(path) for folder in folders for path in sorted(folder.glob(f"*/{RESULT}"))]
