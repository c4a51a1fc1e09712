"""Recipes: every packaged one is whole; every mistake is named with its field and line."""

from pathlib import Path

import pytest
import torch

from espalier import EspalierError
from espalier.cli import method_names, names
from espalier.methods import AbstractMethod, Dense, Gradual, OneShot, TargetGRDA, Threshold
from espalier.optim import Lasso, LinearLaw, Polynomial, PowerLaw, TimePowerLaw
from espalier.recipe import Recipe, find_recipe, packaged

GOOD = """\
title: a run
model: digits_cnn
data: {name: digits}
training:
  epochs: 2
  lr: 0.05
method:
  name: target-grda
  end: 0.8
sparsity: 0.9
"""

every_recipe = pytest.mark.parametrize("name", list(packaged()))


@every_recipe
def test_packaged_recipes_name_what_exists(name: str):
    recipe = find_recipe(name).value
    classes = {"torchvision:CIFAR100": 100, "imagenet": 1000}.get(recipe.data.name, 10)
    with torch.device("meta"):
        network = names.network(recipe.model, classes)
    assert sum(p.numel() for p in network.parameters()) > 0
    assert isinstance(method_names.method(recipe.method.name, recipe.method.options), AbstractMethod)
    assert recipe.title and recipe.training.epochs > 0


def test_every_task_has_the_papers_recipe_and_a_modern_one():
    schedules = {
        f"resnet50-imagenet-paper-{schedule}" for schedule in ("constant", "steps")
    }  # the paper has three
    tasks = {name.rpartition("-")[0] for name in set(packaged()) - schedules}
    expected = {f"{task}-{version}" for task in tasks for version in ("paper", "modern")}
    assert set(packaged()) == expected | schedules
    assert tasks == {
        "digits",
        "mnist-lenet5",
        "resnet20",
        "vgg16-cifar10",
        "wrn28x10-cifar10",
        "wrn28x10-cifar100",
        "resnet50-imagenet",
    }


@every_recipe
def test_the_papers_recipes_have_neither_momentum_nor_decay(name: str):
    recipe = find_recipe(name).value
    if "-paper" not in name:
        return
    assert recipe.training.momentum == 0 and recipe.training.weight_decay == 0
    assert recipe.method.name == "grda" and recipe.method.options["paper"] is True
    assert recipe.scope == "paper" and recipe.sparsity is None


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_recipe(tmp_path: Path):
    recipe = find_recipe(written(tmp_path, GOOD)).value
    assert isinstance(recipe, Recipe) and recipe.training.epochs == 2 and recipe.seeds == (0,)
    assert recipe.method.options == {"end": 0.8}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("model: digits_cnn\n", "", r"recipe\.yaml, line 1: the field 'model' is missing"),
        ("title", "titel", r"line 1: unknown field 'titel'\. Did you mean 'title'"),
        ("  lr: 0.05", "  learning_rate: 0.05", "line 6: unknown field 'training.learning_rate'"),
        ("  epochs: 2", "  epoch: 2", r"line 5: unknown field 'training\.epoch'\. Did you mean 'epochs'"),
        ("lr: 0.05", "lr: fast", r"line 6: training\.lr: .*valid number.*got 'fast'"),
        ("lr: 0.05", "lr: -1", r"line 4: training `lr` must be a positive number, got -1"),
        (
            "{name: digits}",
            "{name: digits, limits: 3}",
            r"line 3: unknown field 'data\.limits'\. Did you mean 'limit'",
        ),
        ("{name: digits}", "{limit: 3}", r"line 3: the field 'data\.name' is missing"),
        ("sparsity: 0.9", "sparsity: 90", r"line 10: sparsity: .*less than 1, got 90"),
        ("lr: 0.05", "lr: 0.05\n  lr: 0.5", r"line 7: 'lr' is given twice"),
        (
            "lr: 0.05",
            "schedule: cosin",
            r"line 6: training\.schedule: .*got 'cosin'\. Did you mean 'cosine'\?",
        ),
        ("lr: 0.05", "seed: 7", r"line 4: `training` has a `seed`, which no run would use; give .* `seeds`"),
        ("sparsity: 0.9", "sparsity: 0.9\nseeds: []", r"line 11: seeds: .*at least 1"),
        ("sparsity: 0.9", "sparsity: 0.9\nseeds: [0, 1, 0]", r"line 11: `seeds` names a seed twice: 0, 1, 0"),
        ("title: a run", "title: [", r"line \d+: this is not YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, old: str, new: str, match: str):
    assert old in GOOD
    with pytest.raises(EspalierError, match=match):
        find_recipe(written(tmp_path, GOOD.replace(old, new)))


def test_files_that_are_no_recipes(tmp_path: Path):
    with pytest.raises(EspalierError, match=r"no recipe 'digits-moderm'.*Did you mean 'digits-modern'"):
        find_recipe("digits-moderm")
    with pytest.raises(EspalierError, match="is not a recipe: it must be a mapping with title"):
        find_recipe(written(tmp_path, "- 1\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EspalierError, match=r"binary\.yaml, .*this is not YAML"):
        find_recipe(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dense", {}, Dense()),
        ("one-shot", {}, OneShot()),
        ("gradual", {"schedule": "linear", "end": 0.5}, Gradual(schedule=Polynomial(1.0), end=0.5)),
        ("target-grda", {"schedule": 2}, TargetGRDA(schedule=Polynomial(2))),
        (
            "grda",
            {"c": "5e-4", "mu": 0.6, "paper": True},
            Threshold(PowerLaw(5e-4, 0.6), paper=True, momentum=False),
        ),
        ("grda", {"c": 0.1, "mu": 0.6, "in_time": True}, Threshold(TimePowerLaw(0.1, 0.6), momentum=False)),
        ("rda", {"penalty": 0.1}, Threshold(LinearLaw(0.1), momentum=False)),
        ("lasso", {"penalty": 0.1}, Threshold(Lasso(0.1))),
    ],
)
def test_methods_by_name(name: str, options: dict[str, object], expected: AbstractMethod):
    assert method_names.method(name, options) == expected


def test_methods_with_words_inside():
    from espalier.allocate import ERK
    from espalier.scores import Random

    found = method_names.method("one-shot", {"score": "random=3", "allocation": "erk floor=0.01"})
    assert found == OneShot(Random(3), ERK(floor=0.01))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("gradul", {}, r"at name: unknown method 'gradul'.*Did you mean 'gradual'"),
        ("gradual", {"ende": 0.5}, r"at ende: method gradual takes no 'ende'; it takes .*Did you mean 'end'"),
        ("grda", {"c": 0.1}, "at name: method grda needs 'mu'"),
        ("grda", {"c": 0.1, "mu": 2}, r"at name: method grda: .*`mu`"),
        ("gradual", {"allocation": "globl"}, r"at allocation: allocation: unknown allocation 'globl'"),
        ("gradual", {"schedule": "steep"}, "at schedule: schedule: "),
        ("gradual", {"end": 2}, r"at name: method gradual: a ramp begins and ends"),
    ],
)
def test_mistakes_of_methods(name: str, options: dict[str, object], match: str):
    with pytest.raises(EspalierError, match=match):
        method_names.method(name, options, lambda field: f"at {field}: ")
