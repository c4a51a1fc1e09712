"""Loss over a plane of weight space: through three networks, through the origin, or along random directions.

For example:

  espalier landscape plane a.pt b.pt c.pt --model lenet5 --data torchvision:MNIST --png plane.png --folder plane

  espalier landscape plane dense.pt pruned.pt --kind random --model resnet20 --data cifar10_jpeg --points 15
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier._errors import EspalierError
from espalier.cli import options
from espalier.cli.landscape import shared


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="three: the networks that span the plane, then others to mark. random: the parent, then networks to "
            "compare over the same directions. radial: trained network, its start, then others to mark.",
        ),
    ],
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    kind: Annotated[Literal["three", "random", "radial"], typer.Option(help="Which plane.")] = "three",
    points: Annotated[int, typer.Option(min=2, help="Points a side: 25 means 625 evaluations.")] = 25,
    reach: Annotated[
        float, typer.Option(help="random: how many times each filter's own length the grid goes each way.")
    ] = 1.0,
    limit: shared.LimitSome = 200,
    separate: shared.Separate = False,
    batch_size: shared.ForwardBatch = 500,
    seed: options.Seed = 0,
    folder: shared.Folder = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a plane."""
    from espalier.cli.landscape.networks import gather, subset, surface_of
    from espalier.landscape.plane import difference, measure_plane, radial, random_plane, through
    from espalier.report import landscape_plane as report
    from espalier.report.progress import progress_bar

    needed = {"three": 3, "random": 1, "radial": 2}[kind]
    if len(files) < needed:
        raise EspalierError(f"--kind {kind} needs at least {needed} networks, got {len(files)}")
    named = shared.named(files)
    shared.check_outputs(png, html, *files)
    dataset, networks = gather(named, model, data, data_root, limit)
    first, *others = networks
    surface, vectors = surface_of(networks, dataset, batch_size, separate)
    if kind == "three":
        planes = {"plane": through(vectors)}
    elif kind == "radial":
        marked = {name: vectors[name] for name in others[1:]}
        planes = {"radial slice": radial(vectors[first], vectors[others[0]], marked)}
    else:
        planes = {first: random_plane(surface.space, vectors[first], seed=seed, reach=reach, name=first)}
        ways = (planes[first].u, planes[first].v)
        for name in others:
            planes[name] = random_plane(surface.space, vectors[name], directions=ways, reach=reach, name=name)
    grids = {}
    with progress_bar(not as_json) as bar:
        for number, (name, plane) in enumerate(planes.items()):
            home = folder if folder is None or len(planes) == 1 else folder / str(number)
            grids[name] = measure_plane(
                surface, plane, points=points, folder=home, progress=shared.follow(bar, name)
            )
    pairs: tuple[tuple[Literal["train", "test"], Literal["loss", "error"]], ...] = (
        ("train", "loss"),
        ("test", "loss"),
        ("test", "error"),
    )
    gaps = {
        (f"{first} – {name}", f"{split} {what}"): difference(grids[first], grids[name], what, split)
        for name in list(grids)[1:]
        for split, what in pairs
    }
    result = report.Result(
        grids,
        gaps,
        subset(dataset, surface.train.examples, len(dataset.test), limit),
        surface.note,
        surface.evaluations,
    )
    shared.show(report, result, png, html, as_json)
