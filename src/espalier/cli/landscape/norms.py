"""How concentrated the weights are along a series of checkpoints: l2/l1, kurtosis, sparsity; needs no data.

For example:

  espalier landscape norms start.safetensors dense.safetensors pruned.safetensors

  espalier landscape norms epoch-*.pt --scope all --png norms.png --json
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import options
from espalier.cli.landscape import shared


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Checkpoints of one network, in order.")
    ],
    scope: options.Scope = "weights",
    include: options.Include = None,
    exclude: options.Exclude = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Norms along a series of checkpoints."""
    from espalier.checkpoint import open_checkpoint
    from espalier.landscape.norms import series
    from espalier.report import landscape_norms as report
    from espalier.report.progress import progress_bar

    shared.check_outputs(png, html, *files)
    checkpoints = {name: open_checkpoint(file) for name, file in shared.named(files).items()}
    with progress_bar(not as_json) as bar:
        found = series(
            checkpoints,
            scope=scope,  # type: ignore[arg-type]
            include=include or [],
            exclude=exclude or [],
            progress=shared.follow(bar, "reading checkpoints"),
        )
    shared.show(report, found, png, html, as_json)
