"""Comparison: counts by hand, statistics against scipy, runs that are done once and lose nothing."""

import contextlib
import dataclasses
import fcntl
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from espalier import EspalierError
from espalier.allocate import LAMP, Uniform
from espalier.compare import (
    Cell,
    Comparison,
    Contender,
    Network,
    Outcome,
    Range,
    Study,
    Tuning,
    changed,
    check,
    check_space,
    check_tuning,
    compare,
    difference,
    estimate,
    known,
    mcnemar,
    run,
    tune,
    untunable,
    untuned,
)
from espalier.compare.cost import cost, multiplications
from espalier.compare.running import networks
from espalier.compare.statistics import Crossing, area, crossing
from espalier.data import Options, digits
from espalier.directional import DirectionalPruning
from espalier.methods import Dense, Gradual, MovementPruning, OneShot, RigL, TargetGRDA, Threshold
from espalier.models import DigitsCNN
from espalier.optim import PowerLaw
from espalier.report.compare import as_text
from espalier.scores import GraSP, Random, Saliency, Sampling
from espalier.train import Training, fit

TRAINING = Training(epochs=2, batch_size=50, lr=0.05, augment=False)


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitsCNN()


def small() -> nn.Module:
    return DigitsCNN()


DATA = digits(Options(limit=100))
SCRATCH = Network("digits", build, lambda: DATA, source={"model": "digits_cnn"})
TRAINED = Network("trained", lambda _: build(0), lambda: DATA, parent=lambda: build(0), source={"start": "x"})


def cell(
    contender: Contender, sparsity: float | None = 0.8, network: Network = SCRATCH, seed: int = 0, **changes
) -> Cell:
    training = dataclasses.replace(TRAINING, seed=seed)
    return Cell(network, contender, sparsity, seed, changes.pop("teacher", False), training, **changes)


GRADUAL = Contender("gradual", Gradual())


# --- cost


def test_multiplications_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 64, 5),
    )
    found = multiplications(model, torch.zeros(4, 3, 8, 8))
    assert found == {
        "0.weight": 8 * 3 * 9 * 4 * 4,
        "1.weight": 8 * 9 * 4 * 4,
        "2.weight": 8 * 2 * 4 * 4 * 4,
        "4.weight": 128 * 5,
    }
    assert model.training


def test_multiplications_of_a_shared_layer_count_each_use():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert multiplications(model, torch.zeros(2, 4)) == {"0.weight": 32}


def test_cost_by_hand():
    found = cost(
        {"a": 100, "b": 10}, {"a": 20}, [{"a": 20}, {"a": 10}, {"a": 10}], examples=7, teacher={"a": 1000}
    )
    assert found.forward == 2 * 110 * 7 * 2
    assert found.backward == 2 * found.forward
    assert found.teacher == 2 * 1000 * 7 * 2
    # Densities of a: 0.75 over the first epoch, 0.5 over the second; b is dense.
    assert found.sparse == 6 * 7 * (100 * 0.75 + 10 + 100 * 0.5 + 10)
    assert found.dense == found.forward + found.backward + found.teacher


# --- statistics


def test_estimate_is_students():
    values = [0.8, 0.82, 0.86]
    found = estimate(values)
    expected = stats.t.interval(0.95, 2, loc=found.mean, scale=stats.sem(values))
    assert found.interval == pytest.approx(expected) and found.n == 3
    assert estimate([0.5]).interval is None
    with pytest.raises(EspalierError, match="a mean needs at least one run"):
        estimate([])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 15), (30, 30), (40, 12)])
def test_mcnemar_is_the_exact_binomial(b: int, c: int):
    n, k = b + c, min(b, c)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n if n else 1.0
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def right(count: int, n: int = 1000, offset: int = 0) -> Tensor:
    found = torch.zeros(n, dtype=torch.bool)
    found[offset : offset + count] = True
    return found


def test_a_clear_difference_is_called_better_and_its_reverse_is_not():
    one, other = [right(900), right(910)], [right(800), right(805)]
    found = difference(one, other)
    assert found.better and found.mean == pytest.approx(0.1025) and found.n == 2
    half = stats.t.ppf(0.975, 1) * 0.0025  # of 0.1 and 0.105, whose standard error is half their distance
    assert found.seeds == pytest.approx((0.1025 - half, 0.1025 + half))
    back = difference(other, one)
    assert not back.better and back.mean == pytest.approx(-found.mean)


