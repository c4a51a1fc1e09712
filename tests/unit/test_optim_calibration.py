"""c and mu from rates and a threshold, exactly; from short pilots, as well as they can tell."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from espalier import EspalierError
from espalier.data import Dataset, Options, digits
from espalier.optim import (
    GRDA,
    ConstantLaw,
    DualAveraging,
    LinearLaw,
    PowerLaw,
    TimePowerLaw,
    power_law_reaching,
    threshold_path,
)
from espalier.train import Training, fit
from espalier.train.calibration import Calibration, Pilot, _next, calibrate

RATES = [0.1] * 20 + [0.01] * 20
TRAINING = Training(
    epochs=4, batch_size=50, lr=0.2, momentum=0.0, weight_decay=0.0, augment=False, precision="fp32"
)


@pytest.mark.parametrize(
    "law", [PowerLaw(0.1, 0.6), TimePowerLaw(0.1, 0.6), LinearLaw(0.3), ConstantLaw(0.2)]
)
def test_the_path_is_the_optimizers(law) -> None:
    optimizer = DualAveraging([Parameter(torch.ones(1, 1))], 0.1, law=law, momentum=0.5)
    expected = []
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        expected.append(optimizer.param_groups[0]["threshold"])
    assert threshold_path(law, [rate / 0.5 for rate in RATES]) == expected


@pytest.mark.parametrize("mu", [0.4, 0.51, 1.0])
def test_c_is_exact(mu: float) -> None:
    law = power_law_reaching(0.37, RATES, mu)
    assert law.mu == mu
    assert threshold_path(law, RATES)[-1] == pytest.approx(0.37, rel=1e-12)
    assert power_law_reaching(0.0, RATES).c == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: power_law_reaching(-1.0, RATES), "`threshold` is -1.0; it must be a number >= 0"),
        (lambda: power_law_reaching(float("nan"), RATES), "`threshold` is nan"),
        (
            lambda: power_law_reaching(1.0, [0.0, 0.0]),
            "no threshold grows here: `rates` must hold a rate above 0",
        ),
        (lambda: power_law_reaching(1.0, []), "no threshold grows here"),
        (lambda: power_law_reaching(1.0, RATES, 2.0), "`mu` of PowerLaw is 2.0"),
    ],
)
def test_what_no_c_can_do(make, message) -> None:
    with pytest.raises(EspalierError, match=message):
        make()


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=400))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def test_a_proposal_is_kept_by_the_whole_training(data: Dataset) -> None:
    """Pilots of half the length: nothing else is changed, and the law is the one that the training follows."""
    model = net()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen: list[int] = []
    found = calibrate(
        model, data, TRAINING, 0.8, pilot_epochs=2, progress=lambda done, total, what: seen.append(done)
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(generator, torch.get_rng_state())
    assert model.training
    assert found.stretch == 2 and found.law.mu == 0.51
    assert found.low <= found.predicted <= found.high
    assert found.predicted == pytest.approx(0.8, abs=0.05)
    assert found.law in [pilot.law for pilot in found.pilots]
    assert len(seen) == (len(found.pilots) + 1) * 2 * data.train.steps(50)
    assert all(pilot.accuracy is not None for pilot in found.pilots)

    made: list[DualAveraging] = []

    def build(parameters) -> DualAveraging:
        made.append(GRDA(parameters, 0.2, found.law.c, found.law.mu))
        return made[0]

    fit(model, data, TRAINING, optimizer=build)
    assert made[0].param_groups[0]["threshold"] == pytest.approx(found.threshold, rel=1e-9)
    # In so few steps the start outweighs the noise, and the prediction is too low; but never below `low`.
    assert made[0].mask_report().sparsity >= found.low - 0.02


def test_a_pilot_of_full_length_is_the_training(data: Dataset) -> None:
    training = replace(TRAINING, epochs=1)
    found = calibrate(net(), data, training, 0.7, scope="paper", rounds=2)
    assert isinstance(found, Calibration) and found.stretch == 1
    assert found.low == found.predicted == found.high
    model = net()
    optimizers: list[DualAveraging] = []

    def build(parameters) -> DualAveraging:
        optimizers.append(GRDA(parameters, 0.2, found.law.c, found.law.mu, scope="paper"))
        return optimizers[0]

    fit(model, data, training, optimizer=build)
    assert optimizers[0].mask_report().sparsity == pytest.approx(found.predicted, abs=1e-12)


def pilot(c: float, sparsity: float) -> Pilot:
    return Pilot(PowerLaw(c, 0.51), sparsity, sparsity, None)


def test_the_next_c() -> None:
    # Density ~ 1 / c until two pilots say otherwise.
    assert _next([pilot(0.1, 0.85)], 1.0, 0.9) == pytest.approx(0.15)
    # Density .4 at .1 and .1 at .2 is a square: .2 is wanted at .1 * sqrt 2.
    assert _next([pilot(0.1, 0.6), pilot(0.2, 0.9)], 1.0, 0.8) == pytest.approx(0.1 * 2**0.5)
    # A collapse says only that c is too large.
    assert _next([pilot(0.1, 1.0)], 1.0, 0.9) == pytest.approx(0.05)
    # Never outside what is known.
    assert 0.1 < _next([pilot(0.1, 0.5), pilot(0.11, 1.0)], 1.0, 0.9) < 0.11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 90}, r"`sparsity` is 90; calibrate needs a fraction in \(0, 1\)"),
        ({"rounds": 0}, "`rounds` is 0; it counts pilots, and calibrate needs at least one"),
        ({"pilot_epochs": 5}, "`pilot_epochs` is 5; it must be between 1 and the training's 4"),
        (
            {"training": replace(TRAINING, optimizer="adamw")},
            "steps of type 'sgd', but the training has 'adamw'",
        ),
        ({"mu": 2.0}, "`mu` of PowerLaw is 2.0"),
        ({"rounds": 1.5}, "`rounds` is 1.5; it counts pilots"),
        ({"momentum": 0.0}, "calibrate takes the steps of the training, also its momentum"),
        ({"lr": 0.1}, "calibrate takes the steps of the training, also its lr"),
        ({"prune": False}, "a sparsity of 0.8 is asked for, but nothing is thresholded"),
    ],
)
def test_what_cannot_be_calibrated(data: Dataset, options, message) -> None:
    with pytest.raises(EspalierError, match=message):
        calibrate(net(), data, **{"training": TRAINING, "sparsity": 0.8, "pilot_epochs": 1, **options})
