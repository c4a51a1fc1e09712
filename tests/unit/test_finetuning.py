import copy
from typing import Any

import pytest
import torch
from torch import nn

from espalier import finetuning
from espalier._forward import collect_logits
from espalier.data import Dataset, Options, digits
from espalier.finetuning import finetune, masks_of, search, stages_of
from espalier.models import DigitsCNN
from espalier.pruning import prune
from espalier.train import Training


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=150))


@pytest.fixture
def parent() -> nn.Module:
    return DigitsCNN()


def test_each_stage_is_measured_once_and_named(
    parent: nn.Module, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    collect = collect_logits

    def counted(model: nn.Module, split: Any, **options: Any) -> torch.Tensor:
        read.append(split.name)
        return collect(model, split, **options)

    monkeypatch.setattr(finetuning, "collect_logits", counted)
    model = copy.deepcopy(parent)
    masks = prune(model, 0.5)
    told: list[str] = []
    result = finetune(
        model, data, Training(epochs=1), masks=masks, parent=parent, finish=lambda: told.append("finished")
    )
    assert [stage.name for stage in result.stages] == ["parent", "pruned", "fine-tuned"]
    assert read == ["test"] * 3
    assert told == ["finished"]
    assert result.zeros == masks.entries - masks.kept
    assert result.stages[0].drop is None and result.stages[1].similarity is not None


def test_without_epochs_nothing_is_trained(parent: nn.Module, data: Dataset) -> None:
    model = copy.deepcopy(parent)
    masks = prune(model, 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = finetune(model, data, Training(epochs=0), masks=masks)
    assert [stage.name for stage in result.stages] == ["pruned"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_network_is_like_itself(parent: nn.Module, data: Dataset) -> None:
    dense, same = stages_of({"a": parent, "b": copy.deepcopy(parent)}, data.test)
    assert dense.drop is None
    assert same.drop is not None and same.drop.difference == 0
    assert same.similarity is not None and same.similarity.agreement == 1
    assert same.to_dict()["accuracy"] == dense.to_dict()["accuracy"]


@pytest.mark.parametrize(("labels", "teach"), [(True, False), (True, True), (False, True)])
def test_a_search_trains_as_the_final_run_will(
    parent: nn.Module, data: Dataset, monkeypatch: pytest.MonkeyPatch, labels: bool, teach: bool
) -> None:
    teachers: list[bool] = []
    monkeypatch.setattr(finetuning, "fit", lambda *_, teacher, **__: teachers.append(teacher is not None))
    search(prune, parent, data, drop=0.5, training=Training(labels=labels), teach=teach, resolution=0.5)
    assert teachers and set(teachers) == {teach}


def test_a_search_leaves_the_parent_alone_and_tells_each_step(parent: nn.Module, data: Dataset) -> None:
    before = copy.deepcopy(parent.state_dict())
    told: list[str] = []
    found = search(prune, parent, data, agreement=0.5, resolution=0.3, progress=told.append)
    assert len(told) == len(found.points) >= 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.state_dict().items())


def test_masks_of_a_pruned_network_are_its_zeros(parent: nn.Module) -> None:
    masks = prune(parent, 0.7)
    assert masks_of(parent, list(masks)).digest == masks.digest
