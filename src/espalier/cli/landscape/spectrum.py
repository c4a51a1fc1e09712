"""Eigenvalues of the curvature at a network: the leading ones with residuals, the density of all, the trace.

For example:

  espalier landscape spectrum dense.safetensors --model resnet20 --data cifar10_jpeg --png spectrum.png

  espalier landscape spectrum net.pt --model lenet5 --data torchvision:MNIST --curvature gauss-newton --top 20 --json
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import options
from espalier.cli.landscape import curvature, shared


def command(
    file: Annotated[Path, typer.Argument(metavar="A", help="The network.")],
    model: options.Model,
    data: options.Data,
    data_root: options.DataRoot = None,
    top: curvature.Top = 10,
    kind: curvature.Kind = "hessian",
    tolerance: curvature.Tolerance = 1e-3,
    products: curvature.Products = None,
    probes: Annotated[
        int, typer.Option(min=0, help="Random probes of the density, 20 products each; 0 leaves it out.")
    ] = 5,
    trace: Annotated[
        int, typer.Option(min=0, help="Repeats of Hutch++ for the trace, 12 products each; 0 leaves it out.")
    ] = 0,
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
    """Spectrum of the curvature."""
    from espalier._errors import EspalierError
    from espalier.cli.landscape.networks import gather, subset
    from espalier.landscape.density import density
    from espalier.landscape.trace import trace as trace_of
    from espalier.report import landscape_spectrum as report
    from espalier.report.progress import progress_bar

    shared.check_outputs(png, html, file)
    if probes == 1 or trace == 1:
        raise EspalierError("error bars need at least 2 of --probes and --trace, or 0 to leave them out")
    dataset, networks = gather({file.name: file}, model, data, data_root, limit)
    operator = curvature.curvature_of(
        file.name, networks[file.name], dataset, kind, batch_size, scope, include, exclude
    )
    risk = operator.risk
    loss, slope = risk.loss_and_gradient()
    with progress_bar(not as_json) as bar:
        pairs = curvature.eigenpairs(
            bar, operator, folder, dataset, top=top, tolerance=tolerance, products=products, seed=seed
        )
        with curvature.counted(bar, operator, "density: products"):
            done = curvature.records(folder if probes else None, "density", operator, dataset, seed)
            found = density(operator, probes=probes, seed=seed, records=done) if probes else None
        with curvature.counted(bar, operator, "trace: products"):
            done = curvature.records(folder if trace else None, "trace", operator, dataset, seed)
            total = trace_of(operator, repeats=trace, seed=seed, records=done) if trace else None
    result = report.Result(
        file.name,
        subset(dataset, risk.examples, 0, limit),
        kind,
        risk.dimension,
        loss,
        float(slope.norm()),
        pairs,
        found,
        total,
    )
    shared.show(report, result, png, html, as_json)
