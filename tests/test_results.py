"""What is written about the results is what the JSON files say."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import typer
from results import calibration, compared, figures, minilm, minilm_layerwise
from results.pages import compared as compared_page
from results.pages import gpu, resnet_cifar, variants
from results.pages._shared import HERE, load

from espalier.cli import app
from espalier.cli.study_words import gather
from espalier.compare import Outcome
from espalier.recipe import YamlFile, find_recipe
from espalier.study import StudyRecipe


def test_the_page_says_what_the_files_say() -> None:
    assert (HERE / "README.md").read_text() == figures.write_up(), "run `make figures`"


def test_the_table_of_the_readme_says_what_the_files_say() -> None:
    text = figures.README.read_text()
    assert text == figures.with_table(text), "run `make figures`"


def test_sparsity_at_a_drop_is_read_off_between_points() -> None:
    points = [{"sparsity": 0.5, "accuracy": 0.9}, {"sparsity": 0.7, "accuracy": 0.8}]
    assert resnet_cifar.sparsity_at_drop(points, 0.9, 0.05) == 0.6
    assert resnet_cifar.sparsity_at_drop(points, 0.9, 0.2) is None


def measured(part: str, what: str) -> float:
    """A goal of the benchmarks."""
    goals = load("benchmarks")["parts"][part]["goals"]  # type: ignore[index]
    (found,) = (goal["measured"] for goal in goals if goal["what"] == what)
    return float(found)


Quoted = Iterator[tuple[str, str]]
"""Page of the documentation, and a measured number as it has to stand there."""


def sizes() -> Quoted:
    """Of sparse files."""
    for zeros, file in load("benchmarks")["parts"]["sparse_file"]["measured"].items():  # type: ignore[index]
        share = float(zeros.split()[0]) / 100
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        values, stored = 32 * (1 - share), 8 * file["bytes"]["sparse"] / file["entries"]
        over = 100 * (measured("sparse_file", f"bytes of the sparse file over values + entropy, {zeros}") - 1)
        size = f"| {values:.3g} | {entropy:.3f} | {stored - values:.3f} | {over:.1f} % |"
        write = measured("sparse_file", f"encode, write over write dense, {zeros}")
        read = measured("sparse_file", f"read, decode over read dense, {zeros}")
        label = zeros.removesuffix(" zeros")
        yield "sparse-format", f"| {label} | 32 {size}"
        yield "sparse-format", f"| {label} | {write:.1f} | {read:.1f} |"
        if share == 0.9:
            whole = 100 * file["bytes"]["sparse"] / file["bytes"]["dense"]
            yield "how-to-choose", f"a float32 network takes {whole:.1f} % of its size"


def speeds() -> Quoted:
    """Of the optimizer and of curvature."""
    sgd = "SGD momentum .9"
    steps = ("GRDA", "target sparsity", "GRDA momentum .9")
    plain, compiled = (
        [measured("optimizer_step", f"step of {name}{path} over {sgd} fused") for name in steps]
        for path in ("", " compiled")
    )
    yield (
        "directional-training",
        "{:.1f} times for GRDA, {:.1f} for a target sparsity, {:.1f} for GRDA with momentum".format(*plain),
    )
    yield "directional-training", "with `compiled=True` {:.2f}, {:.2f} and {:.2f}".format(*compiled)
    whole = measured("training_step", f"ResNet-20 training step, target sparsity momentum .9 over {sgd}")
    search = 100 * measured("training_step", "threshold searches, share of ResNet-20's training step")
    yield (
        "directional-training",
        f"took {whole:.2f} times that of SGD, and threshold searches {search:.2f} % of it",
    )
    hessian, newton = (
        measured("curvature", f"product with {kind} over a gradient") for kind in ("hessian", "gauss-newton")
    )
    yield "landscape-curvature", f"that of {newton:.1f} gradients, beside {hessian:.1f} for the Hessian"
    products = measured("eigenpairs", "products for the leading eigenpairs")
    yield "landscape-curvature", f"ten of them took {products:g} products"
    many = measured("eigenpairs_10000", "products for the leading eigenpairs")
    yield "landscape-curvature", f"and {many:g} on 10,000 images"


def choices(rows: list[dict[str, Any]]) -> Quoted:
    """What the table of methods says of ResNet-20, means of three seeds."""
    known = {(row["label"], row["sparsity"], row["teacher"]): row for row in rows if row["n"]}

    def means(label: str, teacher: bool, *sparsities: float) -> str:
        found = [known[label, s, teacher] for s in sparsities]
        assert all(row["n"] == 3 for row in found)
        return " and ".join(f"{100 * row['mean']:.1f}" for row in found)

    steep, ramp = "target gRDA with a steep ramp to 0.9", "gradual magnitude with a steep ramp to 0.9"
    once = known["one-shot magnitude", 0.9, False]
    assert known[steep, 0.9, False]["best"] and once["tied"]
    first = f"three seeds, at 90 %: {means('one-shot magnitude', False, 0.9)} %, not told from the first, "
    yield "how-to-choose", f"{first}{means(steep, False, 0.9)} %"
    assert all(known[steep, s, False]["best"] for s in (0.95, 0.98))
    ours, default, other, one, paper = (
        means(label, False, 0.95, 0.98)
        for label in (steep, "target gRDA", ramp, "one-shot magnitude", "paper gRDA")
    )
    yield (
        "how-to-choose",
        f"at 95 and 98 %: {ours} %, with the default ramp {default}; gradual magnitude with the steep ramp {other}, "
        f"pruned once {one}; the paper's law with its c calibrated {paper}",
    )
    taught, target = (means(label, True, 0.9, 0.95) for label in (ramp, steep))
    yield "how-to-choose", f"three seeds, at 90 and 95 %: {taught} %, `target-grda` {target}"
    taught, target = (means(label, True, 0.98) for label in (ramp, steep))
    yield "how-to-choose", f"at 98 %: {target} %, gradual magnitude {taught}"
    steeper = [
        known[steep, s, False]["validation"] - known["target gRDA", s, False]["validation"]
        for s in (0.9, 0.95, 0.98)
    ]
    said = "at 90 %, {:+.2f} at 95 % and {:+.2f} at 98 %".format(*(100 * gain for gain in steeper[1:]))
    yield "directional-training", f"{100 * steeper[0]:+.2f} points of validation accuracy {said}"


def studies() -> Quoted:
    """Of calibration, and of the small network without retraining."""
    calibrated, small = load("calibration_error"), load("directional_small")
    assert calibrated is not None and small is not None
    for pilots, length in (("a fifth of the training the density at the end was", 4), ("a tenth", 2)):
        density = [
            (1 - row["reached"]["mean"]) / (1 - row["asked"])
            for row in calibrated["rows"]
            if calibrated["trainings"][row["training"]]["pilot epochs"] == length
        ]
        yield "directional-training", f"pilots of {pilots} {min(density):.1f} to {max(density):.1f} times"
    rows = load("compared-lenet5-variants")["rows"]  # type: ignore[index]
    mean = {(row["label"], row["sparsity"]): row["mean"] for row in rows if row["n"]}
    gains = [100 * (mean["target gRDA rescaled", s] - mean["target gRDA", s]) for s in (0.9, 0.95, 0.98)]
    yield (
        "directional-training",
        f"it was worth {', '.join(f'{g:.2f}' for g in gains)} points of accuracy at 90, 95, 98 % zeros",
    )
    scratch = {
        (row["label"], row["sparsity"]): row["mean"]
        for row in load("compared-lenet5")["rows"]  # type: ignore[index]
    }
    rows = load("compared-resnet20")["rows"]  # type: ignore[index]
    seed = {
        (row["label"], row["sparsity"]): 100 * row["by_seed"]["0"]
        for row in rows
        if row["n"] and not row["teacher"]
    }
    with_it, without = (
        ", ".join(f"{seed[label, s]:.1f}" for s in (0.9, 0.95, 0.98))
        for label in ("target gRDA rescaled", "target gRDA")
    )
    yield "directional-training", f"had {with_it} % with it and {without} % without (one seed)"
    layers = load("minilm_layerwise")["curves"]  # type: ignore[index]
    cosine = {
        way: next(p["embedding_cosine"]["mean"] for p in points if p["target"] == "0.6")
        for way, points in layers.items()
    }
    yield (
        "how-to-choose",
        f"a cosine of {cosine['SparseGPT']:.2f} to their own, Wanda {cosine['Wanda']:.2f}, magnitude "
        f"{cosine['magnitude, global']:.2f}",
    )
    yield from choices(rows)
    rescaled = ", ".join(f"{100 * scratch['target gRDA rescaled', s]:.1f}" for s in (0.9, 0.95, 0.98))
    yield "how-to-choose", f"three seeds, at 90, 95, 98 %: {rescaled} %"
    ends = small["simulation"]["0.9"]
    zeros = {way: f"{100 * end['zeros']['mean']:.0f} %" for way, end in ends.items()}
    yield (
        "directional",
        f"the path has {zeros['path']} zeros at loss {ends['path']['loss']['mean']:.0f}, the formula "
        f"{zeros['one shot']} at loss {ends['one shot']['loss']['mean']:.1f}, the soft threshold "
        f"{zeros['soft threshold']} at {ends['soft threshold']['loss']['mean']:.0f}",
    )
    half = {
        way: next(point["train loss"]["mean"] for point in points if point["sparsity"] == 0.5)
        for way, points in small["curves"].items()
    }
    yield (
        "directional",
        f"({half['directional path, anew']:.3f} beside {small['dense']['train loss']['mean']:.3f}), where "
        f"magnitude pruning is at {half['magnitude']:.2f} and the formula at {half['directional, one shot']:.2f}",
    )
    yield "directional", f"({half['OBS, anew']:.3f} at 50 %)"


@pytest.mark.parametrize(("page", "words"), [*sizes(), *speeds(), *studies()])
def test_numbers_of_the_documentation_are_those_of_the_files(page: str, words: str) -> None:
    text = " ".join((HERE.parent / "docs" / f"{page}.md").read_text().split())
    assert words in text, f"docs/{page}.md should say: {words}"


def reduced(seeds: int = 2, **hits: int) -> dict[str, object]:
    """The study of LeNet5 at 95 %, of which only these methods have run, with so many of 1000 right in every seed."""
    study, _ = gather(YamlFile(HERE / "studies" / "lenet5.yaml", StudyRecipe), None)
    cells = [cell for cell in study.cells() if cell.seed < seeds and cell.sparsity == 0.95]
    runs = [
        Outcome(cell.spec, cell.seed, accuracy=hit / 1000, sparsity=0.95, correct=torch.arange(1000) < hit)
        for cell in cells
        if (hit := hits.get(cell.contender.label.replace(" ", "_"))) is not None
    ]
    return {"sparsities": [0.95], "seeds": list(range(seeds)), **compared.reduced(cells, runs)}


@pytest.mark.parametrize(
    ("hits", "said"),
    [
        ({"target_gRDA": 950, "RigL": 900}, "at 95 % it has place 1 of 2, ahead of the next, RigL"),
        ({"target_gRDA": 950, "RigL": 949}, "1 of 2, not told apart from the next, RigL"),
        (
            {"target_gRDA": 949, "RigL": 950, "SET": 900},
            "2 of 3, not told apart from the first, RigL: less by 0.10 points (",
        ),
        ({"target_gRDA": 900, "RigL": 950}, "2 of 2, behind the first, RigL: less by 5.00 points ("),
        ({"target_gRDA": 900}, "at 95 % it is alone so far"),
        ({"RigL": 950}, "at 95 % it has not run"),
    ],
)
def test_where_target_grda_stands_is_what_the_comparison_says(hits: dict[str, int], said: str) -> None:
    assert said in compared_page.standing(reduced(**hits), 0.95)


def test_one_seed_says_nothing_of_where_it_stands() -> None:
    first = compared_page.standing(reduced(1, target_gRDA=950, RigL=900), 0.95)
    assert "place 1 of 2, not judged against the next, RigL" in first
    second = compared_page.standing(reduced(1, target_gRDA=900, RigL=950), 0.95)
    assert "place 2 of 2, with one seed, so not judged against the first, RigL: less by 5.00 points" in second


def test_what_has_not_run_is_said_to_be_missing_and_what_is_best_is_bold() -> None:
    result = reduced(target_gRDA=900, RigL=950)
    _, *rows = compared_page.accuracy_rows(result, compared_page.labels(result))
    assert rows[:3] == [
        ["RigL", "**95.00 ± 0.00** (2)"],
        ["target gRDA", "90.00 ± 0.00 (2)"],
        [rows[2][0], "not run"],
    ]
    assert result["missing"] == 2 * (len(rows) - 2)
    assert compared_page.core(result) == ["RigL", "target gRDA"]


def test_the_form_that_validation_chooses_is_compared_on_the_test_split() -> None:
    def row(label: str, validation: float, *accuracies: float) -> dict[str, object]:
        known = {"label": label, "sparsity": 0.9, "teacher": False, "n": len(accuracies)}
        return known | {"validation": validation, "by_seed": dict(zip("012", accuracies))}

    default, other = row("target gRDA", 0.8, 0.70, 0.72), row("target gRDA rescaled", 0.9, 0.75, 0.75, 0.5)
    st3 = row("ST-3", 0.99, 0.9)
    result = {"rows": [default, other, st3], "sparsities": [0.9]}
    assert variants.gained(result, 0.9).startswith(
        "at 90 % target gRDA rescaled, by 4.00 points of test accuracy ("
    )
    assert (
        variants.gained({**result, "rows": [default | {"validation": 0.95}, other]}, 0.9)
        == "at 90 % the default"
    )
    assert variants.gained({**result, "rows": [st3]}, 0.9) == "at 90 % nothing has run"
    assert variants.variants(result) == ["target gRDA", "target gRDA rescaled", "ST-3"]


def test_the_search_for_a_penalty_stays_between_what_is_too_small_and_too_large() -> None:
    def tried(strength: float, sparsity: float) -> dict[str, float]:
        return {"strength": strength, "sparsity": sparsity}

    assert calibration.following([tried(1.0, 0.8)], 0.1) == pytest.approx(2.0)
    assert calibration.following([tried(1.0, 0.0)], 0.1) == 4.0
    assert calibration.following([tried(1.0, 0.8), tried(2.0, 0.999)], 0.1) == pytest.approx(2.0**0.5)


def test_a_penalty_is_read_off_between_pilots_that_learn() -> None:
    pilots = [
        {"strength": 1.0, "sparsity": 0.6, "accuracy": 0.9},
        {"strength": 4.0, "sparsity": 0.9, "accuracy": 0.8},
        {"strength": 8.0, "sparsity": 0.9999, "accuracy": 0.1},
    ]
    asked = {"asked": 0.8, "strength": 4.0, "sparsity": 0.9, "rule": "reaches the sparsity", "pilots": pilots}
    found = calibration.between(asked, 2.0)
    assert found["strength"] == pytest.approx(1.0)  # half way in the logarithms, of a training twice as long
    assert found["rule"] == "between two pilots"
    beyond = {**asked, "asked": 0.98}
    assert calibration.between(beyond, 2.0) == beyond  # a network that does not learn says nothing


@pytest.mark.parametrize("words", gpu.commands(), ids=lambda words: " ".join(words[1:4]))
def test_commands_that_wait_for_a_gpu_are_commands(words: list[str]) -> None:
    program, *arguments = words
    assert program == "espalier"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    found = command.make_context("espalier", arguments).params
    if command.name == "train":
        find_recipe(found["recipe"])
    else:
        assert found["model"] in gpu.TRAINED


def test_rescaling_fits_the_teacher_better_in_each_pair() -> None:
    rows = load("compared-resnet20-taught")["rows"]  # type: ignore[index]
    loss = {r["label"]: r["by_epoch"]["train_loss"][-1] for r in rows if r["n"] and r["sparsity"] == 0.9}
    assert loss["target gRDA rescaled"] < loss["target gRDA"]
    assert loss["target gRDA rescaled to 0.5"] < loss["target gRDA to 0.5"]
    assert loss["ST-3"] < loss["ST-3 without rescaling"]
    assert loss["STR"] < loss["target gRDA rescaled"], "said to fit as well without"
    emptied = {r["label"] for r in rows if r["n"] and r["sparsity"] == 0.98 and r["emptied"]}
    assert emptied == {"target gRDA rescaled", "ST-3"}


def test_every_seed_draws_its_own_calibration_sentences() -> None:
    one, other = set(minilm_layerwise.calibration(0)), set(minilm_layerwise.calibration(1))
    assert len(one) == len(other) == minilm_layerwise.CALIBRATION
    assert len(one & other) < len(one) / 10, "draws that are nearly the same say nothing about the spread"
    assert not (one | other) & set(minilm.sentences())
