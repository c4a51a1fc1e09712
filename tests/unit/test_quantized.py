"""Scales of quantized weights are carried through; integers of other kinds make no scale of their neighbors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.inspection import inspect
from espalier.pruned_file import prune_file
from espalier.report.prune import as_text
from espalier.selection import select

F8 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("code", "dtype", "scales"),
    [
        ("q.weight", F8, ["q.weight_scale_inv"]),
        ("q.weight", F8, ["q.weight_scale", "q.input_scale"]),
        ("q.weight_packed", torch.int32, ["q.weight_scale", "q.weight_zero_point"]),
        ("q.qweight", torch.int32, ["q.scales", "q.g_idx"]),
        ("q.qweight", torch.int32, ["q.scales", "q.qzeros"]),
        ("q.W_q", torch.uint8, ["q.scale", "q.zero"]),
        ("q.weight", torch.int8, ["q.SCB"]),
        ("q.weight", torch.uint8, ["q.weight.absmax", "q.weight.quant_map", "q.weight.nested_absmax"]),
        ("q.weight._data", torch.int8, ["q.weight._scale"]),
        ("q.weight", torch.uint32, ["q.scales", "q.biases"]),
        ("q.codes", torch.int16, ["q.codebooks", "q.scales"]),
        ("experts.gate_up_proj", F8, ["experts.gate_up_proj_scale_inv"]),
    ],
)
def test_what_stands_beside_a_quantized_weight_is_a_scale(code, dtype, scales):
    tensors = {
        code: torch.zeros(4, 4, dtype=dtype),
        **{name: torch.rand(4, 4) for name in scales},
        code.split(".")[0] + ".bias": torch.rand(4),
        "head.weight": torch.rand(4, 4),
    }
    selection = select(open_checkpoint(tensors))
    assert selection.names == ("head.weight",)
    assert selection.left_out == dict.fromkeys(scales, "quantization scales")
    every = select(open_checkpoint(tensors), "all")
    assert not set(scales) & set(every.names)
    assert code.split(".")[0] + ".bias" in every.names


@pytest.mark.parametrize(
    "last", ["num_batches_tracked", "position_ids", "mask", "token_type_ids", "weight_mask"]
)
def test_other_integers_make_no_scale_of_a_weight(last):
    tensors = {
        f"a.{last}": torch.ones(4, 4, dtype=torch.int64),
        "a.scale": torch.rand(4, 4),
        "a.weight": torch.rand(4, 4),
    }
    selection = select(open_checkpoint(tensors))
    assert selection.names == ("a.scale", "a.weight")
    assert not selection.left_out


def test_a_live_module_has_scales_too():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    layer.scales = nn.Parameter(torch.rand(4, 2))
    selection = select(open_checkpoint(nn.Sequential(layer, nn.Linear(4, 2))))
    assert selection.names == ("1.weight",)
    assert selection.left_out == {"0.scales": "quantization scales"}


def test_a_pruned_file_keeps_scales_and_the_report_says_so(tmp_path: Path):
    scale = torch.rand(2, 2) + 1e-3
    tensors = {
        "q.weight": torch.rand(4, 4).to(F8),
        "q.weight_scale_inv": scale,
        "head.weight": torch.randn(8, 8),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    selection = select(checkpoint)
    result = prune_file(checkpoint, selection, 0.5, tmp_path / "y.safetensors")
    written = load_file(tmp_path / "y.safetensors")
    assert torch.equal(written["q.weight_scale_inv"], scale)
    assert torch.equal(written["q.weight"].view(torch.uint8), tensors["q.weight"].view(torch.uint8))
    assert (written["head.weight"] == 0).sum() == 32
    found = inspect(checkpoint, selection)
    assert found.to_dict()["selection"]["left_out"] == result.to_dict()["left_out"] == selection.left_out
    for text in (as_text(result), *found.notes[:3]):
        if "left out" in text:
            assert "1 tensor, 4 parameters: 1 quantization scales (4)" in text
    assert any("left out" in note for note in found.notes) and "left out" in as_text(result)


def test_a_pattern_for_a_scale_says_why_it_is_refused():
    tensors = {
        "q.weight": torch.zeros(4, 4, dtype=torch.int8),
        "q.scales": torch.rand(4, 4),
        "w.weight": torch.rand(4, 4),
    }
    with pytest.raises(EspalierError, match=r"q\.scales, which no scope selects: quantization scales"):
        select(open_checkpoint(tensors), include=["q.scales"])
