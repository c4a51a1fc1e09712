import pytest
import torch
from torch import nn

from espalier._errors import CheckpointError
from espalier.checkpoint import TensorInfo, open_checkpoint
from espalier.checkpoint.kinds import guess_kinds, module_kinds


def test_a_module_gives_its_tensors_tied_ones_once() -> None:
    first, last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    last.weight = first.weight
    module = nn.Sequential(first, nn.BatchNorm1d(3), last)
    checkpoint = open_checkpoint(module)
    assert checkpoint.path is None
    assert list(checkpoint) == [name for name in module.state_dict() if name != "2.weight"]
    assert checkpoint.aliases == {"2.weight": "0.weight"}
    assert checkpoint["0.weight"].data_ptr() == first.weight.data_ptr()
    assert not checkpoint["0.weight"].requires_grad
    assert checkpoint.infos["1.weight"] == TensorInfo((3,), torch.float32, "norm")
    state = checkpoint.state_dict()
    assert state["2.weight"] is state["0.weight"]
    module.load_state_dict(state, strict=True)


def test_a_buffer_that_is_not_saved_is_left_out() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("cache", torch.ones(2), persistent=False)
    assert list(open_checkpoint(module)) == ["weight", "bias"]


def test_an_uninitialized_module_is_named() -> None:
    with pytest.raises(CheckpointError, match="'weight' is not initialized yet; run one batch"):
        open_checkpoint(nn.LazyLinear(3))


def test_a_mapping_reads_as_a_file_would() -> None:
    weight = torch.arange(12.0).view(3, 4)
    checkpoint = open_checkpoint({"w": weight, "same": weight, "view": weight[1], "turned": weight.t()})
    assert checkpoint.aliases == {"same": "w"}
    assert list(checkpoint) == ["w", "view", "turned"]
    assert next(checkpoint.chunks("turned", 5)).tolist() == [0, 4, 8, 1, 5]
    assert open_checkpoint(checkpoint) is checkpoint


def test_empty_tensors_are_not_each_others_alias() -> None:
    checkpoint = open_checkpoint({"a": torch.empty(0), "b": torch.empty(0)})
    assert list(checkpoint) == ["a", "b"]


def test_what_is_not_a_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match="'epoch' is int"):
        open_checkpoint({"w": torch.ones(1), "epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(
        CheckpointError, match=r"'w' is stored as torch.sparse_coo; convert it with `.to_dense"
    ):
        open_checkpoint({"w": torch.eye(2).to_sparse()})


def test_infos_count_in_python_integers() -> None:
    info = TensorInfo((1 << 20, 1 << 20), torch.float32)
    assert info.entries == 1 << 40 and info.nbytes == 1 << 42 and info.floating
    assert not TensorInfo((2,), torch.float8_e4m3fn).floating


KINDS = {
    "conv1.weight": ((4, 3, 3, 3), "weight"),
    "bn1.weight": ((4,), "norm"),
    "bn1.running_mean": ((4,), "buffer"),
    "downsample.1.weight": ((4,), "norm"),
    "downsample.1.running_mean": ((4,), "buffer"),
    "downsample.0.weight": ((4, 4, 1, 1), "weight"),
    "encoder.layer.0.output.LayerNorm.bias": ((4,), "norm"),
    "h.0.ln_1.weight": ((4,), "norm"),
    "norms.3.weight": ((4,), "norm"),
    "model.layers.0.input_layernorm.weight": ((4,), "norm"),
    "adaln.norm.linear.weight": ((4, 4), "weight"),
    "linear.weight": ((4, 4), "weight"),
    "embeddings.word_embeddings.weight": ((9, 4), "embedding"),
    "transformer.wte.weight": ((9, 4), "embedding"),
    "tok_emb.weight": ((9, 4), "embedding"),
    "pos_embed": ((1, 9, 4), "embedding"),
    "cls_token": ((1, 1, 4), "embedding"),
    "patch_embed.proj.weight": ((4, 3, 2, 2), "weight"),
    "patch_embedding.weight": ((4, 3, 2, 2), "weight"),
    "lm_head.weight": ((9, 4), "weight"),
    "lm_head.bias": ((9,), "weight"),
}


def test_kinds_are_guessed_from_names() -> None:
    shapes = {name: shape for name, (shape, _) in KINDS.items()}
    guessed = guess_kinds(shapes, dict.fromkeys(shapes, torch.float32))
    assert {name: kind for name, (kind, _) in guessed.items()} == {
        name: kind for name, (_, kind) in KINDS.items()
    }
    assert guess_kinds({"w": (2, 2)}, {"w": torch.int64}) == {"w": ("buffer", "")}


def test_kinds_of_a_module_come_from_its_types() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4)
            self.odd = nn.LayerNorm(4)
            self.linear_norm = nn.Linear(4, 4)
            self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
            self.register_buffer("anchor", torch.zeros(3))

    assert {name: kind for name, (kind, _) in module_kinds(Mine()).items()} == {
        "pos_embed": "embedding",
        "anchor": "buffer",
        "table.weight": "embedding",
        "odd.weight": "norm",
        "odd.bias": "norm",
        "linear_norm.weight": "weight",
        "linear_norm.bias": "weight",
    }


def test_what_is_no_source_is_named() -> None:
    with pytest.raises(CheckpointError, match="a path, a module or a mapping of tensors was needed, got int"):
        open_checkpoint(3)  # type: ignore[arg-type]
