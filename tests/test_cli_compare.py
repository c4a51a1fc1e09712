"""`espalier compare` as a person meets it."""

import json
import os
from pathlib import Path

import pytest

from espalier import EspalierError
from espalier.checkpoint import save_checkpoint
from espalier.cli.study_words import gather
from espalier.compare import Cell, on_devices
from espalier.methods import Gradual
from espalier.models import DigitsCNN
from espalier.recipe import YamlFile
from espalier.study import StudyRecipe
from espalier.train import Failed
from tests.conftest import Run

STUDY = """\
title: Two methods
networks:
  - {model: digits_cnn, data: {name: digits, limit: 100}}
training: {epochs: 1, batch_size: 50, lr: 0.05, augment: false}
methods:
  - {name: dense}
  - {name: gradual}
  - {name: one-shot, allocation: uniform floor=0.15, label: floored}
sparsities: [0.8, 0.9]
published:
  - {label: somebody, sparsity: 0.9, accuracy: 0.9, source: "a paper, table 1"}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_a_study(run: Run, study: Path, tmp_path: Path):
    code, out, _ = run("compare", "study.yaml", "-o", "out")
    assert code == 0 and "*gradual" in out and "floor" in out and "failed runs are in no mean" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 5 and "somebody" in page and "not rerun" in page
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000
    _, again, _ = run("compare", "study.yaml", "-o", "out", "--json")
    found = json.loads(again)
    assert found == json.loads((tmp_path / "out" / "comparison.json").read_text()) and found["missing"] == 0
    dense, *pruned = found["rows"]
    assert (dense["label"], dense["sparsity"]) == ("dense", None)
    assert [r["sparsity"] for r in pruned] == [0.8, 0.8, 0.9, 0.9]
    assert {r["label"] for r in pruned[:2]} == {"gradual", "floored"}
    assert pruned[0]["best"] and pruned[0]["accuracy"]["mean"] >= pruned[1]["accuracy"]["mean"]
    assert [r["label"] for r in pruned[2:]] == ["gradual", "floored"], "what failed comes last"
    assert found["rows"][1]["reached"] == pytest.approx(0.8, abs=1e-4)
    assert found["rows"][4]["accuracy"] is None and "0.8499" in found["rows"][4]["failures"][0]


def test_a_narrower_dense_network_is_a_control(run: Run, tmp_path: Path):
    text = STUDY.replace("name: gradual}", "name: smaller-dense}").replace("[0.8, 0.9]", "[0.8]")
    (tmp_path / "study.yaml").write_text(text)
    _, out, _ = run("compare", "study.yaml", "-o", "out", "--json")
    row = next(r for r in json.loads(out)["rows"] if r["label"] == "smaller-dense")
    whole = sum(p.numel() for p in DigitsCNN().parameters())
    assert row["reached"] == 0 and 0.15 * 4 * whole < row["bytes"] < 0.35 * 4 * whole


def test_dry_run_and_report_only_train_nothing(
    run: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("espalier.compare.running._train", lambda *_: pytest.fail("trained"))
    _, out, _ = run("compare", "study.yaml", "--dry-run")
    assert "5 runs, 1 of them cannot be done" in out
    _, out, _ = run("compare", "study.yaml", "-o", "out", "--report-only")
    assert "4 runs have not been done yet" in out and "floored at 0.9: seed 0: " in out and "0.8499" in out


def test_a_report_shows_the_runs_of_the_study_as_it_is(run: Run, study: Path, tmp_path: Path):
    run("compare", "study.yaml", "-o", "out", "--json")
    study.write_text(STUDY.replace("lr: 0.05", "lr: 0.01"))
    _, out, _ = run("compare", "study.yaml", "-o", "out", "--report-only", "--json")
    assert json.loads(out)["missing"] == 4
    run("compare", "study.yaml", "-o", "other", "--json")
    code, _, err = run("compare", "study.yaml", "-o", "other", "--add", "out")
    assert code == 2 and "but differ (lr was 0.01 and is" in err


def test_studies_add_up(run: Run, study: Path, tmp_path: Path):
    (tmp_path / "one.yaml").write_text(STUDY.replace("sparsities: [0.8, 0.9]", "sparsities: [0.8]"))
    (tmp_path / "two.yaml").write_text(
        STUDY.replace("sparsities: [0.8, 0.9]", "sparsities: [0.8]").replace("gradual", "magnitude-v2")
    )
    run("compare", "one.yaml", "-o", "one")
    _, out, _ = run("compare", "two.yaml", "-o", "two", "--add", "one", "--json")
    labels = {row["label"] for row in json.loads(out)["rows"]}
    assert labels == {"dense", "gradual", "magnitude-v2", "floored"}


def test_from_a_trained_network_with_and_without_it_as_teacher(run: Run, tmp_path: Path):
    save_checkpoint(tmp_path / "dense.safetensors", DigitsCNN().state_dict())
    text = STUDY.replace("limit: 100}", "limit: 100}, start: dense.safetensors").replace(
        "[0.8, 0.9]", "[0.8]"
    )
    (tmp_path / "study.yaml").write_text(text + "teachers: [false, true]\n")
    _, out, _ = run("compare", "study.yaml", "-o", "out", "--json")
    rows = json.loads(out)["rows"]
    assert [row["teacher"] for row in rows] == [False] * 3 + [True] * 3
    assert rows[4]["flops"] > rows[1]["flops"]


def test_another_checkpoint_under_the_same_name_makes_other_runs(study: Path, tmp_path: Path):
    study.write_text(STUDY.replace("limit: 100}", "limit: 100}, start: dense.safetensors"))

    def digests() -> list[str]:
        save_checkpoint(tmp_path / "dense.safetensors", DigitsCNN().state_dict())
        return [cell.digest for cell in gather(YamlFile(study, StudyRecipe), None)[0].cells()]

    assert not set(digests()) & set(digests())


def test_tuned(run: Run, tmp_path: Path):
    pytest.importorskip("optuna")
    text = (
        STUDY.replace("[0.8, 0.9]", "[0.8]")
        + "tuning: {trials: 2, common: {lr: {low: 0.01, high: 0.1, log: true}}}\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    code, _, _ = run("compare", "study.yaml", "-o", "out", "--json")
    assert code == 0 and (tmp_path / "out" / "tuning" / "trials.db").exists()
    rates = {
        json.loads(path.read_text())["spec"]["training"]["lr"]
        for path in (tmp_path / "out").glob("*/result.json")
    }
    assert 0.05 not in rates and all(0.01 <= rate <= 0.1 for rate in rates)


def test_a_report_of_a_tuned_study_is_of_its_ranges(run: Run, study: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr("espalier.compare.tuning._validation", lambda *_: 0.5)
    text = (
        STUDY.replace("[0.8, 0.9]", "[0.8]") + "tuning: {trials: 1, common: {lr: {low: 0.01, high: 0.1}}}\n"
    )
    rates = []
    for high in ("0.1", "0.2"):
        study.write_text(text.replace("high: 0.1", f"high: {high}"))
        _, trained, _ = run("compare", "study.yaml", "-o", "out", "--json")
        _, shown, _ = run("compare", "study.yaml", "-o", "out", "--report-only", "--json")
        assert json.loads(shown) == json.loads(trained)
        rates.append(json.loads(shown)["rows"][1]["accuracy"])
    study.write_text(text.replace("high: 0.1", "high: 0.3"))
    _, shown, _ = run("compare", "study.yaml", "-o", "out", "--report-only", "--json")
    assert json.loads(shown)["missing"] == 3 and len(rates) == 2


def test_a_report_shows_what_ran_though_it_could_not_run_now(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
):
    study.write_text(STUDY.replace("lr: 0.05", "lr: 0.05, schedule: step, milestones: [0.5]"))
    run("compare", "study.yaml", "-o", "out", "--json")
    monkeypatch.setattr("espalier.compare.check", lambda _: "the data are gone")
    _, shown, _ = run("compare", "study.yaml", "-o", "out", "--report-only", "--json")
    rows = json.loads(shown)["rows"]
    assert [row["accuracy"] is None for row in rows] == [False, False, False, False, True]
    assert rows[4]["failures"] == ["seed 0: the data are gone"]


def test_numbers_without_a_point(tmp_path: Path):
    text = STUDY.replace("name: gradual", "name: gradual, end: 5e-1, training: {weight_decay: 5e-4}")
    (tmp_path / "study.yaml").write_text(text)
    planned, _ = gather(YamlFile(tmp_path / "study.yaml", StudyRecipe), None)
    found = next(cell for cell in planned.cells() if cell.contender.label == "gradual")
    assert found.training.weight_decay == 5e-4 and found.contender.method == Gradual(end=0.5)


def test_what_cannot_be_tuned_is_the_failure_of_its_runs(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")
    study.write_text(
        STUDY.replace("[0.8, 0.9]", "[0.8]") + "tuning: {trials: 1, common: {lr: {low: 0.01, high: 0.1}}}\n"
    )

    def diverges(*_: object) -> float:
        raise Failed("NaN")

    monkeypatch.setattr("espalier.compare.tuning._validation", diverges)
    code, out, _ = run("compare", "study.yaml", "-o", "out", "--json")
    failures = [row["failures"] for row in json.loads(out)["rows"]]
    assert code == 0 and len(failures) == 3
    assert all("not tuned: every tuning trial of" in reason for [reason] in failures)
    _, shown, _ = run("compare", "study.yaml", "-o", "out", "--report-only", "--json")
    assert json.loads(shown) == json.loads(out), "the reason is recorded"


def test_a_tuning_that_breaks_is_tried_once_for_all_seeds_and_ends_no_study(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")
    study.write_text(
        STUDY.replace("[0.8, 0.9]", "[0.8]")
        + "seeds: [0, 1]\ntuning: {trials: 1, common: {lr: {low: 0.01, high: 0.1}}}\n"
    )
    tries: list[str] = []

    def breaks(asked: Cell, *_: object) -> float:
        tries.append(asked.contender.label)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("espalier.compare.tuning._validation", breaks)
    code, out, _ = run("compare", "study.yaml", "-o", "out", "--json")
    failures = [reason for row in json.loads(out)["rows"] for reason in row["failures"]]
    assert code == 0 and len(failures) == 6 and tries == ["dense", "gradual", "floored"]
    assert all("not tuned: RuntimeError: out of memory" in reason for reason in failures)


def test_a_database_that_cannot_be_used_is_one_refusal(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")
    monkeypatch.setattr("espalier.compare.running._train", lambda *_: pytest.fail("trained"))
    tuning = "tuning: {trials: 1, storage: 'sqlite:////no/x.db', common: {lr: {low: 0.01, high: 0.1}}}\n"
    study.write_text(STUDY + tuning)
    code, out, err = run("compare", "study.yaml", "-o", "out")
    assert code == 2 and not out and "trials cannot be kept in sqlite:////no/x.db" in err


def test_studies_of_other_budgets_or_data_do_not_add_up(run: Run, tmp_path: Path):
    one = STUDY.replace("sparsities: [0.8, 0.9]", "sparsities: [0.8]")
    other = one.replace("{name: dense}", "{name: magnitude-v2}").replace("  - {name: gradual}\n", "")
    (tmp_path / "one.yaml").write_text(one)
    run("compare", "one.yaml", "-o", "one", "--json")
    for changed, said in (
        (other.replace("epochs: 1", "epochs: 2"), "epochs was 2 and is default"),
        (other.replace("limit: 100", "limit: 90"), "limit was 90 and is 100"),
    ):
        (tmp_path / "two.yaml").write_text(changed.replace("label: floored", "label: other"))
        code, _, err = run("compare", "two.yaml", "-o", "two", "--report-only", "--add", "one")
        assert code == 0, "nothing has run yet"
        code, _, err = run("compare", "two.yaml", "-o", "two", "--add", "one")
        assert code == 2 and said in err and "(two/" in err and "(one/" in err


def test_no_epochs_are_drawn_without_what_they_cost(run: Run, study: Path, tmp_path: Path):
    study.write_text(STUDY.replace("epochs: 1", "epochs: 0").replace("[0.8, 0.9]", "[0.8]"))
    code, _, _ = run("compare", "study.yaml", "-o", "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert code == 0 and page.count("<svg") == 3 and "over what the training would compute" not in page


def test_a_process_for_each_device(run: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study.write_text(STUDY.replace("[0.8, 0.9]", "[0.9]"))
    monkeypatch.setattr(on_devices, "devices", lambda: ["3", "5"])
    code, out, _ = run("compare", "study.yaml", "-o", "out", "--json")
    assert code == 0 and not json.loads(out)["missing"] and len(json.loads(out)["rows"]) == 3
    write = [(f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/seen-{i}",) for i in range(6)]
    on_devices.spread(os.system, write, ["3", "5"])
    seen = [path.read_text().strip() for path in tmp_path.glob("seen-*")]
    assert len(seen) == 6 and set(seen) <= {"3", "5"}


def test_a_killed_worker_is_said() -> None:
    with pytest.raises(EspalierError, match="a process was killed in the middle of a run"):
        on_devices.spread(os._exit, [(9,)], ["3", "5"])


def test_a_network_that_looks_at_its_weights_is_built_later(run: Run, study: Path) -> None:
    study.write_text(STUDY.replace("digits_cnn", "'torchvision:regnet_y_400mf'"))
    code, out, _ = run("compare", "study.yaml", "--dry-run")
    assert code == 0 and "regnet" in out


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [("", 0, []), ("", 2, ["0", "1"]), ("2,7", 2, ["2", "7"]), ("2,-1", 1, ["2"])],
)
def test_devices_are_those_one_may_use(
    named: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert on_devices.devices() == expected


@pytest.mark.filterwarnings("ignore")  # ray's own
def test_on_ray(run: Run, tmp_path: Path):
    pytest.importorskip("ray")
    (tmp_path / "study.yaml").write_text(STUDY.replace("[0.8, 0.9]", "[0.8]"))
    code, out, _ = run("compare", "study.yaml", "-o", "out", "--engine", "ray", "--json")
    assert code == 0 and json.loads(out)["missing"] == 0
    _, local, _ = run("compare", "study.yaml", "-o", "local", "--json")
    accuracies = [[row["accuracy"] for row in json.loads(text)["rows"]] for text in (out, local)]
    assert accuracies[0] == accuracies[1]


def test_methods_that_take_part_in_some_of_it(run: Run, tmp_path: Path):
    text = STUDY.replace(
        "  - {name: gradual}\n",
        "  - {name: gradual, only: {sparsities: [0.8]}}\n"
        "  - {name: gradual, end: 0.5, label: gradual, only: {sparsities: [0.9], seeds: [1]}}\n",
    )
    (tmp_path / "study.yaml").write_text(text + "seeds: [0, 1]\n")
    _, out, _ = run("compare", "study.yaml", "--dry-run")
    assert out.count("gradual, 0.8, seed") == 2 and out.count("gradual, 0.9, seed 1") == 1
    assert "gradual, 0.9, seed 0" not in out


def test_a_study_is_fp32_wherever_it_runs_unless_it_says_otherwise(tmp_path: Path):
    for given, expected in (("", "fp32"), (", precision: bf16", "bf16")):
        (tmp_path / "study.yaml").write_text(STUDY.replace("lr: 0.05", f"lr: 0.05{given}"))
        planned, _ = gather(YamlFile(tmp_path / "study.yaml", StudyRecipe), None)
        assert {c.training.precision for c in planned.cells()} == {expected}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: gradual", "name: gradul", r"study.yaml, line 7: unknown method 'gradul'"),
        (
            "name: gradual",
            "name: gradual, label: dense",
            "line 7: two methods are called 'dense': give one a label",
        ),
        ("[0.8, 0.9]", "[0.8, 1.0]", "a sparsity lies in (0, 1), got 1"),
        ("published:", "teachers: [true]\npublished:", "starts from scratch: give it a start"),
        ("limit: 100}", "limit: 100}, start: nowhere.pt", "there is no"),
        ("limit: 100}", "limit: 100}, start: $NOWHERE/a.pt", "a variable that is not set"),
        ("name: gradual", "name: gradual, training: {rate: 1}", "unknown field 'training.rate'"),
        ("name: gradual", "name: gradual, training: {lr: -1}", "training `lr` must be a positive number"),
        (
            "name: gradual",
            "name: gradual, only: {sparsities: [0.7]}",
            "0.7 is none of the study's sparsities",
        ),
        ("name: gradual", "name: gradual, only: {seeds: [7]}", "line 7: 7 is none of the study's seeds"),
        ("name: gradual", "name: gradual, only: {teachers: [true]}", "True is none of the study's teachers"),
        ("published:", "teachers: []\npublished:", "teachers: tuple should have at least 1 item"),
        (
            "name: gradual",
            "name: gradual, training: {epochs: 3}",
            "line 7: `epochs` must be equal for all methods",
        ),
        ("name: gradual", "name: gradual, training: {lr: many}", "line 7: training.lr: "),
        ("name: gradual", "name: gradual, end: true", "line 7: end: it is a number, got True"),
        ("name: gradual", "name: gradual, schedule: quartic", "a schedule must be a number, got 'quartic'"),
        ("name: gradual", "name: gradual, updates: 2.5", "line 7: updates: input should be a valid integer"),
        ("name: gradual", "name: gradual, updates: many", "line 7: updates: input should be a valid integer"),
        ("name: gradual", "name: gradual, score: [1, 2]", "line 7: score: input should be an instance of"),
        (
            "name: gradual",
            "name: gradual, score: random=abc",
            "the seed of random must be a number, got 'abc'",
        ),
        ("floor=0.15", "floor=x", "allocation: a floor must be a number, got 'x'"),
        ("name: gradual", "name: smaller-dense, end: 1", "method dense takes no 'end'"),
        ("name: gradual", "name: st3, rescale: 3", "line 7: rescale: input should be a valid boolean"),
        (
            "name: gradual",
            "name: gradual, tune: {method.end: {low: 0.3, high: 0.9}}",
            "line 7: gradual has ranges, but the study has no tuning",
        ),
        (
            "published:",
            "tuning: {trials: 2, common: {epochs: {low: 1, high: 3}}}\npublished:",
            "line 10: `epochs` must be equal for all methods",
        ),
        (
            "published:",
            "tuning: {trials: 2, common: {rate: {low: 1, high: 3}}}\npublished:",
            "cannot tune 'rate' of dense to 1: Training has no field 'rate'",
        ),
        (
            "limit: 100}}\n",
            "limit: 100}}\n  - {model: digits_cnn, data: {name: digits}}\n",
            "line 4: two networks are called 'digits_cnn': give one another name",
        ),
        (
            "name: gradual",
            "name: gradual, training: {precision: bf16}",
            "line 7: `precision` must be equal for all methods",
        ),
        ("lr: 0.05", "lr: 0.05, stop_below: 0.1", "line 4: `stop_below` ends some runs before others"),
        ("model: digits_cnn", "model: digits_cn", "line 3: unknown model 'digits_cn'; known: "),
        (
            "data: {name: digits, limit: 100}}",
            "data: {name: digits, validation: 0}}\ntuning: {trials: 1, common: {lr: {low: 0.1, high: 0.2}}}",
            "line 3: tuning chooses by the validation split",
        ),
        ("title:", "titel:", "unknown field 'titel'. Did you mean 'title'"),
        (
            "model: digits_cnn",
            "modell: digits_cnn",
            "unknown field 'networks.0.modell'. Did you mean 'model'",
        ),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, old: str, new: str, said: str):
    (tmp_path / "study.yaml").write_text(STUDY.replace(old, new, 1))
    code, out, err = run("compare", "study.yaml", "-o", "out")
    assert code == 2 and said in err and err.count("\n") == 1 and not out


def test_folders_that_are_none(run: Run, study: Path):
    code, _, err = run("compare", "study.yaml", "-o", "study.yaml")
    assert code == 2 and "study.yaml is a file; the runs need a folder" in err
    code, _, err = run("compare", "study.yaml", "-o", "out", "--report-only", "--add", "nowhere")
    assert code == 2 and "there is no folder nowhere" in err
