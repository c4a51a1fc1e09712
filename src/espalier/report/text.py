"""Numbers and tables as text."""

import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def size(count: int) -> str:
    """Bytes for people: "1.09 MB" (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage: "90.0 %"."""
    return f"{100 * fraction:.{digits}f} %"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), wrap: Sequence[int] = ()
) -> str:
    """A plain table. Columns in `numeric` are set flush right; only those in `wrap` are broken into lines.

    As wide as the terminal (at least 100 columns) if something wraps, else as wide as it has to be; heads are broken
    into lines where it would be wider than the terminal.
    """
    limit = max(Console().width, 100)
    grid = _grid(heads, rows, numeric, wrap)
    if Console(width=1000).measure(grid).maximum > limit:
        cells = [max((len(row[column]) for row in rows), default=0) for column in range(len(heads))]
        broken = [
            "\n".join(textwrap.wrap(head, max(8, width), break_long_words=False))
            for head, width in zip(heads, cells)
        ]
        grid = _grid(broken, rows, numeric, wrap)
    buffer = io.StringIO()
    width = limit if wrap else 1000
    Console(file=buffer, width=width, color_system=None, markup=False, highlight=False).print(grid)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _grid(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int], wrap: Sequence[int]
) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, head in enumerate(heads):
        grid.add_column(head, justify="right" if column in numeric else "left", no_wrap=column not in wrap)
    for row in rows:
        grid.add_row(*row)
    return grid


def dump(value: Any) -> str:
    """JSON for programs; a number that is not finite, which JSON does not know, becomes null."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
