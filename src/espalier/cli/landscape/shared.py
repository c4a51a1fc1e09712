"""What the landscape commands share: names for files, outputs, the progress of a loop."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from espalier._errors import EspalierError
from espalier.cli import options

if TYPE_CHECKING:
    from rich.progress import Progress

Png = Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the figure into a PNG file.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep every finished step here, so that an interrupted command goes on where it stopped.",
    ),
]
LimitSome = Annotated[
    int,
    typer.Option(
        min=0, help="Examples of each split; the subset is stated with the numbers. 0 takes every example."
    ),
]
Separate = Annotated[
    bool,
    typer.Option(
        "--separate/--shared",
        help="Batch norm: estimate its statistics in a pass of their own before the training loss is measured with "
        "them, or in the pass that measures it (each batch by its own statistics).",
    ),
]
ForwardBatch = Annotated[int, typer.Option("--batch-size", min=2, help="Examples a forward pass.")]


def named(files: Sequence[Path]) -> dict[str, Path]:
    """Short names for files: the file's own name, or the path as given where two would be called the same."""
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EspalierError(f"{twice} is given twice; give each network once")
    return dict(zip(names, files, strict=True))


def check_outputs(png: Path | None, html: Path | None, *others: Path) -> None:
    """Refuse pictures that could not be written, or would replace an input, before any work is done."""
    options.check_reports(html, *others)
    if png is None:
        return
    if not png.absolute().parent.is_dir():
        raise EspalierError(f"--png {png}: the folder {png.parent} does not exist; create it first")
    if png.is_dir():
        raise EspalierError(f"--png {png} is a folder; give the name of a file")
    if png.resolve() in {other.resolve() for other in (*others, *([html] if html else []))}:
        raise EspalierError(
            f"--png {png} is another file of this command; give the picture a name of its own"
        )


def follow(bar: "Progress", word: str) -> Callable[[int, int], None]:
    """A progress bar for a loop that tells how many steps are done, and of how many."""
    task = bar.add_task(word, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def check_apart(outputs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Refuse results that would replace what is read, or each other, or that have no folder to go to."""
    taken = {file.resolve() for file in inputs}
    for out in outputs:
        if out is None:
            continue
        if out.resolve() in taken:
            raise EspalierError(f"{out} is another file of this command; give the result a name of its own")
        if not out.absolute().parent.is_dir():
            raise EspalierError(f"{out}: the folder {out.parent} does not exist; create it first")
        taken.add(out.resolve())


def show(report: ModuleType, result: object, png: Path | None, html: Path | None, as_json: bool) -> None:
    """Pictures, page and text of a result by its module in `espalier.report`, from the main process alone."""
    from espalier.processes import is_main

    if is_main():
        report.write(result, png, html)
        print(report.as_json(result) if as_json else report.as_text(result))
