"""`espalier landscape path, plane, functions, norms, topology` as a person meets them."""

import json
import math
from pathlib import Path

import pytest
import torch

from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.models import DigitsCNN
from tests.conftest import Run

DATA = ("--model", "digits_cnn", "--data", "digits", "--limit", "12")
NETWORKS = """
import torch
from torch import nn

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x.flatten(1)), 0.5)

def grouped():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 10, 1), nn.Flatten())

def dropout():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Networks nobody trained: three of one architecture, a pruned one, others that do not fit or are broken."""
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        state = DigitsCNN().state_dict()
        save_checkpoint(tmp_path / f"{name}.safetensors", state)
    save_checkpoint(
        tmp_path / "pruned.safetensors", {k: v * (v > 0) if v.ndim > 1 else v for k, v in state.items()}
    )
    state["linear.bias"] = torch.full((10,), math.nan)
    save_checkpoint(tmp_path / "nan.safetensors", state)
    save_checkpoint(tmp_path / "narrow.safetensors", DigitsCNN(width=0.5).state_dict())
    save_checkpoint(tmp_path / "vector.safetensors", {"a.bias": torch.ones(3)})
    (tmp_path / "networks_of_a_person.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def named(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.safetensors" for name in names)


def test_path_with_curve_control_and_networks_of_its_own(run: Run, files: Path):
    line = ("landscape", "path", *named("a", "b"), *DATA, "--points", "3", "--folder", "kept")
    code, out, _ = run(
        *line,
        *("--curve", "polygon", "--epochs", "1", "--control", *named("a", "c")),
        *("--save-midpoint", "mid.safetensors", "--save-average", "swa.safetensors"),
        *("--also", "c.safetensors", "--png", "p.png", "--html", "p.html"),
    )
    assert code == 0 and "polygon (control): a.safetensors → c.safetensors" in out
    assert "digits: 12 training and 12 test examples (--limit 12" in out
    assert (files / "p.png").stat().st_size > 1000 and "<svg" in (files / "p.html").read_text()
    weights = [open_checkpoint(files / f"{name}.safetensors")["linear.weight"] for name in "abc"]
    averaged = open_checkpoint(files / "swa.safetensors").state_dict()
    assert torch.allclose(averaged["linear.weight"], sum(weights, torch.zeros(())) / 3)
    DigitsCNN().load_state_dict(open_checkpoint(files / "mid.safetensors").state_dict())
    _, out, _ = run(*line, "--json")
    found = json.loads(out)
    (way,) = found["ways"]
    assert [point["t"] for point in way["points"]] == [0, 0.5, 1] and not way["control"]
    assert way["arc_length"] == way["distance"] > 0 and way["barrier"]["test"]["error"]["height"] <= 1


@pytest.mark.parametrize(
    ("kind", "networks", "surfaces"),
    [("three", "abc", 1), ("random", "ab", 2), ("radial", "ab", 1)],
)
def test_plane(run: Run, files: Path, kind: str, networks: str, surfaces: int):
    line = ("landscape", "plane", *named(*networks), *DATA, "--kind", kind, "--points", "2", "--folder", "k")
    code, out, _ = run(*line, "--png", "p.png", "--html", "p.html")
    assert code == 0 and f"{4 * surfaces} evaluations" in out
    assert (files / "p.png").stat().st_size > 1000 and "<svg" in (files / "p.html").read_text()
    _, out, _ = run(*line, "--json")
    found = json.loads(out)
    assert found["evaluations"] == 0, "all points were kept"
    assert len(found["planes"]) == surfaces


def test_functions_with_a_family(run: Run, files: Path):
    line = ("landscape", "functions", *named("a", "b"), *DATA, "--cka", "8", "--folder", "k")
    code, out, _ = run(*line, "--family", "--step", "50", "--png", "p.png", "--html", "p.html")
    assert code == 0 and "digits: 12 test examples (--limit 12" in out and "t-SNE of 8 networks" in out
    assert (files / "p.png").stat().st_size > 1000 and "<svg" in (files / "p.html").read_text()
    _, out, _ = run(*line, "--json", "--biased")
    found = json.loads(out)
    assert found["embedding"] is None and found["cka"] == {"inputs": 8, "estimator": "biased"}
    assert 0 <= found["pairs"][0]["agreement"] <= 1 and "linear" in found["pairs"][0]["cka"]


def test_functions_with_dropout_in_the_network(run: Run, files: Path):
    """Eval mode switches it off, whatever mode the network comes in."""
    state = {"2.weight": torch.randn(10, 64), "2.bias": torch.zeros(10)}
    save_checkpoint(files / "d.safetensors", state)
    save_checkpoint(files / "e.safetensors", state)
    data = ("--model", "networks_of_a_person:dropout", *DATA[2:])
    code, out, _ = run("landscape", "functions", *named("d", "e"), *data, "--json")
    assert code == 0 and json.loads(out)["pairs"][0]["agreement"] == 1


