"""How far can it be pruned, and why: from the weights alone.

For example:

  espalier inspect model.safetensors

  espalier inspect folder/ --html report.html --exclude 'lm_head*'

  espalier inspect model.pt --initial start.pt --json | jq .amounts.utopia
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier.cli import names, options


def command(
    file: options.Checkpoint,
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    amount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="A further amount, such as 0.9, 90% or cosine=0.95; may be repeated."
        ),
    ] = None,
    mode: Annotated[
        Literal["monotone", "paper"],
        typer.Option(help="paper: the published grid of 101 points and the published safe factor."),
    ] = "monotone",
    axis: Annotated[
        Literal["cosine", "energy", "angle"],
        typer.Option(help="What utopia and knee measure: the paper's cosine, its square, or the angle."),
    ] = "cosine",
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The checkpoint before training: the null model that knows nothing."
        ),
    ] = None,
    floor: Annotated[
        float,
        typer.Option(help="Share of each tensor for 'the largest sparsity with every tensor above it'."),
    ] = 0.01,
    streaming: Annotated[
        bool | None,
        typer.Option(
            "--streaming/--exact",
            help="Bounded memory (below 1 GiB at any size), or a curve exact at every k; by default the size decides.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    html: options.Html = None,
) -> None:
    """Inspect a checkpoint file."""
    from espalier.amount import Knee, Safe, Utopia
    from espalier.checkpoint import open_checkpoint
    from espalier.inspection import inspect
    from espalier.report import inspection as report
    from espalier.report.progress import progress_bar
    from espalier.selection import select

    rules = {
        "utopia": Utopia(axis, mode="paper" if mode == "paper" else "exact"),
        "safe": Safe(mode=mode, axis=axis),
        "knee": Knee(axis),
        **{word: names.amount(word, axis=axis) for word in amount or []},
    }
    options.check_reports(html, file)
    checkpoint = open_checkpoint(file)
    selection = select(checkpoint, scope, include or [], exclude or [])  # type: ignore[arg-type]
    start = open_checkpoint(initial) if initial else None
    with progress_bar(not as_json) as bar:
        reading = bar.add_task("reading weights", total=selection.entries * (2 if start else 1))
        found = inspect(
            checkpoint,
            selection,
            rules=rules,
            streaming=streaming,
            initial=start,
            floor=floor,
            progress=lambda _, entries: bar.advance(reading, entries),
        )
    if html is not None:
        report.write_html(found, html)
    print(report.as_json(found) if as_json else report.as_text(found))
