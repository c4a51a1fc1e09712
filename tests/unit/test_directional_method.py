"""Directional pruning as a method of a training run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from espalier import EspalierError
from espalier.compare import Contender, Network, Study, run
from espalier.data import Dataset, Options, digits
from espalier.directional import DirectionalPruning
from espalier.methods import Plan
from espalier.train import Epoch, Training, fit

TRAINING = Training(epochs=2, batch_size=50, lr=0.02, augment=False, seed=1, precision="fp32")
METHOD = DirectionalPruning(directions=3, examples=60, refresh=0.3)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=200))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)
        )


ENTRIES = 64 * 12 + 120


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_exactly_the_zeros_asked_for_at_any_moment(data: Dataset, at: float) -> None:
    model = net()
    method = DirectionalPruning(at, directions=3, examples=60)
    history = fit(model, data, TRAINING, method=method, sparsity=0.73)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in ("1.weight", "4.weight"))
    assert zeros == history.last.zeros == round(0.73 * ENTRIES)
    assert bool((model.get_parameter("1.bias") != 0).all())


def test_it_moves_the_weights_that_stay(data: Dataset) -> None:
    model, before = net(), net().state_dict()
    fit(model, data, Training(epochs=0), method=METHOD, sparsity=0.5)
    left = model.get_parameter("1.weight") != 0
    assert not torch.allclose(model.get_parameter("1.weight")[left], before["1.weight"][left])


def test_resumed_it_ends_with_the_same_bits(data: Dataset, tmp_path: Path) -> None:
    whole, resumed = net(), net()
    fit(whole, data, TRAINING, method=METHOD, sparsity=0.6)

    class Stop(Exception):
        pass

    def stop(epoch: Epoch, _: nn.Module) -> None:
        if epoch.epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        fit(resumed, data, TRAINING, method=METHOD, sparsity=0.6, folder=tmp_path, on_epoch=stop)
    resumed = net()
    history = fit(resumed, data, TRAINING, method=METHOD, sparsity=0.6, folder=tmp_path)
    assert history.resumed == 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_it_is_compared_like_any_other_method(data: Dataset, tmp_path: Path) -> None:
    network = Network("net", lambda seed: net(), lambda: data)
    study = Study("one", (network,), (Contender("directional", METHOD),), (0.5,), (0,), TRAINING)
    (cell,) = study.cells()
    outcome = run(cell, tmp_path)
    assert outcome is not None and outcome.sparsity == 0.5 and "DirectionalPruning" in cell.spec["method"]


def test_bad_values_are_refused() -> None:
    for name, value in (("at", 1.5), ("directions", 0), ("examples", 0), ("refresh", 0.0)):
        with pytest.raises(EspalierError, match=f"`{name}` must be"):
            DirectionalPruning(**{name: value})  # type: ignore[arg-type]
    rule = METHOD.rule(net(), Plan(0.5, ("1.weight",), 10, TRAINING))
    with pytest.raises(EspalierError, match="training data, and there is none"):
        rule.after_step(5)
