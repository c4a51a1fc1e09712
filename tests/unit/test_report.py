import json
import math

from espalier.report.page import new_figure
from espalier.report.plot_compare import Mark, dots, lines
from espalier.report.plot_text import braille_curve
from espalier.report.text import dump, percent, size, table


def test_numbers_that_json_does_not_know_become_null() -> None:
    assert json.loads(dump({"loss": math.nan, "list": [math.inf, 1.5], "deep": {"x": (-math.inf,)}})) == {
        "loss": None,
        "list": [None, 1.5],
        "deep": {"x": [None]},
    }


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_090_000, 4_294_967_296)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.09 MB",
        "4.29 GB",
    ]


def test_percent() -> None:
    assert (percent(0.9), percent(1 / 3, 2)) == ("90.0 %", "33.33 %")


def test_table_sets_numbers_flush_right_and_breaks_only_where_told() -> None:
    lines = table(("name", "n"), [("a", "1"), ("b", "1000")], numeric=(1,)).splitlines()
    assert lines[0].split() == ["name", "n"]
    assert lines[2].endswith("   1") and lines[3].endswith("1000")
    long = "word " * 60
    assert len(table(("name", "why"), [("a", long)], wrap=(1,)).splitlines()) > 3
    assert len(table(("name", "why"), [("a", long)]).splitlines()) == 3


def test_heads_are_broken_only_where_the_table_would_be_wider_than_the_terminal() -> None:
    heads = [f"quite a long head {i}" for i in range(9)]
    lines = table(heads, [["1"] * 9]).splitlines()
    assert max(map(len, lines)) <= 100 and lines[0].split("   ") == ["quite a"] * 9
    assert heads[0] in table(heads[:2], [["1"] * 2])


def test_a_comparison_in_which_nothing_errs_is_drawn() -> None:
    marks = [Mark("a", sparsity, 1.0, None, True, 1) for sparsity in (0.8, 0.9)]
    axes = [new_figure()[1] for _ in range(3)]
    lines(axes[0], marks, {"dense": 1.0})
    lines(axes[1], [], {})
    dots(axes[2], marks[:1])
    low, high = axes[0].get_ylim()
    assert low > high > 0
    assert all(high <= y <= low for line in axes[0].lines[:1] for y in line.get_ydata())


def test_curve_falls_from_the_top_left_to_the_bottom_right() -> None:
    lines = braille_curve([0.0, 1.0], [1.0, 0.0], {"M": (0.5, 0.5)}, width=20, height=10).splitlines()
    assert len(lines) == 12
    assert lines[0][6] != " " and lines[9][25] != " "
    assert lines[9][6] == " " and lines[0][25] == " "
    assert lines[5][6 + round(0.5 * 19)] == "M"
