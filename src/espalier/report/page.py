"""A self-contained HTML page: cards, paragraphs, tables, figures; nothing is fetched when it is opened."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import espalier
from espalier._errors import EspalierError
from espalier.checkpoint.write import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows of ready text; columns in `numeric` are set flush right, rows in `bold` in bold."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Card:
    """One number that should be seen first."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order: paragraphs, warnings, points, figure, table."""

    title: str
    paragraphs: Sequence[str] = ()
    warnings: Sequence[str] = ()
    points: Sequence[str] = ()
    figure: str = ""
    caption: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    version: str = espalier.__version__
    command: str = field(default_factory=lambda: " ".join(["espalier", *sys.argv[1:]]))


def write_page(page: Page, path: Path) -> None:
    """Render a page into one file, whole or not at all.

    Raises:
        EspalierError: jinja2 or matplotlib is not installed.
    """
    jinja2 = _needs("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("espalier.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    with atomic(path) as temporary:
        temporary.write_text(environment.get_template("page.html.j2").render(page=page), encoding="utf-8")


def svg(figure: "Figure") -> str:
    """A matplotlib figure as inline SVG; equal figures give equal text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "espalier"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def new_figure(width: float = 9.0, height: float = 4.5) -> "tuple[Figure, Any]":
    """A figure with one set of axes in the house style, without pyplot's global state."""
    _needs("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e7ece8", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _needs(name: str) -> Any:
    """An optional library, or the sentence that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise EspalierError(f"reports need {name}: pip install 'espalier[report]'") from None
