"""Options that several commands share, each described once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from espalier._errors import EspalierError

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A checkpoint: .safetensors (single, or its index.json), a torch file, or a Hugging Face folder.",
    ),
]
Scope = Annotated[
    str,
    typer.Option(
        metavar="weights|paper|all",
        help="Which tensors count: weights (2 or more dimensions, norms and embeddings left out), "
        "paper (every weight and bias), all (every floating tensor).",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only tensors of the scope whose name matches; may be repeated."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out tensors whose name matches; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write a self-contained HTML report with plots.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write the result.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The network: lenet5, digits_cnn, resnet20|32|44|56|110, vgg16, wrn28x10, torchvision:NAME, hf:FOLDER, "
        "or package.module:function.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The data: digits, torchvision:NAME (MNIST, CIFAR10, ...), a Hugging Face parquet folder or hub name, "
        "or an image folder.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        envvar="ESPALIER_DATA",
        help="Where data sets lie; the variable ESPALIER_DATA also says so.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples a step.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most this many examples of each split.")]
Seed = Annotated[
    int, typer.Option(help="Seed of everything random here: data order, augmentation, random scores.")
]


def check_reports(html: Path | None, *others: Path) -> None:
    """Refuse a report that could not be written, or would replace a result, before any work is done."""
    if html is None:
        return
    if not html.absolute().parent.is_dir():
        raise EspalierError(f"--html {html}: the folder {html.parent} does not exist; create it first")
    if html.is_dir():
        raise EspalierError(f"--html {html} is a folder; give the name of a file")
    if html.resolve() in {other.resolve() for other in others}:
        raise EspalierError(
            f"--html {html} is another file of this command; give the report a name of its own"
        )


def say(*notes: str) -> None:
    """What one should know about the files, on standard error, where no program looks for results."""
    for note in notes:
        print(f"espalier: note: {note}", file=sys.stderr)
