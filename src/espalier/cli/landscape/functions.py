"""How alike the functions of networks are: agreement, divergence, CKA by layer, t-SNE of pruned families.

For example:

  espalier landscape functions dense.pt pruned.pt tuned.pt --model resnet20 --data cifar10_jpeg

  espalier landscape functions dense.pt start.pt --model lenet5 --data torchvision:MNIST --family --png tsne.png
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier._errors import EspalierError
from espalier.cli import options
from espalier.cli.landscape import shared


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Two networks or more.")],
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    family: Annotated[
        bool,
        typer.Option(
            "--family", help="Prune the first network by magnitude and at random, and draw the t-SNE of all."
        ),
    ] = False,
    step: Annotated[
        int, typer.Option(min=1, max=50, help="Sparsities of --family, in percent: 0, step, ... 99.")
    ] = 3,
    perplexity: Annotated[float, typer.Option(min=1, help="Of t-SNE.")] = 30.0,
    cka: Annotated[int, typer.Option(min=0, help="Inputs for CKA; 0 leaves it out.")] = 300,
    biased: Annotated[
        bool, typer.Option("--biased", help="The biased estimator of CKA, as in its first paper.")
    ] = False,
    limit: shared.LimitSome = 500,
    seed: options.Seed = 0,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the predictions of the pruned family here, so that an interrupted command goes on from them.",
        ),
    ] = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare the functions of networks on the test split."""
    from espalier.cli.landscape.networks import gather, subset
    from espalier.landscape import embedding
    from espalier.landscape.functions import compare_functions
    from espalier.report import landscape_functions as report
    from espalier.report.progress import progress_bar

    if len(files) < 2:
        raise EspalierError("comparing functions needs at least 2 networks, got 1; `evaluate` measures one")
    named = shared.named(files)
    shared.check_outputs(png, html, *files)
    dataset, networks = gather(named, model, data, data_root, limit)
    picture = None
    with progress_bar(not as_json) as bar:
        found = compare_functions(
            networks, dataset.test, cka=cka, biased=biased, progress=shared.follow(bar, "networks")
        )
        if family:
            first = next(iter(networks))
            sparsities = [percent / 100 for percent in sorted({*range(0, 100, step), 99})]
            pruned = embedding.family(
                networks[first],
                dataset.test,
                sparsities,
                seed=seed,
                folder=folder,
                progress=shared.follow(bar, "pruned family"),
            )
            picture = embedding.embed(
                {**found.logits, **{name: logits for name, (_, _, logits) in pruned.items()}},
                dataset.test.labels,
                groups={name: group for name, (group, _, _) in pruned.items()},
                sparsities={name: sparsity for name, (_, sparsity, _) in pruned.items()},
                perplexity=perplexity,
                seed=seed,
            )
    result = report.Result(found, picture, subset(dataset, 0, len(dataset.test), limit))
    shared.show(report, result, png, html, as_json)