def test_norms_and_topology(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal breaks the heads of tables
    code, out, _ = run(
        "landscape", "norms", *named("c", "pruned"), "--png", "n.png", "--html", "n.html", "--json"
    )
    assert code == 0
    dense, sparse = json.loads(out)["checkpoints"]
    assert dense["sparsity"] == 0 and 0.4 < sparse["sparsity"] < 0.6
    assert run("landscape", "norms", *named("c"))[0] == 0
    code, out, _ = run("landscape", "topology", *named("pruned", "c"), "--png", "t.png", "--html", "t.html")
    assert code == 0 and "inputs without use" in out and "of independent masks" in out
    _, out, _ = run("landscape", "topology", *named("pruned", "c"), "--json")
    overlap = json.loads(out)["overlaps"][0]["tensors"][0]
    assert overlap["lost"] == 0 and overlap["jaccard"] == pytest.approx(overlap["chance"])
    for picture in ("n", "t"):
        assert (files / f"{picture}.png").exists() and "<svg" in (files / f"{picture}.html").read_text()


def test_groups_come_from_the_model(run: Run, files: Path):
    """Each of two groups leaves one of its inputs unread, and not the same one."""
    weight = torch.ones(4, 2, 3, 3)
    weight[:2, 1], weight[2:, 0] = 0, 0
    state = {"0.weight": torch.ones(4, 1, 3, 3), "1.weight": weight, "2.weight": torch.ones(10, 4, 1, 1)}
    biases = {f"{i}.bias": torch.ones(len(state[f"{i}.weight"])) for i in range(3)}
    save_checkpoint(files / "g.safetensors", state | biases)
    _, out, _ = run("landscape", "topology", *named("g"))
    assert "groups unknown, taken as 1: 1 convolution (1.weight)" in out and "0 of 2" in out
    model = ("--model", "networks_of_a_person:grouped")
    _, out, _ = run("landscape", "topology", *named("g"), *model)
    assert "2 of 4" in out and "groups unknown" not in out
    _, out, _ = run("landscape", "topology", *named("g"), *model, "--json")
    found = json.loads(out)
    assert found["groups_unknown"] == [] and found["networks"]["g.safetensors"][1]["no_outgoing"] == 2
    assert "groups unknown" not in run("landscape", "topology", *named("pruned"))[1]


PERSON = ("--model", "networks_of_a_person:Noisy", *DATA[2:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("path", *named("a", "narrow"), *DATA), "narrow.safetensors"),
        (("path", *named("a", "a"), *DATA), "the two networks have the same weights"),
        (
            ("path", *named("a", "nan"), *DATA),
            "nan.safetensors: tensor 'linear.bias' holds 10 NaN of 10 entries",
        ),
        (("path", *named("a", "gone"), *DATA), "gone.safetensors"),
        (
            ("path", *named("a", "b"), *DATA, "--save-midpoint", "a.safetensors"),
            "is another file of this command",
        ),
        (
            ("path", *named("a", "b"), *DATA, "--save-average", "no/x.safetensors"),
            "the folder no does not exist",
        ),
        (("path", *named("a", "b"), *DATA, "--curve", "bezier", "--lr", "0"), "curve training `lr` must be"),
        (("plane", *named("a", "b"), *DATA), "--kind three needs at least 3 networks, got 2"),
        (
            ("plane", *named("a"), *DATA, "--kind", "random", "--reach", "0"),
            "reach of a plane must be positive",
        ),
        (("plane", *named("a"), *DATA, "--kind", "random", "--png", "no/p.png"), "create it first"),
        (("plane", *named("a", "b", "nan"), *DATA), "tensor 'linear.bias' holds 10 NaN"),
        (("functions", *named("a"), *DATA), "needs at least 2 networks, got 1; `evaluate` measures one"),
        (("functions", *named("a", "nan"), *DATA), "tensor 'linear.bias' holds 10 NaN"),
        (("functions", *named("a", "narrow"), *DATA), "narrow.safetensors"),
        (("norms", *named("a", "narrow")), "are not checkpoints of one network"),
        (("norms", *named("gone")), "gone.safetensors"),
        (("topology", *named("pruned", "narrow")), "they belong to different networks"),
        (("topology", *named("gone")), "gone.safetensors"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], said: str):
    code, out, err = run("landscape", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("command", ["path", "functions"])
def test_a_network_that_stays_random_is_refused(run: Run, files: Path, command: str):
    for name in "de":
        state = {"linear.weight": torch.randn(10, 64), "linear.bias": torch.zeros(10)}
        save_checkpoint(files / f"{name}.safetensors", state)
    code, _, err = run("landscape", command, *named("d", "e"), *PERSON)
    assert code == 2 and "different answers to the same inputs in eval mode" in err and err.count("\n") == 1


def test_a_lazy_network_is_refused(run: Run, files: Path):
    save_checkpoint(files / "d.safetensors", {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)})
    lazy = ("--model", "networks_of_a_person:lazy", *DATA[2:])
    code, out, err = run("landscape", "functions", *named("d", "a"), *lazy)
    assert code == 2 and "lazy is lazily initialized: '1.weight' has no shape yet" in err
    assert not out and err.count("\n") == 1


def test_a_folder_of_another_measurement_is_refused(run: Run, files: Path):
    line = ("landscape", "plane", *named("a"), *DATA, "--kind", "random", "--folder", "k")
    assert run(*line, "--points", "2")[0] == 0
    code, _, err = run(*line, "--points", "3")
    assert code == 2 and "k holds another measurement" in err and err.count("\n") == 1
