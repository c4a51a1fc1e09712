"""What masks have in common and what hangs together in each: overlap, fans, dead units; needs no data.

For example:

  espalier landscape topology pruned.safetensors

  espalier landscape topology magnitude.safetensors grda.safetensors --html masks.html

  espalier landscape topology pruned.pt --model torchvision:mobilenet_v2
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import options
from espalier.cli.landscape import shared

if TYPE_CHECKING:
    from espalier.checkpoint import AbstractCheckpoint


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Pruned checkpoints; others are compared with the first."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network, as elsewhere: tells the groups of its convolutions, of which the files say nothing.",
        ),
    ] = None,
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Topology of the masks of checkpoints."""
    from espalier.checkpoint import open_checkpoint
    from espalier.landscape.topology import grouped_perhaps, overlaps, topologies
    from espalier.masks import Masks
    from espalier.report import landscape_topology as report
    from espalier.selection import select

    shared.check_outputs(png, html, *files)
    checkpoints = {name: open_checkpoint(file) for name, file in shared.named(files).items()}
    first, *others = checkpoints
    groups = None if model is None else _groups(model, checkpoints[first], files[0])
    masks: dict[str, Masks] = {}
    for name, checkpoint in checkpoints.items():
        chosen = select(checkpoint, scope, include or [], exclude or [])  # type: ignore[arg-type]
        masks[name] = Masks.from_zeros({tensor: checkpoint[tensor] for tensor in chosen.names})
    result = report.Result(
        topologies(masks, groups),
        {name: overlaps(masks[first], masks[name]) for name in others},
        grouped_perhaps(select(checkpoints[first]).shapes) if groups is None else (),
    )
    report.write(result, png, html)
    print(report.as_json(result) if as_json else report.as_text(result))


def _groups(model: str, checkpoint: "AbstractCheckpoint", file: Path) -> dict[str, int]:
    """Groups by the names of the checkpoint."""
    from espalier.cli import inputs, names
    from espalier.landscape.topology import groups_of

    filled = names.model(model, inputs.classes(checkpoint), checkpoint, str(file))
    return {filled.places.get(name, name): count for name, count in groups_of(filled.model).items()}
