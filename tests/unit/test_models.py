from pathlib import Path

import pytest
import torch
from torch import nn

from espalier import CheckpointError, EspalierError
from espalier._forward import logits_of
from espalier.models import (
    CifarResNet,
    DigitsCNN,
    LeNet5,
    hf_model,
    imported,
    load_weights,
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
    (tmp_path / "my_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert imported("my_nets:tiny", n=5).in_features == 5
    for path, match in (
        ("my_nets", "must look like package.module:function"),
        ("my_netz:tiny", "No module named 'my_netz'; is it installed"),
        ("my_nets:tinny", "no function 'tinny'. Did you mean 'tiny'"),
        ("my_nets:text", "returned str, not a torch.nn.Module"),
    ):
        with pytest.raises(EspalierError, match=match):
            imported(path)


def test_hf_folder(tmp_path: Path):
    with pytest.raises(EspalierError, match=r"no config\.json"):
        hf_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bert", "architectures": ["BertModelFromTheFuture"]}')
    with pytest.raises(EspalierError, match="has no class 'BertModelFromTheFuture'"):
        hf_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(EspalierError, match="cannot be loaded as BertModel"):
        hf_model(tmp_path)


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
