"""What masks have in common and what hangs together in each: overlap, fans, dead units; needs no data.

For example:

  espalier landscape topology pruned.safetensors

  espalier landscape topology magnitude.safetensors grda.safetensors --html masks.html
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import options
from espalier.cli.landscape import shared


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Pruned checkpoints; others are compared with the first."),
    ],
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Topology of the masks of checkpoints."""
    from espalier.checkpoint import open_checkpoint
    from espalier.landscape.topology import overlaps, topologies
    from espalier.masks import Masks
    from espalier.report import landscape_topology as report
    from espalier.selection import select

    shared.check_outputs(png, html, *files)
    masks = {}
    for name, file in shared.named(files).items():
        checkpoint = open_checkpoint(file)
        chosen = select(checkpoint, scope, include or [], exclude or [])  # type: ignore[arg-type]
        masks[name] = Masks.from_zeros({tensor: checkpoint[tensor] for tensor in chosen.names})
    first, *others = masks
    result = report.Result(topologies(masks), {name: overlaps(masks[first], masks[name]) for name in others})
    report.write(result, png, html)
    print(report.as_json(result) if as_json else report.as_text(result))
