"""What the curvature commands share: options, and from files to a risk; imports torch late."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import nn

    from espalier.data import Dataset
    from espalier.landscape.operators import AbstractOperator, Curvature
    from espalier.landscape.records import Records
    from espalier.landscape.spectrum import Eigenpairs

Kind = Annotated[
    Literal["hessian", "gauss-newton"],
    typer.Option(
        "--curvature",
        help="gauss-newton has no negative eigenvalues, and a product costs about a third less.",
    ),
]
Top = Annotated[int, typer.Option(min=1, metavar="K", help="Leading eigenpairs.")]
Tolerance = Annotated[
    float, typer.Option(help="Residual over the largest eigenvalue that counts as converged.")
]
Products = Annotated[
    int | None,
    typer.Option(min=2, help="Curvature-vector products allowed for the eigenpairs; 30 a pair if not given."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples a pass: less saves memory.")]


def curvature_of(
    name: str,
    network: "nn.Module",
    data: "Dataset",
    kind: str,
    batch_size: int,
    scope: str,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> "Curvature":
    """The curvature of the mean training loss of a network in its selected weights."""
    from espalier.checkpoint import open_checkpoint
    from espalier.cli.landscape.networks import say_shared
    from espalier.landscape.operators import Curvature
    from espalier.landscape.points import check_usable
    from espalier.landscape.risk import Risk
    from espalier.selection import select

    check_usable(network, name)
    selection = select(open_checkpoint(network), scope, include or [], exclude or [])  # type: ignore[arg-type]
    risk = Risk(network, data.train, selection=selection, batch_size=batch_size)
    say_shared(-(-risk.examples // batch_size))
    return Curvature(risk, kind=kind)  # type: ignore[arg-type]


def eigenpairs(
    bar: "Progress",
    operator: "Curvature",
    folder: Path | None,
    data: "Dataset",
    *,
    top: int,
    tolerance: float,
    products: int | None,
    seed: int,
) -> "Eigenpairs":
    """The leading eigenpairs, from the folder that keeps them or computed now; those not converged too."""
    from espalier.landscape.kept import eigenpairs_once
    from espalier.landscape.spectrum import leading

    spec = _spec(operator, data, seed) | {"top": top, "tolerance": tolerance}
    with counted(bar, operator, "eigenpairs: products"):
        return eigenpairs_once(
            folder,
            spec,
            operator,
            lambda kept: leading(kept, top, tolerance=tolerance, products=products, seed=seed, strict=False),
        )


def records(
    folder: Path | None, word: str, operator: "Curvature", data: "Dataset", seed: int
) -> "Records | None":
    """What is kept of an estimate made of independent pieces, in a folder of its own."""
    from espalier.landscape.records import Records

    return None if folder is None else Records(folder / word, _spec(operator, data, seed))


def _spec(operator: "Curvature", data: "Dataset", seed: int) -> dict[str, Any]:
    """What is measured, for files that can be resumed."""
    risk = operator.risk
    return {
        "weights": hashlib.sha256(risk.weights.cpu().numpy().tobytes()).hexdigest()[:16],
        "data": data.train.digest,
        "examples": risk.examples,
        "names": list(risk.names),
        "curvature": operator.kind,
        "seed": seed,
    }


@contextmanager
def counted(bar: "Progress", operator: "AbstractOperator", word: str) -> Iterator[None]:
    """A bar of products, for as long as it lasts."""
    task = bar.add_task(word, total=None)
    operator.progress = lambda: bar.advance(task)
    try:
        yield
    finally:
        operator.progress = None
        bar.remove_task(task)
