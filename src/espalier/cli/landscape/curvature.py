"""What the curvature commands share: options, and from files to a risk; imports torch late."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import nn

    from espalier.data import Dataset
    from espalier.landscape.operators import AbstractOperator
    from espalier.landscape.risk import Risk

Kind = Annotated[
    Literal["hessian", "gauss-newton"],
    typer.Option("--curvature", help="gauss-newton has no negative eigenvalues, and costs half."),
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


def risk_of(
    network: "nn.Module",
    data: "Dataset",
    batch_size: int,
    scope: str,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> "Risk":
    """The mean training loss of a network in its selected weights."""
    from espalier.checkpoint import open_checkpoint
    from espalier.landscape.risk import Risk
    from espalier.selection import select

    selection = select(open_checkpoint(network), scope, include or [], exclude or [])  # type: ignore[arg-type]
    return Risk(network, data.train, selection=selection, batch_size=batch_size)


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


def spec_of(
    risk: "Risk", data: "Dataset", kind: str, top: int, tolerance: float, seed: int
) -> dict[str, Any]:
    """What eigenpairs depend on, for the folder that keeps them."""
    import hashlib

    weights = hashlib.sha256(risk.weights.cpu().numpy().tobytes()).hexdigest()[:16]
    return {
        "weights": weights,
        "data": data.train.digest,
        "examples": risk.examples,
        "names": list(risk.names),
        "curvature": kind,
        "top": top,
        "tolerance": tolerance,
        "seed": seed,
    }


def subset(data: "Dataset", risk: "Risk", limit: int) -> str:
    """Which examples were used, for people to read beside the numbers."""
    cut = "all of them" if not limit else f"--limit {limit:,}; the first of a fixed permutation"
    return f"{data.name}: {risk.examples:,} training examples ({cut})"
