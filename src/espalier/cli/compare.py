"""Compare pruning methods under equal conditions, from a study in YAML.

For example:

  espalier compare study.yaml -o compared

  espalier compare study.yaml -o compared --dry-run

  espalier compare study.yaml -o compared --add other-study --json

Start it again to go on, or start it twice at once: two processes share the runs. The test split is read once a run and
chooses nothing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from espalier._errors import EspalierError, near, plural
from espalier.cli import names, options

if TYPE_CHECKING:
    from espalier.compare import Cell, Contender, Network, Outcome, Study, Tuning
    from espalier.recipe import YamlFile
    from espalier.study import StudyRecipe

SMALLER = "smaller-dense"


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
        print(report.plan_text(cells, _reasons(cells)))
        return
    made(folder)
    outcomes = (
        {} if report_only else _run_all(study, cells, tuning, folder, data_root, engine, bar=not as_json)
    )
    found = [*outcomes.values(), *_outcomes([*([folder] if report_only else []), *(add or [])])]
    wanted = {
        (cell.network.name, cell.contender.label, cell.sparsity, cell.seed, cell.teacher) for cell in cells
    }
    done = {
        (o.spec["network"], o.spec["label"], o.spec["sparsity"], o.seed, o.spec["teacher"]) for o in found
    }
    result = compare(found, missing=len(wanted - done))
    report.write(file.value, result, folder)
    print(report.as_json(file.value, result) if as_json else report.as_text(file.value, result, folder))


def gather(file: "YamlFile[StudyRecipe]", root: Path | None) -> "tuple[Study, Tuning | None]":
    """The study that a file describes, its words replaced by networks, data and methods."""
    from espalier.compare import Range, Study, Tuning

    asked = file.value
    networks = tuple(_network(file, i, root) for i in range(len(asked.networks)))
    contenders = tuple(_contender(file, i) for i in range(len(asked.methods)))
    seen: set[tuple[str, float | None]] = set()
    for i, contender in enumerate(contenders):
        sparsities: tuple[float | None, ...] = contender.sparsities or (None, *asked.sparsities)
        named = {(contender.label, sparsity) for sparsity in sparsities}
        if seen & named:
            raise EspalierError(
                f"{file.at('methods', i)}: two methods are called {contender.label!r}: give one a label"
            )
        seen |= named
    for i, given in enumerate(asked.sparsities):
        if not 0 < given < 1:
            raise EspalierError(f"{file.at('sparsities', i)}: a sparsity lies in (0, 1), got {given:g}")
    for i, network in enumerate(networks):
        if True in asked.teachers and network.parent is None:
            raise EspalierError(
                f"{file.at('networks', i)}: teachers includes true, and {network.name} starts from scratch: give it a "
                "start, or leave the teacher out"
            )
    tuning = None
    if asked.tuning is not None:

        def ranges(entries: Mapping[str, Any]) -> dict[str, Range]:
            return {name: Range(e.low, e.high, e.log) for name, e in entries.items()}

        own = {contender.label: ranges(entry.tune) for contender, entry in zip(contenders, asked.methods)}
        tuning = Tuning(asked.tuning.trials, ranges(asked.tuning.common), own, asked.tuning.storage)
    study = Study(
        asked.title,
        networks,
        contenders,
        asked.sparsities,
        asked.seeds,
        asked.training,
        asked.teachers,
        asked.scope,
    )
    return study, tuning


def _network(file: "YamlFile[StudyRecipe]", index: int, root: Path | None) -> "Network":
    """One entry of `networks`; data and checkpoints are read when a run needs them, and once."""
    import copy
    from functools import cache

    from torch import nn

    from espalier.checkpoint import open_checkpoint
    from espalier.compare import Network
    from espalier.data import Dataset
    from espalier.models import width_for
    from espalier.selection import select
    from espalier.train.state import tensors_digest

    entry = file.value.networks[index]

    @cache
    def data() -> Dataset:
        return names.dataset(root=root, word=entry.data.name, **entry.data.model_dump(exclude={"name"}))

    at = file.at("networks", index, "start")
    start = None if entry.start is None else file.path.parent / os.path.expandvars(entry.start)
    if start is not None and "$" in str(start):
        raise EspalierError(
            f"{at}: {entry.start} has a variable that is not set: set it, or write the path out"
        )
    if start is not None and not start.exists():
        raise EspalierError(f"{at}: there is no {start}")

    @cache
    def trained() -> nn.Module:
        return names.model(entry.model, len(data().classes), open_checkpoint(start), str(start)).model  # type: ignore[arg-type]

    def build(seed: int) -> nn.Module:
        if start is not None:
            return copy.deepcopy(trained())
        return names.fresh(lambda: names.network(entry.model, len(data().classes)), seed)

    def smaller(seed: int, sparsity: float) -> nn.Module:
        make = names.narrower(entry.model, len(data().classes))
        if make is None:
            raise EspalierError(f"no narrower version of {entry.model} is known: leave {SMALLER} out")
        whole = open_checkpoint(make(1.0))
        selection = select(whole, file.value.scope)
        width = width_for(make, selection.parameters - round(sparsity * selection.entries))
        return names.fresh(lambda: make(width), seed)

    source: dict[str, Any] = {"model": entry.model, "data": entry.data.model_dump()}
    if start is not None:  # its weights, so that another checkpoint under its name makes other runs
        source |= {"start": start.name, "weights": tensors_digest(open_checkpoint(start))}
    parent = None if start is None else trained
    return Network(entry.name or entry.model, build, data, parent, smaller, source)


def _contender(file: "YamlFile[StudyRecipe]", index: int) -> "Contender":
    """One entry of `methods`."""
    from espalier.cli.method_names import method
    from espalier.compare import Contender
    from espalier.methods import Dense

    entry = file.value.methods[index]
    known = [field for field in type(file.value.training).__dataclass_fields__ if field != "seed"]
    for field in entry.training:
        if field not in known:
            raise EspalierError(
                f"{file.at('methods', index, 'training', field)}: unknown field 'training.{field}'.{near(field, known)}"
            )
    replace(file.value.training, **entry.training)  # values outside their range are refused here
    label = entry.label or entry.name
    only = entry.only.model_dump()
    for i, sparsity in enumerate(entry.only.sparsities or ()):
        if sparsity not in file.value.sparsities:
            raise EspalierError(
                f"{file.at('methods', index, 'only', 'sparsities', i)}: {sparsity:g} is none of the study's sparsities"
            )
    if entry.name == SMALLER:
        return Contender(label, Dense(), entry.training, smaller=True, **only)
    found = method(entry.name, entry.options, lambda field: f"{file.at('methods', index, field)}: ")
    return Contender(label, found, entry.training, **only)


def _reasons(cells: "Sequence[Cell]") -> dict[str, str]:
    """Why cells cannot be run, by digest; seeds differ in nothing that matters here."""
    from espalier.compare import check

    found: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str | None] = {}
    for cell in cells:
        key = (cell.network.name, cell.contender.label, cell.sparsity, cell.teacher)
        if key not in seen:
            seen[key] = check(cell)
        if (reason := seen[key]) is not None:
            found[cell.digest] = reason
    return found


def _run_all(
    study: Path,
    cells: "Sequence[Cell]",
    tuning: "Tuning | None",
    folder: Path,
    root: Path | None,
    engine: str,
    *,
    bar: bool,
) -> "dict[str, Outcome]":
    """Every cell that no other process is at; what cannot be run fails before anything is trained."""
    from espalier.compare import Outcome, run
    from espalier.report.progress import progress_bar

    reasons = _reasons(cells)
    found = {
        c.digest: Outcome(c.spec, c.seed, failure=reasons[c.digest]) for c in cells if c.digest in reasons
    }
    todo = [cell for cell in cells if cell.digest not in reasons]
    if engine == "ray":
        _on_ray(study, todo, folder, root, bar=bar)
    with progress_bar(bar) as shown:
        whole = shown.add_task("runs", total=len(todo))
        one = shown.add_task("", total=None)
        waiting = todo
        for _ in range(2):  # what another process was at is looked for once more at the end
            left = []
            for cell in waiting:
                shown.update(one, description=str(cell), completed=0)

                def step(done: int, total: int, _: str) -> None:
                    shown.update(one, completed=done, total=total)

                outcome = run(tuned(cell, tuning, folder), folder, step)
                if outcome is None:
                    left.append(cell)
                else:
                    found[cell.digest] = outcome
                    shown.update(whole, advance=1)
            waiting = left
    if waiting:
        options.say(f"{plural(len(waiting), 'run')} left to another process, which is at them")
    return {cell.digest: found[cell.digest] for cell in cells if cell.digest in found}


def _on_ray(study: Path, cells: "Sequence[Cell]", folder: Path, root: Path | None, *, bar: bool) -> None:
    """Let the cluster do the runs; their outcomes lie in the folder afterwards."""
    import torch

    from espalier.compare.on_ray import spread
    from espalier.report.progress import progress_bar

    arguments = [
        (str(study.absolute()), c.digest, str(folder.absolute()), root and str(root.absolute()))
        for c in cells
    ]
    with progress_bar(bar) as shown:
        task = shown.add_task("runs on ray", total=len(arguments))
        gpus = 1 if torch.cuda.is_available() else 0
        spread(run_one, arguments, gpus=gpus, done=lambda count: shown.update(task, completed=count))


def run_one(study: str, digest: str, folder: str, root: str | None) -> None:
    """One run of a study, by its digest before tuning: what a worker of a cluster does."""
    from espalier.compare import run
    from espalier.recipe import YamlFile
    from espalier.study import StudyRecipe

    planned, tuning = gather(YamlFile(Path(study), StudyRecipe), Path(root) if root else None)
    cell = next(cell for cell in planned.cells() if cell.digest == digest)
    run(tuned(cell, tuning, Path(folder)), Path(folder))


def tuned(cell: "Cell", tuning: "Tuning | None", folder: Path) -> "Cell":
    """The cell with what tuning found, by the study's first seed, for every seed."""
    if tuning is None:
        return cell
    from espalier.compare import changed, tune

    first = replace(cell, seed=0, training=replace(cell.training, seed=0))
    return changed(cell, tune(first, tuning, folder))


def _outcomes(folders: Sequence[Path]) -> "list[Outcome]":
    """Everything that lies in folders of studies."""
    from espalier.compare import Outcome
    from espalier.compare.running import RESULT

    for folder in folders:
        if not folder.is_dir():
            raise EspalierError(f"there is no folder {folder} with the runs of a study")
    return [Outcome.load(path) for folder in folders for path in sorted(folder.glob(f"*/{RESULT}"))]
