import copy
import json
import math
from pathlib import Path as File

import pytest
import torch
from torch import nn

from espalier import EspalierError
from espalier.landscape.curve_between import CurveTraining, Support, support_of, trained_path
from espalier.landscape.path import Along, Path, measure_path
from espalier.landscape.records import Records
from espalier.landscape.surface import Height, Level, Surface
from espalier.landscape.ways import ways
from tests.unit.test_landscape_surface import normed, plain, split

A, B, C = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])


def test_points_of_the_three_kinds_by_hand():
    assert Path("line", A, B).at(0.25).tolist() == [0.5, 0.0]
    assert Path("bezier", A, B, C).at(0.5).tolist() == [1.0, 0.5]
    assert Path("polygon", A, B, C).at(0.5).tolist() == C.tolist()
    assert Path("polygon", A, B, C).at(0.25).tolist() == [0.5, 0.5]
    for path in (Path("line", A, B), Path("bezier", A, B, C), Path("polygon", A, B, C)):
        assert torch.equal(path.at(0), A) and torch.equal(path.at(1), B)


def test_lengths_by_hand():
    assert Path("line", A, B).arc_length == 2
    assert Path("polygon", A, B, C).arc_length == pytest.approx(2 * math.sqrt(2))
    # Integral of 2 sqrt(1 + (1 - 2t)^2) over [0, 1].
    assert Path("bezier", A, B, C).arc_length == pytest.approx(math.sqrt(2) + math.asinh(1), rel=1e-9)
    assert Path("bezier", A, B, torch.tensor([1.0, 0.0])).arc_length == pytest.approx(2)


def along(values: list[float]) -> Along:
    t = tuple(i / (len(values) - 1) for i in range(len(values)))
    heights = tuple(Height(Level(v, 1 - v / 10, 10), None) for v in values)
    return Along("line", t, heights, 1.0, 1.0, (0.0,) * len(values))


def test_barrier_is_the_highest_value_minus_the_mean_of_the_ends():
    found = along([1.0, 5.0, 2.0]).barrier("train", "loss")
    assert (found.height, found.at, found.highest, found.above) == (3.5, 0.5, 5.0, 3.0)
    slope = along([1.0, 1.0, 2.0]).barrier("train", "loss")
    assert (slope.height, slope.above) == (0.5, 0.0)
    assert along([1.0, 5.0, 2.0]).barrier("train", "error").height == pytest.approx(0.35)
    assert along([1.0, math.nan, 2.0]).barrier("train", "loss").height == math.inf
    with pytest.raises(EspalierError, match="nothing was measured on a test split"):
        along([1.0, 1.0, 1.0]).barrier("test", "loss")


