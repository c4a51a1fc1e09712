import json
import math

import pytest
import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.amount import Given, Utopia
from espalier.checkpoint import open_checkpoint
from espalier.inspection import Inspection, inspect
from espalier.selection import select


def inspect_of(tensors: dict[str, Tensor] | nn.Module, scope="all", **options) -> Inspection:
    checkpoint = open_checkpoint(tensors)
    return inspect(checkpoint, select(checkpoint, scope), **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> dict[str, Tensor]:
    return {"one.weight": randn(30, 40), "two.weight": 2 * randn(50, 20, seed=1), "two.bias": torch.ones(50)}


def test_every_rule_answers_for_network_tensors_and_nulls(network):
    found = inspect_of(network)
    assert list(found.choices) == ["utopia", "safe", "cosine", "effective", "knee"]
    for key, choice in found.choices.items():
        assert sum(choice.kept.values()) == choice.amount.kept
        assert set(choice.nulls) == {"gaussian", "equal"}
        assert choice.sentence.startswith(f"{key} is {choice.amount.sparsity:.3f}")
        for name, tensor in found.profile.tensors.items():
            assert choice.cosines[name] == tensor.curve.cosine(choice.kept[name])
            assert found.kept_fraction(key, name) == choice.kept[name] / tensor.entries
    assert found.choices["utopia"].nulls["equal"].sparsity == pytest.approx(0.652190, abs=1e-5)


def test_per_tensor_energies_add_up_to_the_cosine_of_the_network(network):
    found = inspect_of(network)
    for choice in found.choices.values():
        energy = sum(t.curve.energy_at(choice.kept[n]) for n, t in found.profile.tensors.items())
        assert math.sqrt(energy / found.curve.total) == pytest.approx(choice.amount.cosine, rel=1e-12)


def test_further_rules_come_after_the_standard_ones_or_replace_them(network):
    found = inspect_of(network, rules={"utopia": Utopia("energy"), "0.9": Given(0.9)})
    assert list(found.amounts) == ["utopia", "safe", "cosine", "effective", "knee", "0.9"]
    assert found.amounts["0.9"].sparsity == pytest.approx(0.9, abs=1e-3)
    assert "energy 1" in found.amounts["utopia"].reason


def test_a_layer_scaled_down_is_named_though_the_kurtosis_of_kurtoses_is_blind(network):
    network["three.weight"] = randn(20, 20, seed=2)
    before = inspect_of(network)
    after = inspect_of(network | {"one.weight": 1e-6 * network["one.weight"]})
    assert not any("one.weight" in text for text in before.warnings)
    (warning,) = [text for text in after.warnings if "one.weight" in text]
    assert "would be (nearly) wiped out: it keeps 0 of 1200 entries (0.0000) at utopia" in warning
    for key in ("utopia", "safe", "knee"):
        assert f"at {key}" in warning or after.choices[key].kept["one.weight"] >= 12
    assert after.profile.kurtosis_of_kurtoses == pytest.approx(before.profile.kurtosis_of_kurtoses, rel=1e-6)
    assert after.balanced_utopia == pytest.approx(before.balanced_utopia, abs=2e-3)
    assert after.floor_amount.sparsity < before.floor_amount.sparsity
    assert after.amounts["utopia"].sparsity != before.amounts["utopia"].sparsity


def test_the_floor_amount_keeps_the_floor_everywhere(network):
    found = inspect_of(network, floor=0.2)
    counts = found.profile.kept_at(found.floor_amount.kept)
    assert all(counts[name] >= math.ceil(0.2 * t.entries) for name, t in found.profile.tensors.items())
    assert "at least 0.2 of its entries" in found.floor_amount.reason
    with pytest.raises(EspalierError, match=r"the floor must lie in \(0, 1\]; got 0"):
        inspect_of(network, floor=0)


def test_notes_say_what_the_weights_cannot_tell(network):
    notes = " ".join(inspect_of(network, streaming=True).notes)
    assert "rest is arithmetic" in notes
    assert "folding batch-norm leaves the function of the network as it is and changes them" in notes
    assert "does not promise accuracy" in notes
    assert (
        "kurtosis is undefined for constant, one-element and empty tensors" in notes and "two.bias" in notes
    )
    assert "streamed: cosines of the network are good to" in notes


def test_zeros_already_there_are_counted_and_reported(network):
    network["one.weight"][:15] = 0
    network["dead.weight"] = torch.zeros(2, 2)
    network["empty.weight"] = torch.empty(0, 2)
    found = inspect_of(network)
    assert any(note.startswith("604 of 2254 selected entries are zero already") for note in found.notes)
    assert "tensor 'dead.weight' is all zero already" in found.warnings
    assert "tensor 'empty.weight' has no entries" in found.warnings
    assert found.choices["utopia"].cosines["dead.weight"] is None
    assert found.kept_fraction("utopia", "empty.weight") is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_initial_checkpoint_stands_beside_the_answer(network):
    start = {name: randn(*tensor.shape, seed=9) for name, tensor in network.items()}
    found = inspect_of(network, initial=open_checkpoint(start))
    assert found.choices["utopia"].nulls["initial"].sparsity == inspect_of(start).amounts["utopia"].sparsity
    assert "for the initial checkpoint" in found.choices["utopia"].sentence
    start_without = {name: tensor for name, tensor in start.items() if name != "two.bias"}
    with pytest.raises(EspalierError, match=r"initial checkpoint has no tensor 'two\.bias'.*'two\.bia'"):
        inspect_of(network, initial=open_checkpoint({**start_without, "two.bia": start["two.bias"]}))
    start["two.bias"] = torch.ones(3)
    with pytest.raises(
        EspalierError, match=r"tensor 'two\.bias' has shape \(50,\) but \(3,\) in the initial"
    ):
        inspect_of(network, initial=open_checkpoint(start))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_json_schema(network, streaming):
    found = inspect_of(network, streaming=streaming)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["schema"] == 1 and data["checkpoint"] is None and data["exact"] is not streaming
    assert data["selection"] == {
        "scope": "all",
        "tensors": 3,
        "entries": 2250,
        "zeros": 0,
        "parameters": 2250,
        "left_out": {},
    }
    curve = data["curve"]
    assert len(curve["sparsity"]) == len(curve["cosine"]) >= 101
    assert (curve["error"] > 0) is streaming
    assert data["amounts"]["utopia"]["sparsity"] in curve["sparsity"]
    for key in ("utopia", "safe", "cosine", "effective", "knee"):
        assert {"sparsity", "cosine", "kept", "reason", "regime", "nulls"} <= set(data["amounts"][key])
    tensor = data["tensors"][2]
    assert (tensor["name"], tensor["shape"], tensor["kurtosis"]) == ("two.bias", [50], None)
    assert set(tensor["amounts"]["utopia"]) == {"kept", "kept_fraction", "cosine"}
    assert data["kurtosis"]["tensors"] == 2 and data["kurtosis"]["of_kurtoses_bound"] == 1.0
    assert set(data["nulls"]) == {"gaussian", "equal"}
    assert data["floor"]["kept_fraction"] == 0.01
    assert 0.65 < data["balanced"]["utopia"] < 1
    assert isinstance(data["warnings"], list) and isinstance(data["notes"], list)


def test_tied_attention_and_lstm_weights_count_once_and_are_inspected():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.lstm = nn.LSTM(8, 4)
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight

    found = inspect_of(Net(), scope="weights")
    assert set(found.profile.tensors) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "a.weight",
    }


@pytest.mark.data
def test_public_resnets_all_get_the_same_utopia(data_folder):
    for name, utopia in (("resnet20-12fca82f.th", 0.840), ("resnet56-4bfd9763.th", 0.844)):
        path = data_folder.parent / "checkpoints" / name
        if not path.is_file():
            pytest.skip(f"no {path}")
        checkpoint = open_checkpoint(path)
        found = inspect(checkpoint, select(checkpoint))
        assert found.amounts["utopia"].sparsity == pytest.approx(utopia, abs=5e-4)
