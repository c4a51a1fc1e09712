"""Loss and accuracy on the way between two networks: straight line, and a trained curve; barriers and lengths.

For example:

  espalier landscape path a.safetensors b.safetensors --model resnet20 --data cifar10_jpeg --png path.png

  espalier landscape path sgd.pt grda.pt --model lenet5 --data torchvision:MNIST --curve bezier --control sgd.pt sgd2.pt
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier.cli import options
from espalier.cli.landscape import shared


def command(
    start: Annotated[Path, typer.Argument(metavar="A", help="The network at t = 0.")],
    end: Annotated[Path, typer.Argument(metavar="B", help="The network at t = 1.")],
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    curve: Annotated[
        Literal["bezier", "polygon"] | None,
        typer.Option(help="Also train a curve with one bend between the two."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training the bend.")] = 30,
    lr: Annotated[float, typer.Option(help="Learning rate of the bend.")] = 0.05,
    support: Annotated[
        Literal["all", "union", "intersection"],
        typer.Option(
            help="Where the bend may be nonzero: everywhere, where A or B is, or only where both are: a sparse curve."
        ),
    ] = "all",
    control: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="C D", help="A second pair measured the same way, such as two runs of SGD."),
    ] = None,
    points: Annotated[int, typer.Option(min=3, help="Points on the way, ends included.")] = 21,
    limit: shared.LimitSome = 500,
    separate: shared.Separate = False,
    batch_size: shared.ForwardBatch = 500,
    seed: options.Seed = 0,
    save_midpoint: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the network at t = 1/2, of the curve if one is trained."),
    ] = None,
    save_average: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the average of A, B and every --also, as SWA takes it."),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A further network for --save-average; may be repeated."),
    ] = None,
    folder: shared.Folder = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the path between two networks."""
    from espalier.checkpoint import save_checkpoint
    from espalier.cli.landscape.networks import gather, subset, surface_of
    from espalier.landscape.curve_between import CurveTraining
    from espalier.landscape.points import average
    from espalier.landscape.ways import ways
    from espalier.processes import is_main
    from espalier.report import landscape_path as report
    from espalier.report.progress import progress_bar

    averaged = [start, end, *(also or ())]
    files = shared.named([*dict.fromkeys([*averaged, *(control or ())])])
    label = {file: name for name, file in files.items()}
    shared.check_outputs(png, html, *files.values())
    shared.check_apart([save_midpoint, save_average], files.values())
    training = CurveTraining(epochs=epochs, lr=lr, seed=seed)
    dataset, networks = gather(files, model, data, data_root, limit)
    surface, vectors = surface_of(networks, dataset, batch_size, separate)
    pairs = [(label[a], label[b]) for a, b in ((start, end), *([control] if control else []))]
    with progress_bar(not as_json) as bar:
        found = ways(
            surface,
            vectors,
            pairs,
            curve=curve,
            training=training,
            support=support,
            points=points,
            folder=folder,
            progress=lambda word: shared.follow(bar, word),
        )
    for out, vector in (
        (save_midpoint, found[0].path.at(0.5) if curve is None else found[1].path.at(0.5)),
        (save_average, average({label[file]: vectors[label[file]] for file in averaged})),
    ):
        if out is not None:
            state = surface.state_dict(vector)
            if is_main():
                save_checkpoint(out, state, {"espalier": "landscape path"})
    result = report.Result(
        found,
        subset(dataset, surface.train.examples, len(dataset.test), limit),
        surface.note,
        tuple(str(out) for out in (save_midpoint, save_average) if out is not None),
    )
    shared.show(report, result, png, html, as_json)