def networks(make=plain) -> tuple[Surface, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    first, second = make(), make()
    surface = Surface(first, split(96), split(40, seed=1))
    return surface, surface.space.vector(first), surface.space.vector(second)


def test_a_path_costs_its_points_and_resumes_after_a_kill(tmp_path: File):
    surface, a, b = networks(normed)
    full = measure_path(surface, Path("line", a, b), points=5, folder=tmp_path / "p")
    assert surface.evaluations == 5 and full.heights[0] == surface(a)
    points = tmp_path / "p" / "points.jsonl"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    before = surface.evaluations
    calls: list[tuple[int, int]] = []
    again = measure_path(
        surface, Path("line", a, b), points=5, folder=tmp_path / "p", progress=lambda *x: calls.append(x)
    )
    assert surface.evaluations - before == 2 and again == full and calls[-1] == (5, 5)
    with pytest.raises(EspalierError, match="holds another measurement: points was 5 and is 7"):
        measure_path(surface, Path("line", a, b), points=7, folder=tmp_path / "p")


def test_files_of_records_that_are_broken_are_told(tmp_path: File):
    (tmp_path / "points.jsonl").write_text("{}\n")
    with pytest.raises(EspalierError, match=r"holds points but no spec\.json"):
        Records(tmp_path, {})
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(EspalierError, match="broken in line 1"):
        Records(tmp_path, {})
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(EspalierError, match="cannot be read"):
        Records(tmp_path, {})
    with pytest.raises(EspalierError, match="is a file; the points are kept in a folder"):
        Records(tmp_path / "spec.json", {})
    Records(tmp_path / "new", {"a": 1}).add(0, {"loss": math.inf})
    assert json.loads((tmp_path / "new" / "points.jsonl").read_text()) == {"index": 0, "loss": None}


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
def test_training_lowers_the_loss_along_the_curve_and_keeps_the_ends(kind):
    surface, a, b = networks()
    line = measure_path(surface, Path("line", a, b), points=5)
    path = trained_path(surface, a, b, kind=kind, training=CurveTraining(epochs=20, batch_size=24, lr=0.1))
    found = measure_path(surface, path, points=5)
    assert sum(found.values("train", "loss")) < sum(line.values("train", "loss"))
    assert found.heights[0] == line.heights[0] and found.heights[-1] == line.heights[-1]
    assert found.arc_length >= found.distance


def test_a_sparse_curve_stays_sparse():
    surface, a, b = networks()
    a, b = a * (torch.arange(39) % 3 != 0), b * (torch.arange(39) % 2 != 0)
    cases: tuple[tuple[Support, torch.Tensor], ...] = (
        ("union", (a == 0) & (b == 0)),
        ("intersection", (a == 0) | (b == 0)),
    )
    for support, zero in cases:
        path = trained_path(surface, a, b, training=CurveTraining(epochs=2), support=support)
        assert path.bend is not None
        assert not path.bend[zero].any() and path.bend[~zero].any()
        assert measure_path(surface, path, points=3).sparsity[1] >= 7 / 39
    assert support_of(a, b, "all") is None
    with pytest.raises(EspalierError, match="support of a curve is one of all, union, intersection"):
        support_of(a, b, "none")  # type: ignore[arg-type]


def test_training_a_curve_resumes_to_the_same_bend(tmp_path: File):
    surface, a, b = networks(normed)
    training = CurveTraining(epochs=4, batch_size=32)
    whole = trained_path(surface, a, b, training=training).bend

    class Killed(Exception):
        pass

    def kill(done: int, of: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        trained_path(surface, a, b, training=training, folder=tmp_path / "c", progress=kill)
    resumed = trained_path(surface, a, b, training=training, folder=tmp_path / "c").bend
    assert whole is not None and resumed is not None and torch.equal(whole, resumed)
    with pytest.raises(EspalierError, match="holds another run"):
        trained_path(surface, a, b, training=CurveTraining(epochs=5), folder=tmp_path / "c")


def test_a_pair_and_its_control(tmp_path: File):
    surface, a, b = networks()
    found = ways(
        surface,
        {"a": a, "b": b, "c": -a},
        [("a", "b"), ("a", "c")],
        curve="bezier",
        training=CurveTraining(epochs=1),
        points=3,
        folder=tmp_path / "w",
    )
    assert [(w.along.kind, w.control) for w in found] == [
        ("line", False),
        ("bezier", False),
        ("line", True),
        ("bezier", True),
    ]
    assert found[2].name == "line (control): a → c" and found[0].along.to_dict()["barrier"]["test"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("line", A, A), "the same weights"),
        (("line", A, B, C), "a line path has no bend"),
        (("bezier", A, B), "needs its bend"),
        (("spline", A, B), "one of line, bezier, polygon, got 'spline'"),
    ],
)
def test_paths_that_are_none(arguments, words):
    with pytest.raises(EspalierError, match=words):
        Path(*arguments)


def test_other_bad_arguments():
    surface, a, b = networks()
    with pytest.raises(EspalierError, match="t lies between 0"):
        Path("line", A, B).at(1.5)
    with pytest.raises(EspalierError, match="at least 3 points"):
        measure_path(surface, Path("line", a, b), points=2)
    for name, value in (
        ("epochs", 0),
        ("lr", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("batch_size", 1),
        ("clip", 0.0),
    ):
        with pytest.raises(EspalierError, match=f"curve training `{name}` must be"):
            CurveTraining(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(EspalierError, match="diverged in epoch 1"):
        trained_path(surface, a * 1e30, b * 1e30)


def test_a_network_in_half_precision_is_a_point():
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).to(torch.bfloat16)
    from espalier.landscape.points import Space

    space = Space(net)
    assert space.vector(net).dtype == torch.float32
    assert space.weights(space.vector(net))["1.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_are_given_in_the_precision_of_the_network(dtype):
    torch.manual_seed(0)
    net = plain()
    truth = Surface(net, split(24))
    height = truth(truth.space.vector(net))
    other = Surface(copy.deepcopy(net).to(dtype), split(24))
    found = other(other.space.vector(net.to(dtype)))
    assert found.train.loss == pytest.approx(height.train.loss, rel=1e-2)
