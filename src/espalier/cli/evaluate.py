"""Measure on data: accuracy with its interval, likeness to a parent.

For example:

  espalier evaluate model.safetensors --model resnet20 --data cifar10_jpeg

  espalier evaluate pruned.safetensors --parent dense.safetensors --model lenet5 --data torchvision:MNIST --json
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier.cli import names, options


def command(
    file: options.Checkpoint,
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    parent: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The dense checkpoint to compare with, example by example."),
    ] = None,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="validation to choose by, test to report.")
    ] = "test",
    limit: options.Limit = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a checkpoint file."""
    from espalier.cli.subject import Subject
    from espalier.finetuning import stages_of
    from espalier.report import finetune as report
    from espalier.report.progress import progress_bar

    with progress_bar(not as_json) as bar:
        bar.add_task("evaluating", total=None)
        dataset = names.dataset(data, data_root, limit=limit)
        subject = Subject(file, parent, model, len(dataset.classes), data=dataset)
        networks = {file.name: subject.model}
        if subject.parent is not None and parent is not None:
            networks = {f"{parent.name} (parent)": subject.parent, **networks}
        stages = stages_of(networks, dataset.test if split == "test" else dataset.validation)
    options.say(*subject.checkpoint.notes)
    print(report.stages_json(stages) if as_json else report.stages_text(stages))
