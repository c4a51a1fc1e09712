"""`espalier train` as a person meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.models import DigitsCNN
from tests.conftest import Run

RECIPE = """\
title: a short run
model: digits_cnn
data: {name: digits, limit: 200}
training: {epochs: 3, batch_size: 50, lr: 0.05}
method: {name: target-grda}
sparsity: 0.9
seeds: [0, 1]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE)
    return path


def test_it_trains_prunes_and_reports(run: Run, recipe: Path, tmp_path: Path):
    code, out, _ = run("train", "short.yaml", "-o", "out")
    assert code == 0 and "mean test accuracy" in out and "report: out/report.html" in out
    entries = sum(p.numel() for p in DigitsCNN().parameters() if p.ndim > 1)
    for seed in (0, 1):
        checkpoint = open_checkpoint(tmp_path / "out" / f"seed-{seed}" / "model.safetensors")
        weights = checkpoint.state_dict()
        zeros = sum(int((w == 0).sum()) for w in weights.values() if w.ndim > 1)
        assert zeros == round(0.9 * entries)
        DigitsCNN().load_state_dict(weights)
        lines = (tmp_path / "out" / f"seed-{seed}" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
        assert json.loads(lines[-1])["turnover"]["churn"] >= 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 3 and "a short run" in page


def test_seeds_vary_and_a_rerun_changes_nothing(run: Run, recipe: Path, tmp_path: Path):
    _, first, _ = run("train", "short.yaml", "-o", "out", "--json")
    _, again, _ = run("train", "short.yaml", "-o", "out", "--json")
    assert json.loads(first) == json.loads(again)
    one, other = (r["stages"][-1]["loss"] for r in json.loads(first)["runs"])
    assert one != other
    found = json.loads(first)
    assert found["mean"]["n"] == 2 and found["mean"]["failed"] == 0
    assert found["runs"][0]["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_options_change_the_recipe(run: Run, recipe: Path, tmp_path: Path):
    _, out, _ = run(
        "train",
        "short.yaml",
        "-o",
        "out",
        "--json",
        "--sparsity",
        "0.5",
        "--epochs",
        "1",
        "--seeds",
        "3",
        "--sparse",
    )
    found = json.loads(out)
    assert [r["seed"] for r in found["runs"]] == [3] and len(found["runs"][0]["epochs"]) == 2
    assert found["runs"][0]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert found["runs"][0]["bytes"] < sum(4 * p.numel() for p in DigitsCNN().parameters())


def test_the_baseline_is_dense(run: Run, recipe: Path):
    _, out, _ = run("train", "short.yaml", "--json", "--baseline", "--seeds", "0")
    found = json.loads(out)
    assert found["runs"][0]["zeros"] == 0 and found["recipe"]["method"]["name"] == "dense"
    assert Path("runs/short-baseline/report.html").exists()


def test_from_a_trained_network_with_it_as_teacher(run: Run, recipe: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "dense.safetensors", DigitsCNN().state_dict())
    _, out, _ = run(
        *("train", "short.yaml", "-o", "out", "--json", "--seeds", "0"),
        *("--start", "dense.safetensors", "--teacher"),
    )
    found = json.loads(out)["runs"][0]
    assert [stage["name"] for stage in found["stages"]] == ["start", "trained"]
    assert found["spec"]["teacher"] != "none" and found["epochs"][1]["cosine"] is not None


def test_a_budget_searches_the_sparsity(run: Run, recipe: Path, tmp_path: Path):
    run("train", "short.yaml", "-o", "dense", "--baseline", "--seeds", "0", "--epochs", "8")
    _, out, _ = run(
        *("train", "short.yaml", "-o", "out", "--json", "--start", "dense/seed-0/model.safetensors"),
        *("--budget", "60%", "--resolution", "0.3"),
    )
    found = json.loads(out)
    points = found["budget"]["points"]
    inside = [point["sparsity"] for point in points if point["inside"]]
    assert len(points) >= 2 and found["budget"]["sparsity"] == max(inside) == found["recipe"]["sparsity"]
    assert [r["sparsity"] for r in found["runs"]] == pytest.approx([max(inside)] * 2, abs=1e-4)
    assert "The search" in (tmp_path / "out" / "report.html").read_text()
    _, again, _ = run(
        *("train", "short.yaml", "-o", "out", "--json", "--start", "dense/seed-0/model.safetensors"),
        *("--budget", "60%", "--resolution", "0.3"),
    )
    assert json.loads(again) == found


def test_a_budget_search_begins_at_the_zeros_at_hand(run: Run, recipe: Path, tmp_path: Path):
    weights = DigitsCNN().state_dict()
    weights["linear.weight"][:5] = 0.0
    save_checkpoint(tmp_path / "start.safetensors", weights)
    code, out, err = run(
        *("train", "short.yaml", "-o", "out", "--json", "--start", "start.safetensors", "--epochs", "1"),
        *("--budget", "99%", "--resolution", "0.9", "--seeds", "0"),
    )
    assert code == 0, err
    entries = sum(w.numel() for w in weights.values() if w.ndim > 1)
    tried = [point["sparsity"] for point in json.loads(out)["budget"]["points"]]
    assert min(tried) == pytest.approx(5 * 256 / entries)


def test_a_budget_that_nothing_meets(run: Run, recipe: Path, tmp_path: Path):
    run("train", "short.yaml", "-o", "dense", "--baseline", "--seeds", "0", "--epochs", "8")
    # Without training the least pruned network is the dense one: no drop, but never surely none.
    (tmp_path / "none.yaml").write_text(
        RECIPE.replace("epochs: 3", "epochs: 0").replace("target-grda", "one-shot")
    )
    code, _, err = run(
        *("train", "none.yaml", "-o", "out", "--start", "dense/seed-0/model.safetensors"),
        *("--budget", "0%", "--resolution", "0.9"),
    )
    assert code == 2 and "no sparsity is good enough" in err


def test_tensorboard(run: Run, recipe: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    run("train", "short.yaml", "-o", "out", "--seeds", "0", "--epochs", "1", "--tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(tmp_path / "out" / "seed-0" / "tensorboard")).Reload()
    assert {"accuracy", "sparsity", "churn", "regrown", "overlap"} <= set(events.Tags()["scalars"])


def test_a_failed_seed_is_shown_and_the_others_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hot.yaml").write_text(RECIPE.replace("lr: 0.05", "lr: 1.0e+30, momentum: 0"))
    code, out, _ = run("train", "hot.yaml", "-o", "out")
    assert code == 2 and "2 of 2 runs failed and are in no mean" in out and "Try a lower lr" in out
    code, out, _ = run("train", "hot.yaml", "-o", "out", "--json")  # marked failed, not tried again
    runs = json.loads(out)["runs"]
    assert code == 2 and "failed" in runs[0]["failure"] and runs[0].get("sparsity") is None


def test_a_law_that_overshoots_fails_its_seed_alone(run: Run, tmp_path: Path):
    text = RECIPE.replace("{name: target-grda}", "{name: lasso, penalty: 5.0}").replace("0.9\n", "0.5\n")
    (tmp_path / "strong.yaml").write_text(text)
    code, out, _ = run("train", "strong.yaml", "-o", "out")
    assert code == 2 and "2 of 2 runs failed and are in no mean" in out and "lower the penalty" in out


def test_steps_without_the_momentum_of_the_training_are_said(run: Run, tmp_path: Path):
    text = RECIPE.replace("{name: target-grda}", "{name: grda, c: 0.01, mu: 0.51}").replace("[0, 1]", "[0]")
    (tmp_path / "paper.yaml").write_text(text)
    _, _, err = run("train", "paper.yaml", "-o", "out", "--epochs", "1")
    assert "grda takes plain steps, as published, without the training's momentum of 0.9" in err
    (tmp_path / "with.yaml").write_text(text.replace("mu: 0.51", "mu: 0.51, momentum: true"))
    assert "plain steps" not in run("train", "with.yaml", "-o", "other", "--epochs", "1")[2]


def test_the_list(run: Run):
    code, out, _ = run("train", "--list")
    assert code == 0 and "vgg16-cifar10-paper" in out
    _, out, _ = run("train", "--list", "--json")
    assert json.loads(out)["vgg16-cifar10-paper"]["method"]["mu"] == 0.6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("short.yaml", "--sparsity", "90"), "--sparsity is a fraction in [0, 1), such as 0.9, got 90"),
        (("short.yaml", "--seeds", "1;2"), "--seeds is a list such as 0,1,2, got '1;2'"),
        (("short.yaml", "--seeds", "1,1"), "--seeds names a seed twice: 1,1"),
        (("short.yaml", "--teacher"), "a teacher is the network one starts from: give --start FILE"),
        (("short.yml",), "no recipe 'short.yml': neither a file nor one of"),
        (("mnist-lenet5-papr",), "Did you mean 'mnist-lenet5-paper'"),
        (("short.yaml", "-o", "short.yaml"), "short.yaml is a file; the runs need a folder"),
        (
            ("short.yaml", "-o", "short.yaml/sub"),
            "short.yaml/sub/seed-0 cannot be made a folder: cannot be written",
        ),
        (
            ("short.yaml", "--data", "cifar10_jpeg", "--data-root", "."),
            "it is CIFAR-10 with its images stored as JPEG",
        ),
        (
            ("short.yaml", "--seeds", "99999999999999999999999"),
            "--seeds are whole numbers from 0 to 2^63 - 1",
        ),
        (("short.yaml", "--baseline", "--sparsity", "0.5"), "the run without pruning: give no --sparsity"),
        (("short.yaml", "--resolution", "0.1"), "--resolution is the precision of what --budget finds"),
        (
            ("short.yaml", "--budget", "1%", "--start", "start.safetensors", "--resolution", "0"),
            "resolution must be positive, got 0",
        ),
        (("dense.yaml",), "dense.yaml, line 6: sparsity is 0.9, but the method dense prunes nothing"),
        (("short.yaml", "--data", "digitz"), "unknown data 'digitz'"),
        (
            ("resnet50-imagenet-paper", "--data-root", "."),
            "there is no folder 'imagenet', here or in .: get the ILSVRC 2012 images",
        ),
        (
            ("short.yaml", "--data", "cifar", "--data-root", "none"),
            "data folder none does not exist: set ESPALIER_DATA or --data-root to the right one",
        ),
        (("short.yaml", "--budget", "1%"), "--budget compares with the network one starts from"),
        (("--json",), "which recipe? Give a name of --list, or a YAML file"),
    ],
)
def test_mistakes_are_one_line(run: Run, recipe: Path, arguments: tuple[str, ...], said: str):
    save_checkpoint(Path("start.safetensors"), DigitsCNN().state_dict())
    Path("dense.yaml").write_text(RECIPE.replace("target-grda", "dense"))
    code, out, err = run("train", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1 and not out


def test_another_recipe_in_the_folder_is_refused(run: Run, recipe: Path):
    run("train", "short.yaml", "-o", "out", "--seeds", "0", "--epochs", "1")
    code, _, err = run("train", "short.yaml", "-o", "out", "--seeds", "0", "--epochs", "2")
    assert code == 2 and "holds another run: epochs was" in err


def test_missing_data_says_how_to_get_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ESPALIER_DATA", raising=False)
    code, _, err = run("train", "mnist-lenet5-paper", "-o", "out")
    assert code == 2 and "--data-root" in err


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`espalier ARGUMENTS` in two processes on a CPU."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "espalier",
    ]
    root = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": root, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, *arguments],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_processes_write_and_print_once(recipe: Path, tmp_path: Path):
    """With batch norm, whose statistics are of each process's own examples."""
    ran = torchrun("train", "short.yaml", "-o", "out", "--seeds", "0", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("report: out/report.html") == 1 and ran.stderr.count("report:") == 0
    assert open_checkpoint(tmp_path / "out" / "seed-0" / "model.safetensors").state_dict()
    assert len((tmp_path / "out" / "seed-0" / "log.jsonl").read_text().splitlines()) == 4
    ran = torchrun("inspect", "out/seed-0/model.safetensors", cwd=tmp_path)
    assert ran.returncode != 0 and "this command runs in one process, and 2 were started" in ran.stderr


def test_weights_of_the_start_must_fit(run: Run, recipe: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "other.safetensors", {"a.weight": torch.ones(2, 2)})
    code, _, err = run("train", "short.yaml", "-o", "out", "--start", "other.safetensors")
    assert code == 2 and "other.safetensors" in err and "a.weight" in err
