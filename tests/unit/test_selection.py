from typing import Any

import pytest
import torch
from torch import nn

from espalier._errors import EspalierError
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint, save_checkpoint
from espalier.selection import select


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(4, 3)
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.again = nn.Linear(4, 5)
        self.again.weight = self.head.weight


@pytest.fixture
def net() -> AbstractCheckpoint:
    return open_checkpoint(Net())


def test_weights_leave_out_norms_embeddings_vectors_and_buffers(net):
    selection = select(net)
    assert selection.names == (
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "head.weight",
    )
    assert selection.shapes["attention.in_proj_weight"] == (12, 4)
    assert selection.entries == 18 + 48 + 16 + 48 + 36 + 20


def test_paper_is_every_weight_and_bias_by_name(net):
    names = select(net, "paper").names
    assert {"norm.weight", "norm.bias", "conv.bias", "embed.weight"} <= set(names)
    assert "attention.in_proj_weight" not in names
    assert "lstm.weight_ih_l0" not in names


def test_all_is_every_parameter_once_and_no_buffer(net):
    selection = select(net, "all")
    assert sum(p.numel() for p in Net().parameters()) == selection.entries == selection.parameters
    assert "again.weight" not in selection.names  # tied to head.weight
    assert not any("running" in name for name in selection.names)


def test_include_narrows_and_exclude_removes_in_file_order(net):
    assert select(net, include=["lstm.*", "conv*"]).names == (
        "conv.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    )
    assert "head.weight" not in select(net, exclude=["head*"]).names


def test_a_tied_name_stands_for_the_one_it_repeats(net):
    assert select(net, include=["again.weight"]).names == ("head.weight",)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_lists_near_names(net, option):
    patterns: dict[str, Any] = {option: ["hed.weight"]}
    with pytest.raises(
        EspalierError, match=rf"{option} pattern 'hed\.weight' matches no tensor.*'head\.weight'"
    ):
        select(net, **patterns)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layr1*", r"Did you mean 'layer1', as in layer1\.0\.weight, layer1\.1\.weight, layer1\.steps\?"),
        (
            "layer1.*.wieght",
            r"Did you mean 'weight', as in layer1\.0\.weight, layer1\.1\.weight\?",
        ),
        (
            "layer1",
            r"A .* the whole name: '\*layer1\*' matches layer1\.0\.weight, layer1\.1\.weight, layer1\.steps\.",
        ),
        ("zzz", r"Names are layer1\.0\.weight, layer1\.1\.weight, head and 1 more\."),
        ("", r"Names are layer1\.0\.weight"),
        ("[", r"Names are layer1\.0\.weight"),
    ],
)
def test_globs_that_match_nothing_list_near_names(tmp_path, pattern, hint):
    named = {
        "layer1.steps": torch.tensor(1),
        "layer1.0.weight": torch.ones(2, 2),
        "layer1.1.weight": torch.ones(2, 2),
        "head": torch.ones(2, 2),
    }
    with pytest.raises(EspalierError, match=rf"matches no tensor\. {hint}"):
        select(open_checkpoint(named), include=[pattern])
    save_checkpoint(tmp_path / "x.safetensors", named)
    with pytest.raises(EspalierError, match=r"matches no tensor of .*x\.safetensors\. "):
        select(open_checkpoint(tmp_path / "x.safetensors"), include=[pattern])


def test_a_pattern_outside_the_scope_says_so(net):
    with pytest.raises(EspalierError, match=r"matches norm\.bias, norm\.weight, outside scope 'weights'"):
        select(net, include=["norm.*[st]"])


def test_patterns_given_as_one_string_are_refused(net):
    with pytest.raises(EspalierError, match="one string; pass a list"):
        select(net, include="head*")


def test_unknown_scope_and_empty_results_are_errors(net):
    with pytest.raises(EspalierError, match="scope 'wieghts' is unknown; use one of weights, paper, all"):
        select(net, "wieghts")  # type: ignore[arg-type]
    with pytest.raises(EspalierError, match="the patterns leave nothing of the 6 tensors of scope"):
        select(net, exclude=["*"])
    with pytest.raises(EspalierError, match="scope 'weights' selects nothing; scope 'all' would select a"):
        select(open_checkpoint({"a.bias": torch.ones(3)}))
    with pytest.raises(EspalierError, match=r"no floating-point weights among 1 tensor$"):
        select(open_checkpoint({"a.weight": torch.ones(3, 3, dtype=torch.int8)}))