def test_seeds_that_disagree_are_no_evidence():
    found = difference([right(900), right(700)], [right(800), right(790)])
    assert not found.better and found.seeds is not None and found.seeds[0] < 0 < found.seeds[1]


def test_few_examples_are_no_evidence():
    found = difference([right(5, 6)] * 2, [right(4, 6)] * 2)
    assert not found.better and found.seeds is not None and found.seeds[0] > 0


def test_one_seed_is_no_evidence_about_methods():
    found = difference([right(900)], [right(100)])
    assert not found.better and found.seeds is None and found.p < 1e-9 and found.examples[0] > 0.7


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_over_seeds_covers_what_it_says(n: int):
    """Of runs that differ by chance, 95 of 100 intervals hold the truth (to three standard errors of 2,000 draws)."""
    draws = torch.randn(2000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [estimate(row).interval for row in draws.tolist()]
    covered = sum(ends is not None and ends[0] <= 0 <= ends[1] for ends in found) / 2000
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / 2000))


def test_a_comparison_needs_pairs():
    with pytest.raises(EspalierError, match="the same seeds twice, got 1 and 2"):
        difference([right(1)], [right(1), right(2)])


def test_area_and_drop_by_hand():
    assert area([(0.9, 0.8), (0.5, 1.0)]) == pytest.approx(0.9)
    assert area([(0.5, 0.7)]) is None
    found = crossing([(0.9, 0.7), (0.5, 0.9)], 0.9, 0.01)
    assert found.side == "at" and found.sparsity == pytest.approx(0.52)
    assert crossing([(0.5, 0.9)], 0.9, 0.01) == Crossing(0.5, "above")
    assert crossing([(0.9, 0.89)], 0.9, 0.01) == Crossing(0.9, "at")  # 0.9 - 0.89 is not 0.01 in binary
    assert crossing([(0.5, 0.8), (0.9, 0.7)], 0.9, 0.01) == Crossing(0.5, "below")


# --- runs


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    found = run(cell(GRADUAL), tmp_path_factory.mktemp("study"))
    assert found is not None
    return found


def test_a_run(outcome: Outcome):
    assert outcome.failure is None and outcome.zeros == round(0.8 * outcome.entries)
    assert outcome.accuracy == float(outcome.correct.double().mean()) and len(outcome.correct) == 100
    assert outcome.cost is not None and 0 < outcome.cost.sparse < outcome.cost.forward + outcome.cost.backward
    dense = sum(4 * p.numel() for p in DigitsCNN().parameters())
    assert 0.2 * dense < outcome.bytes < 0.4 * dense
    assert [epoch["epoch"] for epoch in outcome.epochs] == [0, 1, 2] and outcome.validation is not None


