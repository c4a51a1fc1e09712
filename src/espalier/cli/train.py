"""Train with a pruning method, from a recipe: one of the package's by name, or a YAML file.

For example:

  espalier train --list

  espalier train digits-modern -o run

  espalier train mnist-lenet5-paper --data-root data -o run

  espalier train resnet20-modern --start dense.safetensors --sparsity 0.95 --seeds 0,1,2 -o run

  espalier train resnet20-modern --start dense.safetensors --budget 1% -o run

  espalier train my-recipe.yaml --baseline -o run-dense
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier._errors import EspalierError
from espalier.cli import names, options

if TYPE_CHECKING:
    from espalier.budget import Budget
    from espalier.recipe import Recipe, YamlFile
    from espalier.report.train import Run


def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A name of --list, or a YAML file.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where runs and report go; a rerun goes on there."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A trained checkpoint to start from; without it, from scratch."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Other data than the recipe's.")] = None,
    data_root: options.DataRoot = None,
    sparsity: Annotated[float | None, typer.Option(help="Another sparsity than the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Another number of epochs.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="Other seeds, such as 0,1,2: one run each.")
    ] = None,
    teacher: Annotated[
        bool | None,
        typer.Option("--teacher/--no-teacher", help="Train towards the network of --start as well."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="The same run without pruning, to compare with.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="DROP",
            help="Search the largest sparsity at which --start surely loses no more accuracy than, e.g. 1%.",
        ),
    ] = None,
    resolution: Annotated[
        float | None, typer.Option(help="Precision of the sparsity that --budget finds; default 0.01.")
    ] = None,
    limit: options.Limit = None,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Write model.safetensors in the sparse format: really smaller.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to FOLDER/seed-N/tensorboard.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the recipes of the package and stop.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train from a recipe."""
    from espalier.processes import is_main
    from espalier.recipe import Recipe, YamlFile, find_recipe, packaged
    from espalier.report import train as report

    if show:
        listed = {name: YamlFile(path, Recipe).value for name, path in packaged().items()}
        print(report.list_json(listed) if as_json else report.list_text(listed))
        return
    if recipe is None:
        raise EspalierError("which recipe? Give a name of --list, or a YAML file")
    file = find_recipe(recipe)
    changes: dict[str, Any] = {
        "data": file.value.data.model_copy(
            update={k: v for k, v in (("name", data), ("limit", limit)) if v is not None}
        ),
        "sparsity": None if baseline else _sparsity(sparsity, file.value.sparsity),
        "training": file.value.training if epochs is None else _shortened(file.value, epochs),
        "seeds": file.value.seeds if seeds is None else _seeds(seeds),
        "teacher": file.value.teacher if teacher is None else teacher,
    }
    if baseline and sparsity is not None:
        raise EspalierError("--baseline is the run without pruning: give no --sparsity")
    if resolution is not None and budget is None:
        raise EspalierError(
            "--resolution is the precision of what --budget finds: give a --budget, such as 1%"
        )
    if file.value.method.name == "dense" and changes["sparsity"] is not None:
        where = "--sparsity" if sparsity is not None else f"{file.at('sparsity')}: sparsity"
        raise EspalierError(
            f"{where} is {changes['sparsity']}, but the method dense prunes nothing: leave one out"
        )
    if baseline:
        changes["method"] = file.value.method.__class__(name="dense")
    asked = file.value.model_copy(update=changes)
    folder = output or Path("runs") / (Path(recipe).stem + ("-baseline" if baseline else ""))
    if budget is not None and (start is None or baseline or sparsity is not None):
        raise EspalierError(
            "--budget compares with the network one starts from, and chooses the sparsity: give --start FILE, and "
            "neither --sparsity nor --baseline"
        )
    drop = None if budget is None else names.fraction("the budget", budget)
    asked, found, runs = _run(
        file,
        asked,
        folder,
        data_root,
        start,
        sparse,
        tensorboard,
        drop,
        0.01 if resolution is None else resolution,
        bar=not as_json,
    )
    if is_main():
        report.write(asked, runs, found, folder)
        print(report.as_json(asked, runs, found) if as_json else report.as_text(asked, runs, found, folder))
    if any(run.failure for run in runs):
        raise typer.Exit(2)


