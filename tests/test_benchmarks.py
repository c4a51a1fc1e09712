"""The benchmarks run and write down what they should; how fast anything is, no test says."""

import json
import math
from functools import partial

import pytest
from benchmarks.__main__ import PARTS, lines, main
from benchmarks._measure import Goal, interleaved, ratio, table


@pytest.mark.parametrize("name", PARTS)
def test_each_part_runs_in_its_quick_form(name, tmp_path, capsys):
    out = tmp_path / "benchmarks.json"
    main(["--quick", "--only", name, "--output", str(out)])
    written = json.loads(out.read_text())
    assert list(written["parts"]) == [name]
    part = written["parts"][name]
    assert part["quick"] is True and part["measured"] and part["about"]
    assert {"torch", "threads", "cpu", "cores", "load before", "load after"} <= set(part["environment"])
    assert part["goals"]
    for goal in part["goals"]:
        assert set(goal) == {"what", "limit", "measured", "low", "high", "at_most", "met"}
        assert all(math.isfinite(goal[key]) for key in ("limit", "measured", "low", "high"))
        assert goal["low"] <= goal["high"]
    printed = capsys.readouterr().out
    assert all(goal["what"] in printed for goal in part["goals"])


def test_a_part_run_alone_leaves_the_others_as_they_were(tmp_path, capsys):
    out = tmp_path / "benchmarks.json"
    for name in ("histogram", "sparse_file"):
        main(["--quick", "--only", name, "--output", str(out)])
    before = json.loads(out.read_text())["parts"]
    main(["--quick", "--only", "histogram", "--output", str(out)])
    after = json.loads(out.read_text())["parts"]
    assert list(after) == ["histogram", "sparse_file"]
    assert after["sparse_file"] == before["sparse_file"]


def test_the_quick_form_writes_nothing_unless_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.__main__.OUT", tmp_path / "benchmarks.json")
    main(["--quick", "--only", "histogram"])
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "nonsense"])
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_goals_are_bounds_from_above_or_below():
    above, below = Goal("a", 2.0, 1.5, 1.0, 3.0), Goal("b", 2.0, 1.5, 1.0, 3.0, at_most=False)
    assert above.met and not below.met
    header, first, second = lines([above, below])
    assert "goal" in header and "<= 2" in first and "1.5" in first and "1 to 3" in first
    assert "missed" not in first and second.endswith("missed")


def test_candidates_take_turns_after_a_round_that_is_not_timed():
    calls: list[str] = []
    times = interleaved({name: partial(calls.append, name) for name in "ab"}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_ratio_and_spread():
    assert ratio([2.0, 6.0], [1.0, 2.0]) == (2.0, 2.0, 3.0)
    assert table({"x": [3.0, 1.0, 2.0]}) == {"x": {"min": 1.0, "median": 2.0, "max": 3.0}}