def test_a_run_is_done_once(outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(cell(GRADUAL), tmp_path)

    def never(*_):
        raise AssertionError("trained twice")

    monkeypatch.setattr("espalier.compare.running._train", never)
    again = run(cell(GRADUAL), tmp_path)
    assert first is not None and again is not None
    assert dataclasses.replace(first, seconds=0, epochs=()) == dataclasses.replace(
        again, seconds=0, epochs=()
    )
    assert torch.equal(first.correct, again.correct) and torch.equal(first.correct, outcome.correct)


def test_an_interrupt_loses_nothing(tmp_path: Path, outcome: Outcome):
    def stop(done: int, total: int, word: str) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell(GRADUAL), tmp_path, stop)
    steps: list[int] = []
    found = run(cell(GRADUAL), tmp_path, lambda done, *_: steps.append(done))
    assert found is not None and torch.equal(found.correct, outcome.correct)
    assert steps[0] > 1  # the first epoch was not trained again


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path):
    asked = cell(GRADUAL)
    (tmp_path / asked.digest).mkdir()
    with (tmp_path / asked.digest / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(asked, tmp_path) is None
    assert run(asked, tmp_path) is not None


def test_a_failure_is_an_outcome_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hot = dataclasses.replace(cell(GRADUAL), training=dataclasses.replace(TRAINING, lr=1e30, momentum=0))
    found = run(hot, tmp_path)
    assert found is not None and found.failure is not None and "not finite" in found.failure
    assert "is kept in" in found.failure and (tmp_path / hot.digest / "run" / "state.pt").exists()
    again = run(hot, tmp_path)
    assert again is not None and again.failure == found.failure

    def broken(*_):
        raise MemoryError("too large")

    monkeypatch.setattr("espalier.compare.running._train", broken)
    other = run(cell(OTHER), tmp_path)
    assert other is not None and other.failure is not None and "MemoryError: too large" in other.failure
    assert (tmp_path / cell(OTHER).digest / "traceback.txt").exists()


OTHER = Contender("one-shot", OneShot())


def test_too_many_zeros_are_a_failure_not_a_row(tmp_path: Path):
    settled_late = Contender("law", Threshold(PowerLaw(50.0, 0.5), momentum=False))
    asked = cell(settled_late, sparsity=None)  # no sparsity: whatever comes is what was asked
    found = run(asked, tmp_path)
    assert found is not None and found.failure is None and found.sparsity > 0.9


def test_what_cannot_be_done_is_said_before_training():
    floor = Contender("floor", Gradual(allocation=Uniform(floor=0.5)))
    assert "the largest sparsity that can be reached is" in str(check(cell(floor)))
    assert "starts from scratch: there is no dense parent to teach" in str(check(cell(GRADUAL, teacher=True)))
    smaller = Contender("smaller", Dense(), smaller=True)
    assert "no narrower version of digits is known" in str(check(cell(smaller)))
    signed = Contender("GraSP", OneShot(GraSP(), LAMP()))
    assert "LAMP needs scores that are not negative, and those of GraSP may be" in str(check(cell(signed)))
    moved = Contender("movement", MovementPruning(LAMP()))
    assert "those of Movement may be; use Global, Uniform or ERK" in str(check(cell(moved)))
    kept = Contender("kept", TargetGRDA(min_kept=0.5))
    assert "but `min_kept` leaves room for" in str(check(cell(kept)))
    blind = cell(GRADUAL)
    blind = dataclasses.replace(blind, training=dataclasses.replace(TRAINING, labels=False))
    assert "training without labels needs a teacher" in str(check(blind))
    assert check(cell(GRADUAL)) is None and check(cell(GRADUAL, network=TRAINED, teacher=True)) is None


def test_what_a_network_or_a_run_leaves_no_room_for_is_said_before_training():
    def pruned(_: int) -> nn.Module:
        model = build(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(parameter.abs() > parameter.abs().flatten().quantile(0.9))
        return model

    sparse = dataclasses.replace(TRAINED, build=pruned)
    assert "entries are zero already" in str(check(cell(GRADUAL, network=sparse)))
    none = dataclasses.replace(TRAINING, epochs=0)
    stepless = dataclasses.replace(cell(Contender("movement", MovementPruning())), training=none)
    assert "this run has none" in str(check(stepless))
    blind = dataclasses.replace(SCRATCH, data=lambda: digits(Options(limit=100, validation=0.0)))
    assert "no validation split, which tuning chooses by" in str(
        untunable(cell(GRADUAL, network=blind), Tuning(1, {"lr": Range(0.1, 0.2)}))
    )
    assert untunable(cell(GRADUAL, network=blind), Tuning(1)) is None, "there is nothing to choose"


def test_what_scores_compute_is_counted(tmp_path: Path):
    scored, curved = (
        OneShot(Saliency(sampling=Sampling(60, 20))),
        DirectionalPruning(examples=20, directions=1, refresh=1.0, adjust=False),
    )
    contenders = (Contender("saliency", scored), Contender("directional", curved), OTHER)
    found, more, plain = (outcome.cost for c in contenders if (outcome := run(cell(c), tmp_path)))
    assert found and more and plain and plain.scoring == 0
    passes = (
        3 * found.forward * 60 // (2 * len(DATA.train))
    )  # forward and backward; the training has two epochs
    first = 2 * 16 * 9 * 64 * 60  # no gradient of the inputs
    assert found.scoring == passes - first
    assert more.scoring and more.scoring > 3 * passes, "products with the Hessian"


def test_every_seed_draws_another_random_mask(tmp_path: Path):
    masks = []
    for seed in (0, 1):
        model = build(0)
        fit(
            model,
            DATA,
            dataclasses.replace(TRAINING, epochs=0, seed=seed),
            method=OneShot(Random()),
            sparsity=0.5,
        )
        masks.append(torch.cat([p.flatten() != 0 for p in model.parameters() if p.ndim > 1]))
    assert 0.3 < float((masks[0] != masks[1]).double().mean()) < 0.7


def test_a_run_leaves_the_teacher_to_the_next():
    parent = build(0)
    network = dataclasses.replace(TRAINED, parent=lambda: parent)
    _, teacher = networks(cell(GRADUAL, network=network, teacher=True))
    assert teacher is not None and teacher is not parent


def test_a_smaller_network_is_trained_in_its_place(tmp_path: Path):
    network = dataclasses.replace(
        SCRATCH, smaller=lambda seed, sparsity: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    found = run(cell(Contender("smaller", Dense(), smaller=True), network=network), tmp_path)
    assert found is not None and found.failure is None and found.entries == 640 and found.zeros == 0


def test_a_broken_result_is_named(tmp_path: Path):
    asked = cell(GRADUAL)
    (tmp_path / asked.digest).mkdir()
    (tmp_path / asked.digest / "result.json").write_text("{}")
    with pytest.raises(
        EspalierError, match=r"result\.json is not the result of a run .* remove it to run it again"
    ):
        run(asked, tmp_path)


def test_two_processes_share_the_runs(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.test_compare import STUDY, run\n"
        "done = [run(c, Path(sys.argv[1]), lambda *_: None) for c in STUDY.cells()]\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    cells = list(STUDY.cells())
    found = [Outcome.load(tmp_path / c.digest / "result.json") for c in cells]
    assert len(list(tmp_path.iterdir())) == len(cells) and all(o.failure is None for o in found)


STUDY = Study(
    "two methods",
    (SCRATCH,),
    (Contender("dense", Dense()), GRADUAL, Contender("ours", TargetGRDA())),
    (0.8, 0.9),
    (0, 1),
    dataclasses.replace(TRAINING, epochs=1),
)


def test_a_study_lists_one_seed_of_everything_first():
    cells = list(STUDY.cells())
    assert [c.seed for c in cells] == [0] * 5 + [1] * 5
    assert [c.sparsity for c in cells[:5]] == [None, 0.8, 0.9, 0.8, 0.9]
    assert len({c.digest for c in cells}) == len(cells)


# --- summary


def made(label: str, sparsity: float | None, seed: int, hits: int, **changes) -> Outcome:
    spec = {
        "network": "n",
        "teacher": False,
        "label": label,
        "sparsity": sparsity,
        "training": {"seed": seed},
    }
    correct = right(hits)
    return Outcome(spec, seed, accuracy=hits / 1000, correct=correct, sparsity=sparsity or 0.0, **changes)


def rows(result: Comparison) -> dict[tuple[str, float | None], tuple[bool, bool | None]]:
    return {(row.label, row.sparsity): (row.best, row.tied) for row in result.rows}


def test_the_best_and_what_is_not_surely_worse():
    outcomes = [
        *(made("dense", None, seed, 950) for seed in (0, 1)),
        *(made("good", 0.9, seed, 900 + seed) for seed in (0, 1)),
        *(made("near", 0.9, seed, 899 + 2 * seed) for seed in (0, 1)),
        *(made("bad", 0.9, seed, 700) for seed in (0, 1)),
    ]
    found = compare(outcomes)
    assert rows(found) == {
        ("dense", None): (False, False),
        ("good", 0.9): (True, True),
        ("near", 0.9): (False, True),
        ("bad", 0.9): (False, False),
    }
    assert [row.label for row in found.rows] == ["dense", "good", "near", "bad"]
    curve = next(c for c in found.curves if c.label == "bad")
    assert curve.one_point == Crossing(0.9, "below") and curve.area is None and curve.sparsities == (0.9,)


def test_failures_are_in_no_mean_and_shown():
    found = compare([made("a", 0.9, 0, 900), Outcome(made("a", 0.9, 1, 0).spec, 1, failure="NaN")], missing=3)
    assert found.rows[0].accuracy is not None and found.rows[0].accuracy.mean == 0.9
    assert found.rows[0].failures == ("seed 1: NaN",) and found.missing == 3
    lost = compare([Outcome(made("a", 0.9, 1, 0).spec, 1, failure="NaN")])
    assert lost.rows[0].accuracy is None and not lost.rows[0].tied


def test_a_method_with_failed_runs_is_neither_the_best_nor_beside_it():
    fragile = [made("fragile", 0.9, seed, 950) for seed in (0, 1)]
    lost = [Outcome(made("fragile", 0.9, seed, 0).spec, seed, failure="NaN") for seed in (2, 3, 4)]
    steady = [made("steady", 0.9, seed, 900) for seed in range(5)]
    found = compare([*fragile, *lost, *steady])
    assert rows(found) == {("fragile", 0.9): (False, None), ("steady", 0.9): (True, True)}
    text = as_text(SimpleNamespace(title="t"), found, Path("x"))  # type: ignore[arg-type]
    assert "2 of 5, 3 failed" in text and "*steady" in text and "*fragile" not in text
    assert "Nor is anything said of a method with failed runs" in " ".join(text.split())
    assert rows(compare([*fragile, *lost])) == {("fragile", 0.9): (False, None)}, "alone it is no better"


def test_tensors_without_a_weight_are_named():
    epochs = ({"kept": {"a": 0, "b": 5}}, {"kept": {"a": 3, "b": 0, "c": 0}})
    whole, hollow = made("x", 0.9, 0, 900), made("x", 0.9, 1, 100, epochs=epochs)
    assert whole.emptied == () and hollow.emptied == ("b", "c")
    found = compare([whole, hollow])
    assert found.rows[0].emptied == ("seed 1: b, c",)
    assert "x at 0.9: seed 1: b, c" in as_text(SimpleNamespace(title="t"), found, Path("x"))  # type: ignore[arg-type]


def test_one_seed_is_not_judged_and_does_not_judge():
    found = compare(
        [
            *(made("good", 0.9, seed, 900 + seed) for seed in (0, 1)),
            made("lucky", 0.9, 0, 950),
            made("poor", 0.9, 1, 300),
            made("elsewhere", 0.9, 2, 800),
        ]
    )
    assert rows(found) == {
        ("lucky", 0.9): (False, None),
        ("good", 0.9): (True, True),
        ("elsewhere", 0.9): (False, None),
        ("poor", 0.9): (False, None),
    }
    text = as_text(SimpleNamespace(title="t"), found, Path("x"))  # type: ignore[arg-type]
    assert (
        "no common seed" in text and "60.10 % (one seed)" in text and "*good" in text and "*poor" not in text
    )


def test_a_method_that_failed_at_a_sparsity_does_not_rank_above_those_that_did_not():
    good = [made("good", s, 0, hits) for s, hits in ((0.9, 830), (0.95, 810), (0.98, 740))]
    fragile = [made("fragile", 0.9, 0, 829), made("fragile", 0.95, 0, 809)]
    lost = Outcome(made("fragile", 0.98, 0, 0).spec, 0, failure="NaN")
    assert [curve.label for curve in compare([*good, *fragile, lost]).curves] == ["good", "fragile"]


def test_two_specifications_under_one_name_are_refused():
    one, other = made("a", 0.9, 0, 900), made("a", 0.9, 1, 800)
    other.spec["training"]["epochs"] = 3
    with pytest.raises(
        EspalierError, match=r"n, a at 0\.9, but differ \(epochs was default and is 3\): give one"
    ):
        compare([one, other])


def test_runs_at_unequal_conditions_are_refused_whatever_their_labels(tmp_path: Path):
    one, other = made("a", 0.9, 0, 900), made("b", 0.9, 0, 800)
    other.spec["training"] |= {"epochs": 3, "lr": 0.2}
    with pytest.raises(
        EspalierError, match=r"n, a, 0\.9 .* n, b, 0\.9 .*\(epochs was default and is 3\), so"
    ):
        compare([one, other])
    other.spec["training"] = {"seed": 0, "lr": 0.2}  # a method may have a rate of its own
    assert len(compare([one, other]).rows) == 2
    one.spec["source"], other.spec["source"] = {"data": {"limit": 100}}, {"data": {"limit": 50}}
    with pytest.raises(EspalierError, match="limit was 100 and is 50"):
        compare([one, other])
    other.spec["teacher"] = True
    assert len(compare([one, other]).rows) == 2, "compared with those of its teacher alone"


def test_what_is_refused_is_named_by_its_folder(tmp_path: Path):
    for name, seed in (("one", 0), ("two", 1)):
        outcome = made("a", 0.9, seed, 900)
        outcome.spec["training"]["lr"] = seed
        (tmp_path / name).mkdir()
        outcome.save(tmp_path / name / "result.json")
    with pytest.raises(EspalierError, match=r"or remove \S+/one or \S+/two$"):
        compare([Outcome.load(tmp_path / name / "result.json") for name in ("one", "two")])


def test_a_run_counts_once():
    found = compare([made("a", 0.9, 0, 900), made("a", 0.9, 0, 100)])
    assert found.rows[0].accuracy is not None and found.rows[0].accuracy.n == 1


# --- tuning


def tuned(asked: Cell, tuning: Tuning, folder: Path) -> dict[str, Any]:
    found = tune(asked, tuning, folder)
    assert found is not None
    return found


def test_tuning_uses_validation_alone_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("optuna")
    tuning = Tuning(2, {"lr": Range(0.001, 0.1, log=True)})
    own = dataclasses.replace(GRADUAL, ranges={"method.end": Range(0.3, 0.9), "method.updates": Range(5, 9)})
    monkeypatch.setattr("espalier.compare.running._train", lambda *_: pytest.fail("the test split was read"))
    found = tuned(cell(own), tuning, tmp_path)
    assert set(found) == {"lr", "method.end", "method.updates"} and 0.001 <= found["lr"] <= 0.1
    assert isinstance(found["method.updates"], int) and 5 <= found["method.updates"] <= 9
    monkeypatch.setattr("espalier.compare.tuning._validation", lambda *_: pytest.fail("tuned twice"))
    assert tune(cell(own), tuning, tmp_path) == found
    moved = changed(cell(GRADUAL), found)
    expected = Gradual(end=found["method.end"], updates=found["method.updates"])
    assert moved.training.lr == found["lr"] and moved.contender.method == expected
    monkeypatch.setattr("espalier.compare.tuning._validation", lambda *_: 0.5)
    narrow = Tuning(1, {"lr": Range(0.2, 0.3)})
    assert 0.2 <= tuned(cell(GRADUAL), narrow, tmp_path)["lr"] <= 0.3, "other ranges are other trials"
    assert moved.digest != cell(GRADUAL).digest


def test_fields_inside_a_law_are_tuned():
    law = Contender("gRDA", Threshold(PowerLaw(0.1, 0.5)))
    moved = changed(cell(law), {"method.law.c": 0.2})
    assert moved.contender.method == Threshold(PowerLaw(0.2, 0.5))
    with pytest.raises(EspalierError, match=r"PowerLaw has no field 'd'"):
        changed(cell(law), {"method.law.d": 0.2})
    for name, low, high, match in (
        ("rate", 0.1, 0.2, "cannot tune 'rate' of gRDA to 0.1: Training has no field 'rate'"),
        ("method.law.mu", 0.5, 1.5, "cannot tune 'method.law.mu' of gRDA to 1.5: `mu` of PowerLaw is 1.5"),
        ("method.settle.x", 0.1, 0.2, "float has no field 'x'"),
    ):
        with pytest.raises(EspalierError, match=re.escape(match)):
            check_space(law, TRAINING, {name: Range(low, high)})
    rigl = Contender("RigL", RigL())
    for contender, name in ((GRADUAL, "method.updates"), (rigl, "method.every")):
        check_space(contender, TRAINING, {name: Range(2, 3)})
        with pytest.raises(EspalierError, match="both ends must be whole numbers"):
            check_space(contender, TRAINING, {name: Range(1.5, 3)})
    with pytest.raises(EspalierError, match="cannot tune 'nesterov' of gradual to 0: it is no number"):
        check_space(GRADUAL, TRAINING, {"nesterov": Range(0, 1)})


def sequence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tuning: Tuning, stop: int | None = None
) -> list[float]:
    """The rates that are tried, their accuracy by the way; a process that is killed at one of them."""
    tried: list[float] = []

    def validation(asked: Cell, *_: object) -> float:
        if len(tried) == stop:
            raise SystemExit  # nothing is written any more, as after a kill
        tried.append(asked.training.lr)
        return -abs(asked.training.lr - 0.03)

    monkeypatch.setattr("espalier.compare.tuning._validation", validation)
    with contextlib.suppress(SystemExit):
        tune(cell(GRADUAL), tuning, folder)
    return tried


RATES = {"lr": Range(0.001, 0.1, log=True)}


def test_tuning_that_was_killed_goes_on_with_the_trials_it_would_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")
    tuning = Tuning(14, RATES)  # of which the first ten are drawn at random
    whole = sequence(tmp_path / "whole", monkeypatch, tuning)
    parts = [sequence(tmp_path / "parts", monkeypatch, tuning, stop) for stop in (3, 8, None)]
    assert len(whole) == 14 and [rate for part in parts for rate in part] == whole


def test_a_choice_is_among_the_trials_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("optuna")
    tried = sequence(tmp_path, monkeypatch, Tuning(12, RATES))

    def best(count: int) -> float:
        return min(tried[:count], key=lambda rate: abs(rate - 0.03))

    assert best(12) != best(2), "or this shows nothing"
    for count in (2, 12, 1):
        assert known(cell(GRADUAL), Tuning(count, RATES), tmp_path) == {"lr": best(count)}
        assert tuned(cell(GRADUAL), Tuning(count, RATES), tmp_path) == {"lr": best(count)}
    assert known(cell(GRADUAL), Tuning(13, RATES), tmp_path) is None
    (found,) = tmp_path.glob("tuning/*/found.json")
    found.write_text('{"lr": 0.5}\n')  # as it was written once, of who knows how many trials
    assert known(cell(GRADUAL), Tuning(2, RATES), tmp_path) == {"lr": best(2)}


def test_tuning_that_another_process_is_at_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("optuna")
    sequence(tmp_path, monkeypatch, Tuning(1, RATES))
    (place,) = (path.parent for path in tmp_path.glob("tuning/*/found.json"))
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert tune(cell(GRADUAL), Tuning(1, RATES), tmp_path, wait=False) is None


def test_whatever_breaks_a_trial_is_the_recorded_reason_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("optuna")

    def breaks(*_: object) -> float:
        raise RuntimeError("CUDA error\nin many lines")

    monkeypatch.setattr("espalier.compare.tuning._validation", breaks)
    tuning = Tuning(1, RATES)
    with pytest.raises(EspalierError, match=r"^RuntimeError: CUDA error \(see traceback\.txt in tuning/"):
        tune(cell(GRADUAL), tuning, tmp_path)
    assert "CUDA error" in str(untuned(cell(GRADUAL), tuning, tmp_path))
    assert known(cell(GRADUAL), tuning, tmp_path) is None
    assert len(sequence(tmp_path, monkeypatch, tuning)) == 1
    assert untuned(cell(GRADUAL), tuning, tmp_path) is None


def test_processes_that_start_at_once_make_one_database(tmp_path: Path):
    pytest.importorskip("optuna")
    program = (
        "import sys; from pathlib import Path\n"
        "from espalier.compare.trials import database\n"
        "database(None, Path(sys.argv[1]))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in both] == [0] * 4


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nothing://me:secret@host/db", r"trials cannot be kept in nothing://me:\*\*\*@host/db \("),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("no url", "Could not parse"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_before_anything_is_trained(
    url: str, said: str, tmp_path: Path
):
    pytest.importorskip("optuna")
    with pytest.raises(EspalierError, match=said):
        check_tuning([cell(GRADUAL)], Tuning(1, RATES, url), tmp_path)


def test_a_run_that_stops_early_is_in_no_study():
    early = dataclasses.replace(TRAINING, stop_below=0.1)
    with pytest.raises(EspalierError, match="every method trains equally long: leave it out"):
        dataclasses.replace(STUDY, training=early)
    with pytest.raises(EspalierError, match="every method trains equally long"):
        Contender("a", Gradual(), {"stop_below": 0.1})


@pytest.mark.parametrize(
    "name",
    [
        *("epochs", "batch_size", "augment", "labels", "seed"),
        *("precision", "teacher_weight", "temperature"),
    ],
)
def test_what_must_be_equal_is_neither_changed_nor_tuned(name: str):
    with pytest.raises(EspalierError, match=f"`{name}` must be equal for all methods"):
        Contender("a", Gradual(), {name: 1})
    with pytest.raises(EspalierError, match=f"`{name}` must be equal for all methods"):
        Contender("a", Gradual(), ranges={name: Range(1, 2)})
    with pytest.raises(EspalierError, match=f"`{name}` must be equal for all methods"):
        Tuning(1, {name: Range(1, 2)})


def test_nothing_to_tune_costs_nothing(tmp_path: Path):
    assert tune(cell(GRADUAL), Tuning(5), tmp_path) == {} and not list(tmp_path.iterdir())


def test_bad_ranges():
    with pytest.raises(EspalierError, match="a range needs low < high"):
        Range(1, 0)
    with pytest.raises(EspalierError, match="both positive on a logarithmic scale"):
        Range(0, 1, log=True)
    with pytest.raises(EspalierError, match="tuning needs at least one trial, got 0"):
        Tuning(0)