def _run(
    file: "YamlFile[Recipe]",
    recipe: "Recipe",
    folder: Path,
    root: Path | None,
    start: Path | None,
    sparse: bool,
    tensorboard: bool,
    drop: float | None,
    resolution: float,
    *,
    bar: bool,
) -> "tuple[Recipe, Budget | None, list[Run]]":
    """One run a seed; a run that fails is recorded, and the next one starts. A budget is searched with the first."""
    from espalier._forward import probe
    from espalier.checkpoint import open_checkpoint, rewrite
    from espalier.cli.method_names import method
    from espalier.methods import Threshold
    from espalier.processes import is_main
    from espalier.pruned_training import search_trained, train_pruned
    from espalier.report.progress import progress_bar
    from espalier.report.train import Run
    from espalier.train import Failed, tensorboard_writer

    if recipe.teacher and start is None:
        raise EspalierError(
            f"{file.at('teacher')}: a teacher is the network one starts from: give --start FILE"
        )
    if folder.exists() and not folder.is_dir():
        raise EspalierError(f"{folder} is a file; the runs need a folder")
    rule = method(recipe.method.name, recipe.method.options, lambda field: f"{file.at('method', field)}: ")
    if isinstance(rule, Threshold) and not rule.momentum and recipe.training.momentum:
        options.say(
            f"{recipe.method.name} takes plain steps, as published, without the training's momentum of "
            f"{recipe.training.momentum:g}; for steps with it add momentum: true to the method"
        )
    dataset = names.dataset(root=root, word=recipe.data.name, **recipe.data.model_dump(exclude={"name"}))
    classes = len(dataset.classes)
    common: dict[str, Any] = {
        "scope": recipe.scope,
        "include": recipe.include,
        "exclude": recipe.exclude,
    }

    parent = None
    if start is not None:
        parent = names.model(recipe.model, classes, open_checkpoint(start), str(start)).model
    runs, found = [], None
    with progress_bar(bar) as shown:
        if drop is not None and parent is not None:
            task = shown.add_task("searching", total=None)
            found = search_trained(
                parent,
                dataset,
                replace(recipe.training, seed=recipe.seeds[0]),
                rule,
                drop,
                teach=recipe.teacher,
                **common,
                resolution=resolution,
                folder=folder / "search",
                tell=lambda point: shown.update(task, description=f"tried {point.sparsity:.3f}"),
                progress=lambda done, total, _: shown.update(task, completed=done, total=total),
            )
            if found.sparsity is None:
                raise EspalierError(
                    f"no sparsity is good enough ({found.rule}; {found.n} validation examples): even training "
                    "without zeros is not sure to be; allow more, or give more validation data"
                )
            recipe = recipe.model_copy(update={"sparsity": found.sparsity})
        for seed in recipe.seeds:
            task = shown.add_task(f"seed {seed}", total=None)
            network = (
                copy.deepcopy(parent)
                if parent is not None
                else names.fresh(lambda: names.network(recipe.model, classes), seed)
            )
            probe(network, dataset, f"model {recipe.model}")
            place = folder / f"seed-{seed}"
            try:
                result = train_pruned(
                    network,
                    dataset,
                    replace(recipe.training, seed=seed),
                    rule,
                    sparsity=recipe.sparsity,
                    parent=parent,
                    teacher=parent if recipe.teacher else None,
                    **common,
                    folder=place,
                    on_epoch=tensorboard_writer(place / "tensorboard") if tensorboard and is_main() else None,
                    progress=lambda done, total, word, task=task, seed=seed: shown.update(  # type: ignore[misc]
                        task, completed=done, total=total, description=f"seed {seed}, {word}"
                    ),
                )
            except Failed as error:
                runs.append(Run(seed, None, str(error), None))
                continue
            written = None
            if is_main():
                written = rewrite(
                    open_checkpoint(network), place / "model.safetensors", lambda _, t: t, sparse=sparse
                )
            runs.append(Run(seed, result, None, written))
    return recipe, found, runs


def _sparsity(given: float | None, own: float | None) -> float | None:
    if given is not None and not 0 <= given < 1:
        raise EspalierError(f"--sparsity is a fraction in [0, 1), such as 0.9, got {given:g}")
    return own if given is None else given


def _shortened(recipe: "Recipe", epochs: int) -> Any:
    """The training with another number of epochs; a warm-up keeps its share of the run."""
    training = recipe.training
    share = training.warmup / training.epochs if training.epochs else 0.0
    return replace(training, epochs=epochs, warmup=share * epochs)


def _seeds(word: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in word.split(","))
    except ValueError:
        raise EspalierError(f"--seeds is a list such as 0,1,2, got {word!r}") from None
    if len(set(seeds)) < len(seeds):
        raise EspalierError(f"--seeds names a seed twice: {word}")
    if not all(0 <= seed < 1 << 63 for seed in seeds):
        raise EspalierError(f"--seeds are whole numbers from 0 to 2^63 - 1, got {word}")
    return seeds
