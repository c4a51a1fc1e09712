"""A curve drawn in the terminal with braille dots."""

from collections.abc import Mapping, Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def braille_curve(
    x: Sequence[float],
    y: Sequence[float],
    marks: Mapping[str, tuple[float, float]] | None = None,
    width: int = 60,
    height: int = 12,
) -> str:
    """Draw y over x, both in [0, 1], as text.

    Args:
        x: abscissas in [0, 1], ascending.
        y: ordinates in [0, 1].
        marks: one-letter label -> point; the letter is printed at its place.
        width: characters of the drawing, without the axis.
        height: lines of the drawing, without the axis.

    Returns:
        `height + 2` lines: the drawing, the axis and its numbers.
    """
    cells = [[0] * width for _ in range(height)]
    columns, rows = 2 * width, 4 * height
    position = 0
    for column in range(columns):
        at = column / (columns - 1)
        while position + 2 < len(x) and x[position + 1] < at:
            position += 1
        left, right = x[position], x[position + 1]
        share = 0.0 if right == left else min(max((at - left) / (right - left), 0.0), 1.0)
        value = y[position] + share * (y[position + 1] - y[position])
        row = min(int((1 - value) * rows), rows - 1)
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    drawing = [[chr(0x2800 + dots) if dots else " " for dots in line] for line in cells]
    for label, (at, value) in (marks or {}).items():
        row = min(int((1 - value) * height), height - 1)
        drawing[row][min(round(at * (width - 1)), width - 1)] = label
    labels = {0: "1.0", height // 2: "0.5", height - 1: "0.0"}
    lines = [f"{labels.get(i, ''):>4} ┤{''.join(line)}" for i, line in enumerate(drawing)]
    axis = "     └" + "─" * width
    numbers = "      " + "".join(f"{tick / 10:<{width // 10}.1f}" for tick in range(0, 10)) + "1.0"
    return "\n".join([*lines, axis, numbers])
