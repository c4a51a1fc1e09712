"""Constants of files and parameters of one value a channel are left out, with the reason that the page gives."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.content import SAMPLE, content
from espalier.checkpoint.quantized import QUANTIZATION
from espalier.checkpoint.reparametrized import MAGNITUDES, VECTORS
from espalier.checkpoint.roles import CONSTANTS, MASKS, ROLES, TABLES
from espalier.inspection import inspect
from espalier.pruned_file import prune_file
from espalier.selection import select

PAGE = Path(__file__).parents[2] / "docs" / "what-is-pruned.md"


def causal(size: int) -> Tensor:
    return torch.ones(size, size).tril().view(1, 1, size, size)


def rotary(length: int, width: int) -> Tensor:
    angles = torch.outer(torch.arange(length), 10000 ** (-torch.arange(0, width, 2) / width))
    return torch.cat([angles, angles], 1).cos()


def stft(size: int) -> Tensor:
    """Cosines, then sines, times a window."""
    phase = torch.outer(torch.arange(size // 2 + 1), torch.arange(size)) * (2 * math.pi / size)
    return (torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(size)).unsqueeze(1)


def shifted(size: int) -> Tensor:
    mask = torch.zeros(4, size, size)
    mask[-1, : size // 2, size // 2 :] = -100
    return mask


R = torch.randn
CASES: dict[str, list[tuple[str, Tensor]]] = {
    MASKS: [
        ("h.0.attn.bias", causal(16)),
        ("layer.bias", (1 - causal(16)) * -1e9),
        ("layer.table", (1 - causal(16)).masked_fill(causal(16) == 0, -math.inf)),
        ("layers.0.attn_mask", shifted(8)),
        ("layers.0.attn_mask", torch.zeros(4, 16, 16)),
    ],
    CONSTANTS: [
        ("blur.filt", torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).repeat(16, 1, 1, 1)),
        ("blur.weight", torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).repeat(16, 1, 1, 1)),
        ("rows", torch.arange(16.0).view(16, 1).expand(16, 8).clone()),
    ],
    TABLES: [
        ("rotary_emb.cos_cached", R(1, 1, 4, 8)),
        ("rotary_emb.sin_cached", R(4, 8)),
        ("freqs", R(4, 8)),
        ("inv_freq", R(4)),
        ("pe", rotary(64, 16).unsqueeze(0)),
        ("pe", rotary(64, 16).half()),
        ("pe", rotary(64, 16).bfloat16()),
        ("extractor.weight", stft(64)),
    ],
    "filter banks and windows": [
        ("mel_scale.fb", R(8, 8)),
        ("melW", R(8, 8)),
        ("front.mel_basis", R(8, 8)),
        ("_model.stft.forward_basis_buffer", R(8, 1, 8)),
        ("spectrogram_extractor.stft.conv_real.weight", R(8, 1, 8)),
        ("window", R(1, 8)),
    ],
    "anchors and grids": [
        ("model.24.anchors", R(3, 3, 2)),
        ("model.24.anchor_grid", R(3, 1, 3, 1, 1, 2)),
        ("stride", R(3, 8)),
        ("rpn.cell_anchors.0", R(3, 4)),
        ("block.relative_coords_table", R(1, 15, 15, 2)),
    ],
    "input scaling": [("mean", R(1, 3, 1, 1)), ("std", R(1, 3, 1, 1)), ("pixel_mean", R(3, 1, 1))],
    "codebook statistics": [
        ("vq._codebook.cluster_size", R(1, 8)),
        ("vq._codebook.embed_avg", R(1, 8, 4)),
        ("vq.ema_w", R(8, 4)),
    ],
    "tokens": [("mask_token", R(1, 1, 8)), ("reg_token", R(1, 4, 8)), ("register_tokens", R(4, 8))],
    "state-space parameters": [
        ("mixer.A_log", R(16, 8)),
        ("mixer.D", R(16)),
        ("mixer.D", R(16, 1)),
        ("mixer.dt_bias", R(16)),
    ],
    "time-mixing vectors": [
        ("att.time_mix_k", R(1, 1, 8)),
        ("att.time_decay", R(4, 8)),
        ("att.time_first", R(4, 8)),
        ("att.time_maa_x", R(1, 1, 8)),
    ],
    "gains": [
        ("block.gamma", R(8, 1)),
        ("block.layer_scale_1", R(8, 1)),
        ("block.scale_of", R(1, 1, 1, 8)),
        ("block.alpha", R(8, 1, 1)),
    ],
}
NAMED = [(why, name, tensor) for why, cases in CASES.items() for name, tensor in cases]
WEIGHTS = {
    "stem.weight": R(8, 1, 16),
    "depthwise.weight": R(16, 1, 3, 3),
    "narrow.weight": R(1, 8),
    "out.weight": R(8, 1, 1, 1),
    "w1": R(1, 16),
    "experts.gate_up_proj": R(4, 16, 16),
    "att.time_maa_w1": R(16, 8),
    "mixer.D": R(16, 16),
    "dictionary.filters": R(16, 16),
    "attn.in_proj_weight": R(16, 16),
    "zeros": torch.zeros(16, 16),
    "few": torch.eye(16) * torch.eye(16)[3] * 0.25,
    "signs": R(16, 16).sign(),
    "mean.weight": R(8, 8),
    "stride_conv.weight": R(8, 8),
    "a.lora_B": R(1, 1, 16),
    "smooth": torch.sin(R(64, 1) + torch.linspace(0, 3, 64)) + 0.3 * R(64, 64),
}


def test_each_row_of_the_page_is_a_reason_and_each_reason_a_row():
    rows = re.findall(r"^\| ([a-z -]+) \| ", PAGE.read_text(), re.MULTILINE)
    rows = [row for row in rows if row not in ("what", "---")]
    reasons = {role.why for role in ROLES} | {MASKS, CONSTANTS, TABLES, QUANTIZATION, MAGNITUDES, VECTORS}
    assert len(rows) == len(set(rows)) and set(rows) == reasons
    assert set(CASES) == reasons - {QUANTIZATION, MAGNITUDES, VECTORS}


@pytest.mark.parametrize(
    ("why", "name", "tensor"), NAMED, ids=[f"{w}-{n}-{i}" for i, (w, n, _) in enumerate(NAMED)]
)
def test_what_is_left_out_of_a_file_says_why(why, name, tensor, tmp_path):
    save_file({name: tensor, "fc.weight": R(8, 8)}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    selection = select(checkpoint)
    assert selection.names == ("fc.weight",)
    assert selection.left_out == {name: why}
    forced = select(checkpoint, include=[name, "fc*"])
    assert set(forced.names) == {name, "fc.weight"} and not forced.left_out
    assert forced.parameters == tensor.numel() + 64
    assert select(checkpoint, exclude=[name]).names == ("fc.weight",)
    assert select(checkpoint, include=["*"]).names == ("fc.weight",)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_stay_weights(name):
    selection = select(open_checkpoint({name: WEIGHTS[name]}))
    assert selection.names == (name,) and not selection.left_out


@pytest.mark.parametrize("shape", [(64, 64), (8, 8), (33, 2), (200, 1, 16), (2, 40, 40), (1000, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_are_no_constants(shape, dtype):
    for seed in range(20):
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert content("w", shape, drawn.flatten()[:SAMPLE]) == ""


def test_parameters_of_a_module_are_left_out_and_its_buffers_are_no_news():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(R(8, 4))
            self.gamma = nn.Parameter(R(1, 1, 1, 8))
            self.mask_token = nn.Parameter(R(1, 1, 8))
            self.mean = nn.Parameter(R(8, 8))
            self.ones = nn.Parameter(torch.ones(8, 8))
            self.register_buffer("mask", causal(8))
            self.fc = nn.Linear(8, 8)

    checkpoint = open_checkpoint(Block())
    selection = select(checkpoint)
    assert selection.names == ("mean", "ones", "fc.weight")
    assert selection.left_out == {
        "A_log": "state-space parameters",
        "gamma": "gains",
        "mask_token": "tokens",
    }
    assert set(select(checkpoint, "all").names) == {n for n, _ in Block().named_parameters()}
    assert select(checkpoint, include=["A_log"]).names == ("A_log",)
    with pytest.raises(EspalierError, match="matches mask, outside scope"):
        select(checkpoint, include=["mask"])


def test_inspect_and_prune_agree_and_carry_constants_through(tmp_path):
    tensors = {"attn.bias": causal(64), "fc.weight": R(32, 32), "out.weight": R(32, 32)}
    save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    found = inspect(checkpoint, select(checkpoint))
    result = prune_file(checkpoint, select(checkpoint), 0.5, tmp_path / "y.safetensors")
    assert found.profile.selection == select(checkpoint)
    assert [t.name for t in result.tensors] == list(found.profile.tensors)
    assert result.zeros == 1024 and result.parameters == 2048
    assert torch.equal(load_file(tmp_path / "y.safetensors")["attn.bias"], tensors["attn.bias"])
    assert result.left_out == {"attn.bias": MASKS}


@pytest.mark.parametrize(("scale", "warned"), [(100.0, True), (1.0, False)])
def test_a_small_tensor_with_most_of_the_energy_gets_a_warning(scale, warned, tmp_path):
    checkpoint = open_checkpoint({"small.weight": R(4, 4) * scale, "fc.weight": R(64, 64)})
    found = inspect(checkpoint, select(checkpoint))
    assert any("'small.weight' holds" in text for text in found.warnings) is warned
    result = prune_file(checkpoint, select(checkpoint), 0.5, tmp_path / "y.safetensors")
    assert any("'small.weight' holds" in text for text in result.notes) is warned


def test_tensors_without_data_are_not_looked_at():
    assert select(open_checkpoint({"w": torch.empty(16, 16, device="meta")})).names == ("w",)
