"""Prune to exactly the amount asked for, dense or in a smaller file.

For example:

  espalier prune model.safetensors -o pruned.safetensors

  espalier prune model.pt --amount 0.9 --allocate lamp --format sparse -o small.safetensors

  espalier prune folder/ --nm 2:4 -o folder-2of4/

  espalier prune net.pt --method directional --model lenet5 --data torchvision:MNIST --amount 0.5 -o half.pt
"""

from typing import Annotated, Literal

import typer

from espalier._errors import EspalierError
from espalier.cli import names, options


def command(
    file: options.Checkpoint,
    output: options.Output,
    amount: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="cosine=0.99 (the default), utopia, safe, safe=paper, effective, knee, or a sparsity: 0.9 or 90%.",
        ),
    ] = None,
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
    method: Annotated[
        Literal["magnitude", "directional"],
        typer.Option(
            help="directional also moves the weights that stay, along directions the loss does not mind; it needs "
            "--model and --data."
        ),
    ] = "magnitude",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For directional: the network, as in `evaluate`.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="For directional: the data, as in `evaluate`.")
    ] = None,
    data_root: options.DataRoot = None,
    limit: Annotated[int, typer.Option(min=1, help="Training examples that directional reads.")] = 1000,
    directions: Annotated[
        int, typer.Option(min=1, help="Curved directions that directional leaves alone.")
    ] = 30,
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    html: options.Html = None,
) -> None:
    """Prune a checkpoint file."""
    from espalier.amount import Given
    from espalier.checkpoint import check_output, open_checkpoint
    from espalier.profiling import profile
    from espalier.pruned_file import prune_file
    from espalier.report import prune as report
    from espalier.report.progress import progress_bar
    from espalier.scores import Magnitude, Random
    from espalier.selection import select

    if nm is not None and (amount is not None or floor or allocate != "global"):
        raise EspalierError(
            "--nm fixes how many entries each group keeps: leave out --amount, --allocate and --floor"
        )
    if method == "directional":
        if nm is not None or random or floor or allocate != "global":
            raise EspalierError(
                "--method directional finds the places itself: leave out --nm, --random, --allocate and --floor"
            )
        if model is None or data is None:
            raise EspalierError("--method directional looks at the loss: give --model and --data")
    rule, allocation = names.amount(amount or "cosine=0.99"), names.allocation(allocate, floor)
    pattern = names.nm_pattern(nm) if nm else None
    checkpoint = open_checkpoint(file)
    options.check_reports(html, output)
    check_output(checkpoint, output, form == "sparse")
    selection = select(checkpoint, scope, include or [], exclude or [])  # type: ignore[arg-type]
    with progress_bar(not as_json) as bar:
        chosen, sparsity = None, 0.0
        if pattern is None:
            reading = bar.add_task("reading weights", total=selection.entries)
            found = profile(checkpoint, selection, progress=lambda _, entries: bar.advance(reading, entries))
            chosen = rule.choose(found)
            sparsity = rule.sparsity if isinstance(rule, Given) else chosen.sparsity
        if method == "directional":
            from espalier.cli.directional import prune_directional_file

            assert model is not None and data is not None
            result = prune_directional_file(
                file,
                output,
                sparsity,
                model=model,
                data=names.dataset(data, data_root, limit=limit),
                selecting={"scope": scope, "include": include or [], "exclude": exclude or []},
                directions=directions,
                sparse=form == "sparse",
                amount=chosen,
                seed=seed,
                bar=bar,
            )
        else:
            writing = bar.add_task("writing tensors", total=len(checkpoint))
            result = prune_file(
                checkpoint,
                selection,
                sparsity,
                output,
                score=Random(seed) if random else Magnitude(),
                allocation=allocation,
                nm=pattern,
                sparse=form == "sparse",
                amount=chosen,
                progress=lambda _: bar.advance(writing),
            )
    if html is not None:
        report.write_html(result, html)
    print(report.as_json(result) if as_json else report.as_text(result))
