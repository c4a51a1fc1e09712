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
    from espalier.compare import Cell, Contender, Network, Outcome, Range, Study, Tuning
    from espalier.recipe import YamlFile
    from espalier.study import RangeEntry, StudyRecipe
    from espalier.train.loop import Progress

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
    if report_only:
        found = _there(folder, cells, tuned=tuning is not None)
    else:
        found = list(_run_all(study, cells, tuning, folder, data_root, engine, bar=not as_json).values())
    missing = len(
        {_name_of(cell.spec, cell.seed) for cell in cells} - {_name_of(o.spec, o.seed) for o in found}
    )
    result = compare([*found, *_outcomes(add or [])], missing=missing)
    report.write(file.value, result, folder)
    print(report.as_json(file.value, result) if as_json else report.as_text(file.value, result, folder))


def gather(file: "YamlFile[StudyRecipe]", root: Path | None) -> "tuple[Study, Tuning | None]":
    """The study that a file describes, its words replaced by networks, data and methods."""
    from espalier.compare import Study

    asked = file.value
    networks = tuple(_network(file, i, root) for i in range(len(asked.networks)))
    for i, network in enumerate(networks):
        if network.name in [other.name for other in networks[:i]]:
            raise EspalierError(
                f"{file.at('networks', i)}: two networks are called {network.name!r}: give one another name"
            )
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
    tuning = _tuning(file, contenders)
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


def _ranges(entries: "Mapping[str, RangeEntry]") -> "dict[str, Range]":
    from espalier.compare import Range

    return {name: Range(entry.low, entry.high, entry.log) for name, entry in entries.items()}


def _tuning(file: "YamlFile[StudyRecipe]", contenders: "Sequence[Contender]") -> "Tuning | None":
    """How methods are tuned; ranges that one of them cannot take are refused here."""
    from espalier.compare import Tuning, check_space

    asked = file.value
    if asked.tuning is None:
        for i, contender in enumerate(contenders):
            if contender.ranges:
                raise EspalierError(
                    f"{file.at('methods', i, 'tune')}: {contender.label} has ranges, but the study has no tuning: say "
                    "how many trials, as in tuning: {trials: 8}"
                )
        return None
    try:
        tuning = Tuning(asked.tuning.trials, _ranges(asked.tuning.common), asked.tuning.storage)
    except EspalierError as error:
        raise EspalierError(f"{file.at('tuning', 'common')}: {error}") from None
    for i, contender in enumerate(contenders):
        try:
            training = replace(asked.training, **contender.changes)
            check_space(contender, training, tuning.space(contender))
        except EspalierError as error:
            raise EspalierError(f"{file.at('methods', i, 'tune')}: {error}") from None
    return tuning


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

    entry = file.value.methods[index]
    _check_training(file, index)
    label = entry.label or entry.name
    only = entry.only.model_dump()
    for part, values in only.items():
        for i, value in enumerate(values or ()):
            if value not in getattr(file.value, part):
                raise EspalierError(
                    f"{file.at('methods', index, 'only', part, i)}: {value} is none of the study's {part}"
                )
    smaller = entry.name == SMALLER
    name = "dense" if smaller else entry.name
    found = method(name, entry.options, lambda field: f"{file.at('methods', index, field)}: ")
    try:
        return Contender(label, found, entry.training, smaller, **only, ranges=_ranges(entry.tune))
    except EspalierError as error:
        raise EspalierError(f"{file.at('methods', index)}: {error}") from None


def _check_training(file: "YamlFile[StudyRecipe]", index: int) -> None:
    """Refuse fields of a method's training that there are not, and values they do not take."""
    from pydantic import TypeAdapter, ValidationError

    changes = file.value.methods[index].training
    known = type(file.value.training).__dataclass_fields__
    for field in changes:
        if field not in known:
            raise EspalierError(
                f"{file.at('methods', index, 'training', field)}: unknown field 'training.{field}'.{near(field, known)}"
            )
    try:
        TypeAdapter(type(file.value.training)).validate_python({**vars(file.value.training), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = file.at("methods", index, "training", *first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise EspalierError(f"{where}: training {'.'.join(map(str, first['loc']))}: {said}") from None


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
    from espalier.compare import Outcome
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

                outcome = _outcome(cell, tuning, folder, step)
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
    from espalier.recipe import YamlFile
    from espalier.study import StudyRecipe

    planned, tuning = gather(YamlFile(Path(study), StudyRecipe), Path(root) if root else None)
    cell = next(cell for cell in planned.cells() if cell.digest == digest)
    _outcome(cell, tuning, Path(folder))


def _outcome(
    cell: "Cell", tuning: "Tuning | None", folder: Path, progress: "Progress | None" = None
) -> "Outcome | None":
    """Run a cell with what tuning found by seed 0 for every seed; failing to tune it is its failure, too."""
    from espalier.compare import Outcome, changed, run, tune

    if tuning is not None:
        first = replace(cell, seed=0, training=replace(cell.training, seed=0))
        try:
            cell = changed(cell, tune(first, tuning, folder, progress))
        except EspalierError as error:
            return Outcome(cell.spec, cell.seed, failure=f"not tuned: {error}")
    return run(cell, folder, progress)


def _name_of(spec: "Mapping[str, Any]", seed: int) -> tuple[Any, ...]:
    """What a run is called, whatever else its specification says."""
    return (spec["network"], spec["label"], spec["sparsity"], spec["teacher"], seed)


def _there(folder: Path, cells: "Sequence[Cell]", *, tuned: bool) -> "list[Outcome]":
    """What lies in the folder for these runs, and why some of them cannot be done.

    By specification; where runs were tuned, by name: what was found is only in their specification.
    """
    from espalier.compare import Outcome
    from espalier.train.state import digest_of

    reasons = _reasons(cells)
    failed = [Outcome(c.spec, c.seed, failure=reasons[c.digest]) for c in cells if c.digest in reasons]
    names_ = {_name_of(cell.spec, cell.seed) for cell in cells}
    digests = {cell.digest for cell in cells}
    return failed + [
        o
        for o in _outcomes([folder])
        if (_name_of(o.spec, o.seed) in names_ if tuned else digest_of(o.spec) in digests)
    ]


def _outcomes(folders: Sequence[Path]) -> "list[Outcome]":
    """Everything that lies in folders of studies."""
    from espalier.compare import Outcome
    from espalier.compare.running import RESULT

    for folder in folders:
        if not folder.is_dir():
            raise EspalierError(f"there is no folder {folder} with the runs of a study")
    return [Outcome.load(path) for folder in folders for path in sorted(folder.glob(f"*/{RESULT}"))]
