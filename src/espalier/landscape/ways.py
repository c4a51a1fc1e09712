"""Several pairs of networks joined the same way: a pair, and its control beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Literal

from torch import Tensor

from espalier.landscape.curve_between import CurveTraining, Support, trained_path
from espalier.landscape.path import Along, Path, Progress, measure_path
from espalier.landscape.surface import Surface


@dataclass(frozen=True, eq=False)
class Way:
    """One path that was measured.

    Args:
        start: name of the network at t = 0.
        end: name of the network at t = 1.
        path: its points.
        along: what was measured on it.
        control: whether it is the pair to compare with.
    """

    start: str
    end: str
    path: Path
    along: Along
    control: bool

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.along.kind}{' (control)' if self.control else ''}: {self.start} → {self.end}"


def ways(
    surface: Surface,
    vectors: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    *,
    curve: Literal["bezier", "polygon"] | None = None,
    training: CurveTraining | None = None,
    support: Support = "all",
    points: int = 21,
    folder: File | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> list[Way]:
    """The line, and the trained curve if one is asked for, of every pair; pairs after the first are controls.

    Args:
        surface: the module and the data, the same for all.
        vectors: name -> network.
        pairs: names of start and end.
        curve: kind of the trained curve; None measures lines only.
        training: of the curve.
        support: of the curve; see `trained_path`.
        points: on each way.
        folder: keeps states and points of all of them.
        progress: given a word on what begins, returns what is called after each of its steps.

    Raises:
        EspalierError: see `trained_path` and `measure_path`.
    """
    found: list[Way] = []

    def measure(number: int, path: Path) -> None:
        home = None if folder is None else folder / f"{number}-{path.kind}"
        tell = None if progress is None else progress(f"{path.kind} of pair {number + 1}")
        along = measure_path(surface, path, points=points, folder=home, progress=tell)
        found.append(Way(*pairs[number], path, along, number > 0))

    for number, (start, end) in enumerate(pairs):
        a, b = vectors[start], vectors[end]
        measure(number, Path("line", a, b))
        if curve is not None:
            tell = None if progress is None else progress(f"training the {curve} of pair {number + 1}")
            path = trained_path(
                surface,
                a,
                b,
                kind=curve,
                training=training,
                support=support,
                folder=None if folder is None else folder / f"{number}-{curve}-training",
                progress=tell,
            )
            measure(number, path)
    return found
