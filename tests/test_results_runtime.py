"""The page about speed says what its points say; the rows that cost nothing cost nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from results import runtime
from results._common import HERE
from results.pages import runtime as page
from torch import nn

import espalier
from espalier.runtime import Choice, accelerate, plan_of
from espalier.runtime.ways import Compiled, Dense, Half, Int8, OnnxSparse


def point(network: str = "minilm", threads: int = 1, batch: int = 1, **speeds: float) -> dict[str, Any]:
    """A point; a way `zeros90` is ours."""
    rows: list[dict[str, Any]] = [{"name": "dense fp32", "min": 0.04, "speedup": 1.0}]
    for way, speed in speeds.items():
        row: dict[str, Any] = {"name": way, "min": 0.04 / speed, "speedup": speed}
        if way.startswith("zeros"):
            sparsity = int(way.removeprefix("zeros")) / 100
            goal = runtime.GOALS.get((network, batch, sparsity)) if threads == 1 else None
            row |= {"name": f"espalier, {100 * sparsity:g} % zeros", "sparsity": sparsity, "goal": goal}
        rows.append(row)
    machine = {"processor": "Z80", "vectors": "none", "torch": "2", "threads": threads}
    known = {"network": network, "threads": threads, "batch": batch}
    return known | {"rows": rows, "not run": {"int8 dynamic": "why"}, "doubts": [], "machine": machine}


FILES = {
    "resnet20": [
        {
            "sparsity": 0.9,
            "zeros": 0.9,
            "sparse": 130,
            "dense": 1000,
            "sparse, pruned tensors": 110,
            "dense, pruned tensors": 900,
        }
    ]
}


def test_goals_are_met_or_missed_in_words() -> None:
    points = [point(zeros90=2.2, zeros95=2.9, bf16=2.5), point(threads=2, zeros90=0.9, zeros95=1.1)]
    rows = page.goal_rows(points)
    assert rows[1:] == [
        ["MiniLM, batch 1, 1 thread", "90", "2.20", "2.2", "met"],
        ["MiniLM, batch 1, 1 thread", "95", "2.90", "3", "**missed**"],
    ]
    words = " ".join(page.in_words(points))
    assert "Goals for speed: 2 of 6 measured, 1 met, 1 missed." in words
    assert (
        "broken 1 times in 4 measurements; the least is 0.90 times dense (MiniLM, batch 1, 2 threads" in words
    )
    assert "in 2 points: espalier in 2" in words
    assert "take at most 13 % of dense for 1 of 1 networks" in page.of_files(FILES)


def test_doubts_and_what_is_missing_are_said() -> None:
    doubtful = point(zeros90=3.0, zeros95=3.5) | {"doubts": ["the machine is busy"]}
    text = page.section({"points": [doubtful], "files": FILES})
    assert "met, doubtful" in text and "- MiniLM, batch 1, 1 thread: the machine is busy" in text
    assert "1 of 1 points are doubtful" in text and "Never a loss" not in text
    assert "| 1 | 1† | 40 |" in text and "Not run: int8 dynamic (why)." in text
    assert "Timings not run: MiniLM, batch 32, 1 thread; VGG16" in text
    assert "| ResNet-20 | 90.0 | 130 | 13.0 | 12.2 |" in text
    nothing = page.section({"points": [], "files": FILES})
    assert nothing.startswith("Timings not run: all.") and "runtime.png" not in nothing


def test_more_zeros_that_take_longer_are_doubted() -> None:
    odd = point("vgg16", zeros90=1.7, zeros95=1.6)
    assert page.doubts(odd) == ["95 % zeros took 1.06 times as long as 90 %"]
    assert page.goal_rows([odd])[1][-1] == "met, doubtful" and page.speed_rows([odd])[1][1] == "1†"
    assert page.doubts(point(zeros90=1.7, zeros95=1.65)) == []  # within what one thing differs from itself


def test_the_words_of_the_documentation_are_what_was_measured() -> None:
    found = json.loads((HERE / "runtime.json").read_text())["points"]
    points = {(p["network"], p["threads"], p["batch"]): p for p in found}
    text = " ".join((HERE.parent / "docs" / "runtime.md").read_text().split())

    def gain(network: str, threads: int, batch: int, way: str) -> str:
        point = points[network, threads, batch]
        assert not page.doubts(point), "a doubtful point is not to be quoted"
        return f"{page.gains(point)[way]:.2f}"

    ours, most = "espalier, 90 % zeros", "espalier, 95 % zeros"
    alone = {way: gain("minilm", 1, 1, way) for way in (ours, most, "int8 dynamic", "dense bf16")}
    both = gain("minilm", 2, 8, "int8 dynamic"), gain("minilm", 2, 8, most)
    small = gain("resnet20", 2, 1, most), gain("resnet20", 2, 1, "onnxruntime, dense")
    for words in (
        f"MiniLM {alone[ours]} with 90 % zeros in its encoder and {alone[most]} with 95 %",
        f"where dynamic int8 gave {alone['int8 dynamic']} and dense bf16 {alone['dense bf16']}",
        f"ResNet-50 {gain('resnet50', 1, 1, most)} and VGG16 {gain('vgg16', 1, 1, most)}",
        f"At batch 32 MiniLM gains {gain('minilm', 1, 32, ours)} with 90 %",
        f"({both[0]} against {both[1]})",
        f"({small[0]} with two threads at batch 1, where onnxruntime gave {small[1]})",
    ):
        assert words in text


def test_the_plan_of_the_study() -> None:
    assert len(set(runtime.ORDER)) == len(runtime.ORDER) == 4 * 2 * 3
    with_goals = {(network, 1, batch) for network, batch, _ in runtime.GOALS}
    first = [place for place in runtime.ORDER if place in with_goals][:3]
    assert tuple(first) == runtime.ORDER[:3]  # what has goals and is not slow comes first
    assert runtime.obstacle("vgg16", 32, Compiled) and not runtime.obstacle("vgg16", 1, Compiled)
    assert not runtime.obstacle("vgg16", 1, Dense) and runtime.obstacle("resnet50", 1, Int8)
    assert runtime.obstacle("vgg16", 1, OnnxSparse) and not runtime.obstacle("minilm", 1, OnnxSparse)


def test_bf16_is_run_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "native_bf16", lambda device: False)
    assert runtime.obstacle("vgg16", 1, Half) == "this processor emulates bf16"
    monkeypatch.setattr(runtime, "native_bf16", lambda device: True)
    assert runtime.obstacle("vgg16", 32, Half) == ""


def test_free_products_and_free_layers_keep_the_rest_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    espalier.prune(model, 0.9)
    x = torch.randn(2, 3, 8, 8)
    plan = plan_of(accelerate(model, x, seconds=0.0))
    choices = {"0": Choice("bag", 64), "3": Choice("bag", 64)}
    fast = accelerate(model, x, plan=replace(plan, fell_back=False).with_choices(choices))
    assert set(runtime.sparse_layers(fast)) == {"0", "3"}
    with torch.inference_mode():
        free = runtime.free_layers(fast, lambda network: network(x))
        assert torch.allclose(free(torch.zeros_like(x)), model(x), atol=1e-5)  # the answers of before
        bias = model.get_submodule("3").bias
        assert isinstance(bias, torch.Tensor)
        assert torch.equal(runtime.free_products(fast)(x), bias.expand(2, 10))  # all else but the products
    assert torch.allclose(fast(x), model(x), atol=1e-5)
