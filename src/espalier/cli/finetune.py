"""Fine-tune at fixed masks, or find how far data lets it go.

For example:

  espalier finetune pruned.safetensors --parent dense.pt --model resnet20 --data cifar10_jpeg -o tuned.pt

  espalier finetune dense.pt --amount utopia --model resnet20 --data folder --teacher parent -o tuned.pt

  espalier finetune dense.pt --budget 1% --model lenet5 --data torchvision:MNIST -o tuned.pt

  espalier finetune dense.pt --agreement 0.98 --no-labels --model resnet20 --data folder -o tuned.pt
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier._errors import EspalierError
from espalier.cli import names, options


def command(
    file: options.Checkpoint,
    output: options.Output,
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    parent: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The dense checkpoint; not needed when FILE is dense and pruned here."
        ),
    ] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="RULE", help="Prune FILE first, as in `espalier prune`.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="DROP", help="Prune FILE as far as the accuracy surely drops by no more than, e.g. 1%."
        ),
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL", help="Prune FILE as far as it surely agrees with itself on, e.g. 98% of inputs."
        ),
    ] = None,
    search_epochs: Annotated[
        int,
        typer.Option(min=0, help="Epochs of fine-tuning at each step of a --budget or --agreement search."),
    ] = 0,
    resolution: Annotated[float, typer.Option(help="Precision of the sparsity a search finds.")] = 0.01,
    allocate: Annotated[
        str, typer.Option(metavar="WORD", help="Where: global, lamp, erk, uniform, uniform+.")
    ] = "global",
    floor: Annotated[float, typer.Option(help="Fraction of each tensor that is kept at least.")] = 0.0,
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the training split; 0 only measures.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.01,
    batch_size: options.BatchSize = 128,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], typer.Option(help="sgd has Nesterov momentum.")
    ] = "sgd",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-4,
    schedule: Annotated[
        Literal["cosine", "constant", "step"], typer.Option(help="How the learning rate falls.")
    ] = "cosine",
    augment: Annotated[bool, typer.Option(help="Crop and mirror the training images.")] = True,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 autocast where the hardware has it.")
    ] = "auto",
    teacher: Annotated[
        Literal["none", "parent"], typer.Option(help="parent: tune towards the parent's outputs as well.")
    ] = "none",
    labels: Annotated[
        bool,
        typer.Option(help="--no-labels: tune towards the parent alone, without reading a training label."),
    ] = True,
    temperature: Annotated[float, typer.Option(help="Of the teacher's and the student's softmax.")] = 4.0,
    teacher_weight: Annotated[
        float, typer.Option(help="Share of the teacher in the loss beside labels.")
    ] = 0.9,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Re-estimate batch norm after pruning, kept only where it helps."),
    ] = False,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the run is kept to resume from; default OUT.run."),
    ] = None,
    form: Annotated[
        Literal["dense", "sparse"],
        typer.Option("--format", help="dense: as it came. sparse: really smaller."),
    ] = "dense",
    as_json: options.AsJson = False,
    html: options.Html = None,
) -> None:
    """Fine-tune a checkpoint file."""
    from espalier.checkpoint import check_output, open_checkpoint
    from espalier.cli.subject import Subject
    from espalier.finetuning import finetune, search
    from espalier.processes import is_main
    from espalier.report import finetune as report
    from espalier.report.progress import progress_bar
    from espalier.train import Training

    chosen = [word for word in (amount, budget, agreement) if word is not None]
    if len(chosen) > 1:
        raise EspalierError("--amount, --budget and --agreement each choose the sparsity: give one of them")
    if not labels and teacher == "none":
        teacher = "parent"
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        optimizer=optimizer,
        seed=seed,
        augment=augment,
        precision=precision,
        labels=labels,
        temperature=temperature,
        teacher_weight=teacher_weight,
    )
    if (floor or allocate != "global") and not chosen:
        raise EspalierError(
            "--floor and --allocate say how FILE is pruned: give --amount, --budget or --agreement"
        )
    if chosen and parent is not None:
        raise EspalierError("FILE is pruned here and is its own parent: leave out --parent, or the amount")
    if search_epochs and budget is None and agreement is None:
        raise EspalierError("--search-epochs belongs to a search: give --budget or --agreement")
    options.check_reports(html, output, file)
    check_output(open_checkpoint(file), output, form == "sparse")
    folder = run or output.with_name(output.name + ".run")
    with progress_bar(not as_json) as bar:
        dataset = names.dataset(data, data_root, limit=limit)
        subject = Subject(
            file,
            file if chosen else parent,
            model,
            len(dataset.classes),
            scope,
            include or [],
            exclude or [],
            data=dataset,
        )
        if subject.parent is None and (recalibrate or teacher == "parent"):
            raise EspalierError(
                "the parent is needed to re-estimate or to teach: give --parent, the dense checkpoint"
            )
        allocation = names.allocation(allocate, floor)
        found = None
        if budget is not None or agreement is not None:
            searching = bar.add_task("searching", total=None)
            found = search(
                lambda network, sparsity: subject.prune(network, sparsity, allocation),
                subject.parent,  # type: ignore[arg-type]
                dataset,
                drop=names.fraction("the budget", budget) if budget is not None else None,
                agreement=names.fraction("the agreement", agreement) if agreement is not None else None,
                training=replace(training, epochs=search_epochs),
                teach=teacher == "parent",
                recalibration=recalibrate,
                resolution=resolution,
                progress=lambda word: bar.update(searching, advance=1, description=word),
            )
            if found.sparsity is None:
                raise EspalierError(
                    f"no sparsity is good enough ({found.rule}; {found.n} validation examples): even the dense "
                    "network is not sure to be; allow more, or give more validation data"
                )
            masks = subject.prune(subject.model, found.sparsity, allocation)
        elif amount is not None:
            masks = subject.prune(subject.model, names.amount(amount), allocation)
        else:
            masks = subject.masks()
        tuning = bar.add_task("measuring", total=None)
        result = finetune(
            subject.model,
            dataset,
            training,
            masks=masks,
            parent=subject.parent,
            teach=teacher == "parent",
            recalibration=recalibrate,
            budget=found,
            folder=folder,
            finish=subject.round_,
            progress=lambda done, total, word: bar.update(
                tuning, completed=done, total=total, description=word
            ),
        )
    if not is_main():
        return
    written = subject.write(output, form == "sparse")
    (folder / "state.pt").unlink(missing_ok=True)  # the result is written; the log stays
    if html is not None:
        report.write_html(result, str(output), html)
    options.say(*subject.checkpoint.notes, *written.notes)
    print(report.as_json(result, written) if as_json else report.as_text(result, written))
