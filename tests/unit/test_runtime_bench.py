import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import espalier
from espalier import EspalierError
from espalier.evaluation import Evaluation
from espalier.export import Example, image_example
from espalier.report import bench as report
from espalier.runtime import Choice, accelerate, plan_of
from espalier.runtime.bench import Row, bench, verdict
from espalier.runtime.clock import Timing
from espalier.runtime.ways import AbstractWay, Dense, Half, Int8, Int8Ao, OnnxSparse, Ours, bytes_of


class Broken(AbstractWay):
    """A way that does not run."""

    name = "broken"

    def module(self, example: Example) -> nn.Module:
        raise RuntimeError("no such operator\nand more")


def network() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5))
    espalier.prune(model, 0.9)
    return model


def timed(seconds: float) -> Timing:
    return Timing(tuple(seconds * (1 + 0.001 * i) for i in range(8)))


def row(name: str, one: float, many: float, **rest: Any) -> Row:
    return Row(name, {1: timed(one), 8: timed(many)}, **rest)


def test_every_way_has_a_row_with_numbers_or_a_reason() -> None:
    found = bench(
        network(), image_example((3, 4, 4)), sparse_bytes=1234, batches=(1, 4),
        ways=(Dense, Half, Int8, Broken, Ours), rounds=5, seconds=0.05,
    )  # fmt: skip
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["dense fp32", "dense bf16", "int8 dynamic", "broken", "espalier"]
    assert rows["broken"].reasons == {
        1: "RuntimeError: no such operator",
        4: "RuntimeError: no such operator",
    }
    assert all(set(row.timings) == {1, 4} for name, row in rows.items() if name != "broken")
    assert rows["dense fp32"].difference == 0 and (rows["espalier"].difference or 0) < 1e-5
    assert rows["espalier"].bytes == 1234
    assert rows["dense fp32"].bytes == 4 * (48 * 64 + 64 + 64 * 5 + 5)
    assert (rows["dense bf16"].bytes or 0) * 2 == rows["dense fp32"].bytes
    assert rows["int8 dynamic"].lost_zeros == 0  # zeros survive int8
    assert found.sparsity == pytest.approx(0.9, abs=0.001)
    assert [layer.dense_macs for layer in found.layers] == [48 * 64, 64 * 5]
    weights = rows["dense fp32"].bytes or 0
    assert (rows["dense fp32"].memory or 0) >= weights and (rows["espalier"].memory or 0) >= weights
    text = report.as_text(found)
    assert "int8 dynamic: all zeros survive" in text and "broken, batch 1, 4: not run: RuntimeError" in text
    assert re.search(r"^all +3,392 ", text, re.MULTILINE)  # 48 * 64 + 64 * 5 products in all layers
    assert text.splitlines()[-1] == found.verdict
    assert json.loads(report.as_json(found))["rows"][3]["not_run"]["1"].startswith("RuntimeError")


def test_the_verdict_names_what_is_fastest_also_when_it_is_not_ours() -> None:
    rows = [
        row("dense fp32", 4.0, 8.0, bytes=400),
        row("int8 dynamic", 1.0, 4.0, bytes=100),
        row("espalier", 2.0, 2.0, bytes=50),
    ]
    assert verdict(rows, (1, 8), {}) == (
        "Deploy int8 dynamic (4.00 times dense fp32 at batch 1); or espalier (4.00 times dense fp32 at batch 8); "
        "the sparse file with espalier gives 2.00 at batch 1, 4.00 at batch 8; accuracy was not measured (give data)."
    )


def test_of_equal_ways_the_smallest_file_wins() -> None:
    rows = [row("dense fp32", 1.0, 1.0, bytes=400), row("espalier", 1.02, 1.02, bytes=50)]
    assert verdict(rows, (1,), {}).startswith("Deploy espalier (0.98 times dense fp32 at batch 1)")


def test_the_verdict_refuses_on_a_noisy_machine() -> None:
    rows = [row("dense fp32", 1.0, 1.0), row("espalier", 0.1, 0.1)]
    doubtful = {1: ("the machine is busy",), 8: ("the machine is busy",)}
    assert verdict(rows, (1, 8), doubtful) == (
        "No conclusion about speed: the machine is busy. Repeat on a quiet machine."
    )
    assert "no conclusion at batch 1, the machine was too noisy" in verdict(rows, (1, 8), {1: ("busy",)})


