"""The landscape of the results, end to end on a small network, and what its page says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from results.landscape.__main__ import PARTS, collect
from results.landscape.networks import CONTROL, Case, Sizes
from results.pages import landscape_figures, landscape_pruning, landscape_valley
from torch import nn

from espalier.data import Options, digits
from espalier.models import DigitsCNN
from espalier.train import Training

SIZES = Sizes(
    train=40,
    test=40,
    points=3,
    curve=60,
    epochs=1,
    plane=40,
    side=2,
    around=3,
    directions=1,
    cosines=(0.9,),
    curvature=40,
    pairs=2,
    probes=2,
    steps=3,
    family=33,
    predictions=40,
    repeats=1,
)


def small(folder: Path) -> Case:
    def begin(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return DigitsCNN(width=0.25)

    data = digits(Options(limit=200))
    training = Training(epochs=2, batch_size=32, lr=0.1, precision="fp32")
    tuning = Training(epochs=1, batch_size=32, lr=0.01, precision="fp32")
    return Case(
        "toy", "a toy", begin, lambda: data, training, tuning, SIZES, folder / "points", folder / "scratch"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("landscape")


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict[str, Any]:
    return collect(small(folder), tuple(PARTS))


def test_runs_begin_together_and_end_at_what_was_asked_for(parts: dict[str, Any]) -> None:
    runs = parts["networks"]
    assert runs["start"]["distance_from_start"] == 0
    assert runs["gRDA 90 %"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert runs[CONTROL]["sparsity"] == 0
    assert runs["SGD"]["accuracy"] != runs["start"]["accuracy"]


def test_every_way_begins_at_sgd(parts: dict[str, Any]) -> None:
    first = {json.dumps(way["points"][0]) for way in parts["ways"].values()}
    assert len(parts["ways"]) == 6 and len(first) == 1
    assert parts["ways"]["line, gRDA 90 %"]["points"][-1]["sparsity"] > 0.5


def test_shares_are_of_differences_and_of_networks(parts: dict[str, Any]) -> None:
    shares = {share["name"]: share for share in parts["curvature"]["projection"]["shares"]}
    assert {"gRDA 95 % - SGD", f"{CONTROL} - SGD", "SGD"} <= shares.keys()
    assert all(0 < share["share"] <= 1 for share in shares.values())
    values = parts["curvature"]["leading, SGD"]["values"]
    assert len(values) == SIZES.pairs and values[0] >= values[1]


def test_repeats_begin_elsewhere(folder: Path, parts: dict[str, Any]) -> None:
    again = small(folder).again(1)
    assert again.training.seed == 2 and not torch.equal(
        *(next(c.start().parameters()) for c in (again, small(folder)))
    )
    first, second = landscape_valley.starts(parts)
    assert first != second and first[0].keys() == second[0].keys() == first[1].keys()
    assert "Over 2 starts" in landscape_valley.section(
        "toy", {"parts": parts, "sizes": vars(SIZES), "training": {}}
    )


def test_families_begin_at_the_network_and_leave_it(parts: dict[str, Any]) -> None:
    found = {network["name"]: network for network in parts["family"]["family"]["networks"]}
    assert found["L1 0 %"]["to_end"] == found["end"]["to_end"] == 0
    assert found["L1 33 %"]["cosine"] > found["random 33 %"]["cosine"] > found["random 66 %"]["cosine"]
    assert found["random 99 %"]["to_end"] > 0


def test_pruning_at_random_meets_l1_at_equal_cosine(parts: dict[str, Any]) -> None:
    one, other = parts["around"]["directions 0"]["pruned"]
    assert (one["score"], other["score"]) == ("L1", "random")
    assert one["cosine"] == pytest.approx(0.9, abs=0.01) and other["cosine"] == pytest.approx(0.9, abs=0.05)
    assert one["sparsity"] > other["sparsity"] > 0


def test_what_is_there_is_not_made_again(folder: Path, parts: dict[str, Any]) -> None:
    case = small(folder)
    made = {path: path.stat().st_mtime_ns for path in case.folder.rglob("*.*")}
    (case.folder / "ways" / "line-gRDA-90.json").unlink()
    assert collect(case, tuple(PARTS)) == parts
    again = {path for path in case.folder.rglob("*.*") if path.stat().st_mtime_ns != made[path]}
    assert {path.name for path in again} == {"line-gRDA-90.json"}


def test_the_page_is_written_and_drawn_of_it(parts: dict[str, Any]) -> None:
    result = {"parts": parts, "sizes": vars(SIZES), "training": {"epochs": 2}}
    text = landscape_valley.section("toy", result) + landscape_pruning.section("toy", result)
    rise = landscape_valley.above(parts["ways"]["line, gRDA 90 %"], "test")
    assert f"{100 * rise:.2f} points on the way to gRDA 90 %" in text
    assert "not run" not in text.replace("| not run", "")
    for figure in (landscape_figures.valley_figure(result), landscape_figures.pruning_figure(result)):
        figure.draw_without_rendering()
        assert not [text for axes in figure.axes for text in axes.texts if "not run" in text.get_text()]


def test_missing_parts_are_said_to_be_missing() -> None:
    result = {"parts": {}, "sizes": vars(SIZES), "training": {}}
    text = landscape_valley.section("toy", result)
    assert all(f"{part}: not run" in text for part in ("Ways", "Functions", "Curvature"))
    assert "Planes of random directions: not run" in landscape_pruning.section("toy", result)
    figure = landscape_figures.pruning_figure(result)
    assert sum("not run" in text.get_text() for axes in figure.axes for text in axes.texts) == 6


def way(rise: float) -> dict[str, Any]:
    """Unequal ends: half their difference is no wall."""
    return {"points": [{"test": {"accuracy": accuracy}} for accuracy in (0.95, 0.9 - rise, 0.9)]}


@pytest.mark.parametrize(
    ("grda", "control", "says"),
    [
        (0.01, 0.005, "all of them lie in one valley"),
        (0.0, 0.0, "the error is 5.00 points higher at gRDA 90 % itself"),
        (0.1, 0.3, "and neither is a second run of SGD"),
        (0.1, 0.01, f"{CONTROL} is joined to SGD by a straight line, gRDA 90 % is not"),
    ],
)
def test_the_verdict_follows_the_barriers(grda: float, control: float, says: str) -> None:
    ways = {"line, gRDA 90 %": way(grda), f"line, {CONTROL}": way(control)}
    assert says in landscape_valley.valley(ways)


def test_counts_that_say_nothing_are_marked() -> None:
    assert landscape_valley.counted(80.2, 0.18) == "80.2 ± 0.18"
    assert landscape_valley.counted(6.8e4, 6.7e4) == "not resolved (6.8e+04 ± 6.7e+04)"


def test_there_is_no_verdict_without_a_control() -> None:
    assert "not known yet" in landscape_valley.valley({"line, gRDA 90 %": way(0.0)})
