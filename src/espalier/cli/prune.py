"""Prune to exactly the amount asked for, dense or in a smaller file.

For example:

  espalier prune model.safetensors -o pruned.safetensors

  espalier prune model.pt --amount 0.9 --allocate lamp --format sparse -o small.safetensors

  espalier prune folder/ --nm 2:4 -o folder-2of4/
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from espalier.cli import names, options

if TYPE_CHECKING:
    from espalier.pruned_file import PrunedFile


def command(
    file: options.Checkpoint,
    output: options.Output,
    amount: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="cosine=0.99, utopia, safe, safe=paper, effective, knee, or a sparsity such as 0.9 or 90%.",
        ),
    ] = "cosine=0.99",
    allocate: Annotated[
        str, typer.Option(metavar="WORD", help="Where: global, lamp, erk, uniform or uniform+.")
    ] = "global",
    floor: Annotated[float, typer.Option(help="Fraction of each tensor that is kept at least.")] = 0.0,
    random: Annotated[
        bool, typer.Option("--random", help="Remove at random instead of the smallest: a control.")
    ] = False,
    nm: Annotated[
        str | None, typer.Option(metavar="N:M", help="Keep N of each M along the input axis.")
    ] = None,
    form: Annotated[
        Literal["dense", "sparse"],
        typer.Option("--format", help="dense: as it came. sparse: really smaller."),
    ] = "dense",
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    html: options.Html = None,
) -> None:
    """Prune a checkpoint file."""
    from espalier.report import prune as report

    result = gather(
        file,
        output,
        amount,
        allocate,
        floor,
        random,
        nm,
        form,
        scope,
        include or [],
        exclude or [],
        seed,
        not as_json,
    )
    if html is not None:
        report.write_html(result, html)
    print(report.as_json(result) if as_json else report.as_text(result))


def gather(
    file: Path,
    output: Path,
    amount: str,
    allocate: str,
    floor: float,
    random: bool,
    nm: str | None,
    form: str,
    scope: str,
    include: list[str],
    exclude: list[str],
    seed: int,
    show: bool,
) -> "PrunedFile":
    """Choose the amount, prune, write."""
    from espalier.checkpoint import open_checkpoint
    from espalier.profiling import profile
    from espalier.pruned_file import prune_file
    from espalier.report.progress import progress_bar
    from espalier.scores import Magnitude, Random
    from espalier.selection import select

    rule, allocation = names.amount(amount), names.allocation(allocate, floor)
    pattern = names.nm_pattern(nm) if nm else None
    checkpoint = open_checkpoint(file)
    selection = select(checkpoint, scope, include, exclude)  # type: ignore[arg-type]
    with progress_bar(show) as bar:
        reading = bar.add_task("reading weights", total=selection.entries)
        sparsity = 0.0
        if pattern is None:
            found = profile(checkpoint, selection, progress=lambda _, entries: bar.advance(reading, entries))
            sparsity = rule.choose(found).sparsity
        writing = bar.add_task("writing tensors", total=len(checkpoint))
        return prune_file(
            checkpoint,
            selection,
            sparsity,
            output,
            score=Random(seed) if random else Magnitude(),
            allocation=allocation,
            nm=pattern,
            sparse=form == "sparse",
            progress=lambda _: bar.advance(writing),
        )
