from pathlib import Path

import pytest
import torch
from torch import nn

from espalier import EspalierError
from espalier.allocate import Global
from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.cli.subject import Subject
from espalier.data import digits
from espalier.models import DigitsCNN
from tests.conftest import no_progress_bar

TIED = """
import torch

class Net(torch.nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        if tied:
            self.b.weight = self.a.weight

def tied(): return Net(True)
def apart(): return Net(False)
"""


def file_of(folder: Path, dtype: torch.dtype = torch.float32, prefix: str = "") -> Path:
    path = folder / "net.safetensors"
    save_checkpoint(path, {prefix + name: t.to(dtype) for name, t in DigitsCNN().state_dict().items()})
    return path


def change(model: nn.Module) -> None:
    """What training does: every parameter gets other values."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) * (i + 1) / 3)


def check_written(subject: Subject, written: Path) -> None:
    state, after = subject.model.state_dict(), open_checkpoint(written)
    assert list(after) == list(subject.checkpoint)
    for own, name in subject.filled.places.items():
        name = subject.checkpoint.aliases.get(name, name)
        assert torch.equal(state[own].to(after[name].dtype), after[name]), own
    changed = [name for name in after if not torch.equal(after[name], subject.checkpoint[name])]
    assert changed


@pytest.mark.parametrize("sparse", [False, True])
def test_everything_trained_is_written(tmp_path: Path, sparse: bool):
    path = file_of(tmp_path)
    subject = Subject(path, path, "digits_cnn", 10, data=digits())
    masks = subject.prune(subject.model, 0.9, Global())
    change(subject.model)
    masks.apply_(subject.model)
    subject.write(tmp_path / "out.safetensors", sparse)
    check_written(subject, tmp_path / "out.safetensors")
    again = Subject(tmp_path / "out.safetensors", None, "digits_cnn", 10)
    assert again.masks().digest == masks.digest
    assert subject.parent is not None and torch.equal(
        subject.parent.get_parameter("linear.weight"), subject.checkpoint["linear.weight"]
    )


def test_two_prefixes_are_written_back(tmp_path: Path):
    path = file_of(tmp_path, prefix="module.module.")
    subject = Subject(path, None, "digits_cnn", 10)
    change(subject.model)
    subject.write(tmp_path / "out.safetensors", False)
    check_written(subject, tmp_path / "out.safetensors")


def test_masks_need_zeros(tmp_path: Path):
    with pytest.raises(EspalierError, match="nothing in FILE is zero: prune it first"):
        Subject(file_of(tmp_path), None, "digits_cnn", 10).masks()


def test_input_of_another_shape_is_told_with_model_and_data(tmp_path: Path):
    from espalier.models import LeNet5

    save_checkpoint(tmp_path / "lenet.safetensors", LeNet5().state_dict())
    with pytest.raises(
        EspalierError, match=r"--model lenet5 does not run on one input of digits, \(1, 1, 8, 8\) float32"
    ):
        Subject(tmp_path / "lenet.safetensors", None, "lenet5", 10, data=digits())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_measured_is_what_is_written(tmp_path: Path, dtype: torch.dtype):
    path = file_of(tmp_path, dtype)
    subject = Subject(path, None, "digits_cnn", 10)
    change(subject.model)
    with torch.no_grad():
        subject.model.get_parameter("linear.bias")[0] = 1e-45  # zero in the file
    subject.round_()
    subject.write(tmp_path / "out.safetensors", False)
    again = Subject(tmp_path / "out.safetensors", None, "digits_cnn", 10)
    for (name, a), b in zip(
        subject.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert again.model.get_parameter("linear.bias")[0] == 0
    assert open_checkpoint(tmp_path / "out.safetensors")["linear.bias"].dtype == dtype


def test_tensors_tied_in_the_file_must_stay_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tied_nets.py").write_text(TIED)
    monkeypatch.chdir(tmp_path)
    weight = torch.ones(4, 4)
    save_checkpoint(tmp_path / "net.safetensors", {"a.weight": weight, "b.weight": weight})
    for model in ("tied", "apart"):
        subject = Subject(tmp_path / "net.safetensors", None, f"tied_nets:{model}", 1)
        if model == "tied":
            change(subject.model)
            subject.write(tmp_path / "out.safetensors", False)
            check_written(subject, tmp_path / "out.safetensors")
        else:
            change(subject.model)
            with pytest.raises(
                EspalierError, match=r"'a\.weight' and 'b\.weight' are one tensor in .* differ now"
            ):
                subject.write(tmp_path / "apart.safetensors", False)
            assert not (tmp_path / "apart.safetensors").exists()


def test_a_folder_of_transformers_and_back(vit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    capfd.readouterr()
    subject = Subject(vit, vit, f"hf:{vit}", 10, data=digits())
    subject.prune(subject.model, 0.5, Global())
    with torch.no_grad():
        for i, parameter in enumerate(subject.model.parameters()):
            parameter.add_(i + 1 if parameter.ndim < 2 else (parameter != 0) * (i + 1))
    subject.write(tmp_path / "out", False)
    check_written(subject, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    for name in open_checkpoint(tmp_path / "out"):
        assert not torch.equal(open_checkpoint(tmp_path / "out")[name], subject.checkpoint[name]), name
    again = Subject(tmp_path / "out", vit, f"hf:{vit}", 10, data=digits())
    assert again.masks().sparsity == pytest.approx(0.5, abs=1e-3)
    from transformers import ViTForImageClassification

    with no_progress_bar():
        theirs = ViTForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in subject.model.state_dict().items())


def test_a_tied_language_model_and_back(gpt2: Path, tmp_path: Path):
    subject = Subject(gpt2, None, f"hf:{gpt2}", 20)
    change(subject.model)
    subject.write(tmp_path / "out", False)
    check_written(subject, tmp_path / "out")
    with pytest.raises(
        EspalierError, match=r"--model hf:.* does not run on one input of digits, .*RuntimeError"
    ):
        Subject(gpt2, None, f"hf:{gpt2}", 20, data=digits())


def test_what_transformers_splits_is_measured_but_not_written(mixtral: Path, tmp_path: Path):
    subject = Subject(mixtral, None, f"hf:{mixtral}", 11)
    match = r"^\d tensors of the network are none of .*mixtral as they are \(.*experts.*\), so they cannot be written"
    with pytest.raises(EspalierError, match=match):
        subject.prune(subject.model, 0.5, Global())
    with pytest.raises(EspalierError, match=match):
        subject.masks()
    with pytest.raises(EspalierError, match=match):
        subject.write(tmp_path / "out", False)
    assert not (tmp_path / "out").exists()
