"""What the landscape figures share."""

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.checkpoint.atomic import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#2f6b46", "#9a4a12", "#4477aa", "#aa3377", "#88aa22", "#555555", "#bb8800")
"""One color a network or line, in this order."""


def write_png(figure: "Figure", path: Path, dpi: int = 130) -> None:
    """A figure as a PNG file, whole or not at all."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")
