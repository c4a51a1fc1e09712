import json
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
from espalier.runtime.bench import Row, bench, verdict
from espalier.runtime.clock import Timing
from espalier.runtime.ways import AbstractWay, Dense, Half, Int8, Ours


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
    text = report.as_text(found)
    assert "int8 dynamic: all zeros survive" in text and "broken, batch 1: not run: RuntimeError" in text
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
    with pytest.raises(EspalierError, match="no Linear layer, and dynamic quantisation takes no other"):
        Int8(nn.Conv2d(3, 4, 1), tmp_path).module(image_example((3, 4, 4)))


def test_bad_batches_and_networks_are_told() -> None:
    with pytest.raises(EspalierError, match="batch sizes of 1 or more"):
        bench(network(), image_example((3, 4, 4)), sparse_bytes=1, batches=())
    with pytest.raises(EspalierError, match="the network does not run: RuntimeError"):
        bench(network(), image_example((3, 5, 4)), sparse_bytes=1, batches=(1,), ways=(Dense,))
