from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from espalier import CheckpointError, EspalierError
from espalier._forward import logits_of, probe
from espalier.data import digits
from espalier.models import (
    CifarResNet,
    DigitsCNN,
    LeNet5,
    fill,
    imported,
    load_weights,
    round_to,
    torchvision_model,
)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (LeNet5(), (2, 1, 28, 28), 61_706),
        (DigitsCNN(), (2, 1, 8, 8), 25_978),
        # table 6 of He et al. gives 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
        (CifarResNet(20), (2, 3, 32, 32), 269_722),
        (CifarResNet(32), None, 464_154),
        (CifarResNet(44), None, 658_586),
        (CifarResNet(56), None, 853_018),
        (CifarResNet(110), None, 1_727_962),
    ],
)
def test_sizes(model: nn.Module, shape: tuple[int, ...] | None, count: int):
    assert parameters(model) == count
    if shape is not None:
        assert model(torch.rand(shape)).shape == (2, 10)


def test_depth_must_be_6n_plus_2():
    with pytest.raises(EspalierError, match=r"depth 6n \+ 2 .* got 21"):
        CifarResNet(21)


def test_shortcut_pads_new_channels_on_both_sides():
    block = CifarResNet(20).layer2[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 4, 4)
    y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_load_weights_strips_the_prefix_and_allows_old_batch_norms():
    source, target = DigitsCNN(), DigitsCNN()
    state = {f"module.{k}": v for k, v in source.state_dict().items() if "num_batches" not in k}
    assert load_weights(target, state) is target
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters()))


def test_wrong_architecture_lists_the_keys_and_changes_nothing():
    model = CifarResNet(20)
    before = model.conv1.weight.clone()
    state = CifarResNet(32, classes=100).state_dict()
    state["conv1.weight"] = torch.zeros_like(state["conv1.weight"])
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state, "net.safetensors")
    message = str(caught.value)
    assert message.startswith(
        "net.safetensors does not fit CifarResNet: 72 unexpected: layer1.3.conv1.weight"
    )
    assert "and 67 more; 2 of another shape: linear.weight (100, 64) for (10, 64)" in message
    assert torch.equal(model.conv1.weight, before)
    with pytest.raises(CheckpointError, match=r"2 missing: linear\.weight, linear\.bias"):
        load_weights(model, {k: v for k, v in model.state_dict().items() if "linear" not in k})


def test_torchvision_by_name():
    assert parameters(torchvision_model("resnet18", classes=10)) == 11_181_642
    with pytest.raises(EspalierError, match=r"no model 'resnet19'.*'resnet18'"):
        torchvision_model("resnet19")


def test_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import torch\ndef tiny(n=3): return torch.nn.Linear(n, 2)\ndef text(): return 'no'"
    code += "\ndef wide(n, m, k=1): pass"
    (tmp_path / "my_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert imported("my_nets:tiny", n=5).in_features == 5
    for path, match in (
        ("my_nets", "must look like package.module:function"),
        ("my_netz:tiny", "No module named 'my_netz'; is it installed"),
        ("my_nets:tinny", "no function 'tinny'. Did you mean 'tiny'"),
        ("my_nets:text", "returned str, not a torch.nn.Module"),
        ("my_nets:wide", r"'my_nets:wide' needs arguments \(n, m\): it is called with none, so wrap it"),
        ("os:system", r"'os:system' needs arguments \(command\)"),
        ("builtins:max", "'builtins:max' is no Python function or class that makes a model"),
    ):
        with pytest.raises(EspalierError, match=match):
            imported(path)
    with pytest.raises(EspalierError, match=r"does not take these arguments \(.*'size'\): .* with size"):
        imported("my_nets:tiny", size=5)


def test_not_finite_tensors_are_named_and_change_nothing():
    model = DigitsCNN()
    before = model.linear.weight.clone()
    state = {f"module.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    state["module.features.0.weight"] = torch.zeros_like(state["module.features.0.weight"])
    state["module.linear.bias"][:3] = torch.tensor([float("nan"), float("nan"), float("-inf")])
    with pytest.raises(
        CheckpointError,
        match=r"net\.pt: tensor 'module\.linear\.bias' holds 2 NaN and 1 infinite of 10 entries",
    ):
        load_weights(model, state, "net.pt")
    assert torch.equal(model.linear.weight, before) and model.get_parameter("features.0.weight").any()
    state["module.linear.bias"] = torch.full(
        (10,), 1e300, dtype=torch.float64
    )  # infinite in the model's float32
    with pytest.raises(CheckpointError, match="holds 10 infinite of 10 entries"):
        load_weights(model, state)


def test_buffers_may_be_infinite_but_not_nan():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2,), float("-inf")))

    assert load_weights(Masked(), Masked().state_dict())
    with pytest.raises(CheckpointError, match="'mask' holds 1 NaN of 2 entries"):
        load_weights(Masked(), {"mask": torch.tensor([0.0, float("nan")])})


