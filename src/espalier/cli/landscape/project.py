"""How much of the difference of two networks lies where the loss is curved, beside how much chance would put there.

For example:

  espalier landscape project sgd.pt grda.pt --model resnet20 --data cifar10_jpeg --control sgd.pt sgd2.pt

  espalier landscape project dense.safetensors pruned.safetensors --model digits_cnn --data digits --top 20 --json
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import options
from espalier.cli.landscape import curvature, shared


def command(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="The network whose curvature is taken, such as the SGD one.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other, such as the gRDA one.")],
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    control: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="C D", help="A second pair measured the same way, such as two runs of SGD."),
    ] = None,
    top: curvature.Top = 10,
    kind: curvature.Kind = "hessian",
    tolerance: curvature.Tolerance = 1e-3,
    products: curvature.Products = None,
    limit: shared.LimitSome = 500,
    batch_size: curvature.BatchSize = 100,
    scope: options.Scope = "all",
    include: options.Include = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    folder: shared.Folder = None,
    png: shared.Png = None,
    html: options.Html = None,
    as_json: options.AsJson = False,
) -> None:
    """Share of a difference in the leading eigenspace."""
    from espalier.cli.landscape.networks import gather, subset
    from espalier.landscape.project import project
    from espalier.report import landscape_project as report
    from espalier.report.progress import progress_bar

    files = shared.named([*dict.fromkeys([first, second, *(control or ())])])
    label = {file: name for name, file in files.items()}
    shared.check_outputs(png, html, *files.values())
    dataset, networks = gather(files, model, data, data_root, limit)
    operator = curvature.curvature_of(
        label[first], networks[label[first]], dataset, kind, batch_size, scope, include, exclude
    )
    risk = operator.risk
    flat = {name: risk.flat(dict(network.named_parameters())).double() for name, network in networks.items()}
    with progress_bar(not as_json) as bar:
        pairs = curvature.eigenpairs(
            bar, operator, folder, dataset, top=top, tolerance=tolerance, products=products, seed=seed
        )
    a, b = label[first], label[second]
    vectors = {f"{b} - {a}": flat[b] - flat[a], a: flat[a], b: flat[b]}
    if control is not None:
        c, d = (label[file] for file in control)
        vectors[f"control: {d} - {c}"] = flat[d] - flat[c]
    result = report.Result(a, subset(dataset, risk.examples, 0, limit), kind, pairs, project(pairs, vectors))
    shared.show(report, result, png, html, as_json)
