import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from espalier import EspalierError
from espalier.data import Options, TensorSplit, digits
from espalier.models import DigitsCNN, LeNet5
from espalier.recalibration import estimate, recalibrate


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 10)
    )


def norm_of(model: nn.Sequential) -> nn.BatchNorm2d:
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d)
    return layer


def mean_of(model: nn.Sequential) -> Tensor:
    mean = norm_of(model).running_mean
    assert mean is not None
    return mean


def settled() -> nn.Sequential:
    """A network whose statistics fit its inputs."""
    model = net().eval()
    estimate(
        model, [norm_of(model)], digits(Options()).train, images=1000, batch_size=100, seed=1, augment=False
    )
    return model


def test_kept_where_it_raises_the_agreement():
    parent = settled()
    model = copy.deepcopy(parent).train()
    with torch.no_grad():
        mean_of(model).add_(5)
    data = digits()
    found = recalibrate(
        model, data.train, parent=parent, held_out=data.validation, images=500, batch_size=100
    )
    assert found.kept and found.before is not None and found.after is not None
    assert found.after.agreement > 0.9 > found.before.agreement
    assert (found.layers, found.inputs) == (1, 500)
    assert found.reason.startswith("new statistics kept: agreement with the parent 0.")
    assert (mean_of(model) - mean_of(parent)).abs().max() < 0.1
    assert model[1].momentum == 0.1 and all(m.training for m in model.modules())


def test_undone_where_it_does_not_help():
    parent = settled()
    model = copy.deepcopy(parent)
    before = copy.deepcopy(model.state_dict())
    data = digits()
    found = recalibrate(model, data.train, parent=parent, held_out=data.validation, images=20, batch_size=10)
    assert not found.kept and found.reason.startswith("old statistics kept")
    assert found.before is not None and found.before.agreement == 1.0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_labels_are_not_read():
    parent = settled()
    data = digits(Options(limit=60))
    assert isinstance(data.train, TensorSplit)
    blind = TensorSplit("train", data.train.images, torch.full((2000,), -1), data.train.rows, 16.0)
    found = recalibrate(copy.deepcopy(parent), blind, parent=parent, held_out=blind, batch_size=20)
    assert found.inputs == 60


def test_same_statistics_as_update_bn():
    data, model = digits(Options(limit=100)), DigitsCNN().eval()
    other = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    used = estimate(model, layers, data.train, images=70, batch_size=30, seed=4, augment=False)
    assert used == 60
    update_bn(list(data.train.inputs(30, seed=4))[:2], other)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_no_batch_norm_says_so():
    data, model = digits(Options(limit=4)), LeNet5()
    found = recalibrate(model, data.train, parent=LeNet5(), held_out=data.validation)
    assert (found.kept, found.layers, found.before) == (False, 0, None)
    assert found.reason == "the network has no batch norm with statistics"


def test_refusals():
    data, model = digits(Options(limit=4)), net()
    with pytest.raises(EspalierError, match="must not be the model itself"):
        recalibrate(model, data.train, parent=model, held_out=data.validation)
    with pytest.raises(EspalierError, match="at least 2 inputs in a batch, got 1"):
        recalibrate(model, data.train, parent=net(), held_out=data.validation, batch_size=1)


def test_statistics_come_from_inputs_as_in_training():
    """Augmented like the inputs that the old statistics were gathered from; the same seed gives the same ones."""
    data, model = digits(Options(limit=200)), net()

    def mean(augment: bool, seed: int) -> Tensor:
        estimate(model, [norm_of(model)], data.train, images=100, batch_size=50, seed=seed, augment=augment)
        return mean_of(model).clone()

    assert torch.equal(mean(True, 1), mean(True, 1))
    assert not torch.equal(mean(True, 1), mean(True, 2))
    assert not torch.equal(mean(True, 1), mean(False, 1))