def test_fill_tells_the_names_in_the_checkpoint():
    model = DigitsCNN()
    state = {f"module.{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    filled = fill(model, state)
    assert filled.model is model and filled.unplaced == []
    assert filled.places == {k.removeprefix("module."): k for k in state}


def test_round_to_gives_what_a_file_can_hold():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1 + 2**-10, 0.0]]))
        model.bias.fill_(1 + 2**-10)
    assert round_to(model, {"weight": torch.bfloat16, "no such": torch.bfloat16}) is model
    assert model.weight.tolist() == [[1.0, 0.0]] and model.bias.item() == 1 + 2**-10
    assert model.weight.dtype == torch.float32
    stored = model.weight.to(torch.bfloat16)
    assert torch.equal(stored.float(), model.weight)


def test_round_to_refuses_to_overflow_and_changes_nothing():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1 + 2**-20)
        model.bias.fill_(70_000.0)
    with pytest.raises(
        EspalierError, match=r"tensor 'bias' holds 7e\+04, beyond the torch\.float16 of the file"
    ):
        round_to(model, {"weight": torch.float16, "bias": torch.float16})
    assert model.weight[0, 0].item() == 1 + 2**-20


def test_probe_names_model_input_and_data():
    data = digits()
    model = CifarResNet(20).train()
    with pytest.raises(
        EspalierError,
        match=r"^--model resnet20 does not run on one input of digits, \(1, 1, 8, 8\) float32: RuntimeError: .*"
        r"; give a model for such inputs, or other --data$",
    ):
        probe(model, data, "--model resnet20")
    assert model.training and model.bn1.num_batches_tracked == 0
    fitting = DigitsCNN().train()
    probe(fitting, data, "mine")
    assert fitting.training and fitting.get_buffer("features.1.num_batches_tracked") == 0


def test_probe_refuses_what_is_no_classifier_of_the_data():
    data = digits()
    with pytest.raises(EspalierError, match=r"mine does not run on .*: the model must return logits"):
        probe(nn.Identity(), data, "mine")
    with pytest.raises(EspalierError, match=r"mine gives 3 logits for .*, which has 10 classes"):
        probe(DigitsCNN(3), data, "mine")

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    with pytest.raises(EspalierError, match="AssertionError: AssertionError"):
        probe(Silent(), data, "mine")
    empty = data.test.take(0)
    with pytest.raises(EspalierError, match="the data set digits is empty"):
        probe(DigitsCNN(), replace(data, train=empty, validation=empty, test=empty), "mine")
    probe(DigitsCNN(), replace(data, test=empty), "mine")


def test_logits_in_what_models_return():
    logits = torch.zeros(2, 3)

    class Output:
        def __init__(self) -> None:
            self.logits = logits

    assert all(logits_of(output) is logits for output in (logits, Output(), {"logits": logits}))
    with pytest.raises(EspalierError, match=r"must return logits .* got list"):
        logits_of([logits])
    with pytest.raises(EspalierError, match=r"got \(2, 3, 1\)"):
        logits_of(logits.unsqueeze(2))


@pytest.mark.data
def test_public_checkpoint_loads_strictly(data_folder: Path):
    from torch import load

    path = data_folder.parent / "checkpoints" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip("the public checkpoints are not beside ESPALIER_DATA")
    state = load(path, weights_only=True, map_location="cpu")["state_dict"]
    CifarResNet(20).load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=True)
    load_weights(CifarResNet(20), state)