def test_what_loses_accuracy_is_left_out() -> None:
    right = torch.ones(400, dtype=torch.bool)
    wrong = right.clone()
    wrong[:100] = False

    def evaluated(correct: torch.Tensor) -> Evaluation:
        return Evaluation(correct.double().mean().item(), (0.0, 1.0), 0.0, 400, correct)

    rows = [
        row("dense fp32", 4.0, 4.0, evaluation=evaluated(right)),
        row("int8 dynamic", 1.0, 1.0, evaluation=evaluated(wrong)),
        row("espalier", 2.0, 2.0, evaluation=evaluated(right)),
    ]
    says = verdict(rows, (1,), {})
    assert says.startswith("Deploy espalier") and "left out: int8 dynamic" in says


def test_int8_needs_a_linear_layer(tmp_path: Path) -> None:
    for way in (Int8, Int8Ao):
        with pytest.raises(EspalierError, match="no Linear layer, and dynamic quantisation takes no other"):
            way(nn.Conv2d(3, 4, 1), tmp_path).module(image_example((3, 4, 4)))


def test_torchao_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(EspalierError, match=r"torchao is not installed: pip install 'espalier\[torchao\]'"):
        Int8Ao(network(), tmp_path).module(image_example((3, 4, 4)))


def test_torchao_quantizes_and_keeps_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    model = network()
    way, example = Int8Ao(model, tmp_path), image_example((3, 4, 4))
    module = way.module(example)
    assert way.note == "2 Linear layers" and module(*example.tensors).shape == (2, 5)
    weights = dict(model.named_parameters())
    assert set(way.weights()) == {"1.weight", "3.weight"}
    for name, quantized in way.weights().items():
        assert quantized.dtype is torch.int8
        assert not quantized[weights[name] == 0].any() and (weights[name] == 0).any()
    assert way.file_bytes(0) == (tmp_path / "int8.pt").stat().st_size


def test_memory_of_weights(tmp_path: Path) -> None:
    model = network().eval().requires_grad_(False)
    dense = 4 * (48 * 64 + 64 + 64 * 5 + 5)
    assert Dense(model, tmp_path).held(model) == dense
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied.get_submodule("1").weight = tied.get_submodule("0").weight
    assert bytes_of(tied) == 4 * 64
    int8 = Int8(model, tmp_path)
    assert dense / 4 < int8.held(int8.module(image_example((3, 4, 4)))) < dense / 3
    x = torch.randn(8, 3, 4, 4)
    plan = replace(plan_of(accelerate(model, x, seconds=0.0)), fell_back=False)
    fast = accelerate(model, x, plan=plan.with_choices({"1": Choice("bag", 64), "3": None}))
    nonzeros = int(torch.count_nonzero(model.get_submodule("1").weight))  # type: ignore[arg-type]
    assert Ours(model, tmp_path).held(fast) == dense + 8 * nonzeros + 4 * 65


def test_onnxruntime_gives_its_memory_back(tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx.helper")
    given, answer = (helper.make_tensor_value_info(name, 1, ["batch", 3, 4, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [given], [answer])
    opset = helper.make_opsetid("", 17)
    file = helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()
    (tmp_path / "sparse.onnx").write_bytes(file)
    way, example = OnnxSparse(network(), tmp_path), image_example((3, 4, 4))
    module = way.module(example)
    way.settle(module, example)
    assert torch.equal(module(*example.tensors), example.tensors[0].relu())
    assert way.held(module) == bytes_of(way.model)


def test_bad_batches_and_networks_are_told() -> None:
    with pytest.raises(EspalierError, match="batch sizes of 1 or more"):
        bench(network(), image_example((3, 4, 4)), sparse_bytes=1, batches=())
    message = r"does not run on inputs of shape \(1, 3, 5, 4\): RuntimeError.*; give the shape of its inputs"
    with pytest.raises(EspalierError, match=message):
        bench(network(), image_example((3, 5, 4)), sparse_bytes=1, batches=(1,), ways=(Dense,))
