"""Methods that prune while training, against slow transcriptions and cases by hand; the contract is elsewhere."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier.data import Dataset, Options, digits
from espalier.methods import (
    ACDC,
    L0,
    LC,
    SET,
    ST3,
    STR,
    Iterative,
    Plan,
    RigL,
    TargetGRDA,
    Threshold,
    VariationalDropout,
)
from espalier.methods.drop_and_grow import drop_and_grow
from espalier.methods.hard_concrete import BETA, CLOSED, stretched
from espalier.methods.learned_thresholds import decay
from espalier.methods.masked import without_zeros
from espalier.methods.ramp import sparsity_at
from espalier.methods.variational import divergence
from espalier.models import DigitsCNN
from espalier.optim import CUBIC, Lasso, PowerLaw, lost_scale
from espalier.train import Failed, Training, fit
from tests.reference import training_methods as reference

TRAINING = Training(epochs=1, batch_size=10, lr=0.1)
VALUES = [[0.5, -0.2, 0.05, 0.9], [-0.7, 0.31, -0.03, 0.11]]


def net(values: list[list[float]] = VALUES) -> nn.Linear:
    linear = nn.Linear(len(values[0]), len(values), bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(values))
    return linear


def plan(sparsity: float | None = 0.5, steps: int = 100) -> Plan:
    return Plan(sparsity, ("weight",), steps, TRAINING)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat(tensor: Tensor) -> list[float]:
    return tensor.detach().flatten().tolist()


# --- thresholds


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "decay": "coupled"}),
        ("adam", {"betas": (0.9, 0.999), "momentum": 0.0, "nesterov": False, "decay": "coupled"}),
        ("adamw", {"betas": (0.9, 0.999), "momentum": 0.0, "nesterov": False, "decay": "decoupled"}),
    ],
)
def test_the_optimizer_of_the_training_is_the_base_step(
    name: Literal["sgd", "adam", "adamw"], expected: dict[str, object]
):
    asked = dataclasses.replace(TRAINING, optimizer=name)
    optimizer = TargetGRDA().rule(net(), Plan(0.5, ("weight",), 100, asked)).optimizer()
    assert optimizer is not None
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in expected} == expected and ("betas" in group) == (name != "sgd")


def test_thresholds_refuse_what_contradicts_itself():
    with pytest.raises(
        EspalierError, match=r"`freeze_below` may freeze before a sparsity of 0\.5 is reached"
    ):
        Threshold(PowerLaw(0.1, 0.5), freeze_below=0.01).rule(net(), plan())
    with pytest.raises(
        EspalierError, match=r"a sparsity of 0\.5 needs 4 zeros, but `min_kept` leaves room for 3 in 8"
    ):
        TargetGRDA(min_kept=0.6).rule(net(), plan())


# --- the ramp


@pytest.mark.parametrize("method", [TargetGRDA(), Threshold(PowerLaw(0.01, 0.5))])
def test_what_does_not_train_is_not_pruned_by_the_optimizer(method: TargetGRDA | Threshold):
    model = net()
    model.weight.requires_grad_(False)
    with pytest.raises(EspalierError, match="weight does not train"):
        method.rule(model, plan())


def test_the_optimizer_needs_steps():
    with pytest.raises(EspalierError, match="prunes by its steps, and this run has none"):
        TargetGRDA().rule(net(), plan(steps=0))


@pytest.mark.parametrize("kept", [math.nan, 2])
def test_kept_fractions_are_checked_at_once(kept: float):
    with pytest.raises(EspalierError, match=r"`min_kept` is .*; it is a fraction of each tensor"):
        TargetGRDA(min_kept=kept)
    with pytest.raises(EspalierError, match=r"`min_kept` is .*; it is a fraction of each tensor"):
        Threshold(PowerLaw(0.01, 0.5), min_kept=kept)
    with pytest.raises(EspalierError, match="`freeze_below` is 3; it is a fraction"):
        Threshold(PowerLaw(0.01, 0.5), freeze_below=3)


def test_a_ramp_rises_from_where_the_network_is():
    assert sparsity_at(0.0, 0.2, 0.7, CUBIC) == 0.2
    assert sparsity_at(0.5, 0.2, 0.7, CUBIC) == pytest.approx(0.2 + 0.5 * 0.875)
    assert sparsity_at(1.0, 0.2, 0.7, CUBIC) == 0.7
    assert [sparsity_at(p, 0.9, 0.7, CUBIC) for p in (0.0, 0.5, 1.0)] == [0.9, 0.9, 0.7]


# --- STR


def test_str_computes_and_learns_as_the_paper_says():
    model = net()
    rule = STR(start=-2.0).rule(model, plan())
    (level,) = rule.extra()
    seen = rule.weights()
    assert seen is not None
    wanted = [reference.str_weight(w, -2.0) for w in flat(model.weight)]
    assert flat(seen["weight"]) == pytest.approx(wanted)
    upstream = torch.arange(1.0, 9.0).view(2, 4)
    (seen["weight"] * upstream).sum().backward()
    by_hand = reference.str_gradient_of_s(flat(model.weight), flat(upstream), -2.0)
    assert level.grad is not None and level.grad.item() == pytest.approx(by_hand)
    assert model.weight.grad is not None
    passing = model.weight.abs() > 1 / (1 + math.exp(2.0))
    assert torch.equal(model.weight.grad, upstream * passing)


def test_str_decays_towards_the_ramp():
    assert -10 * decay(-10.0, 0.02, 40) ** 40 == pytest.approx(math.log(0.02 / 0.98))
    assert decay(-10.0, 3.0, 1) > 0  # a threshold that the sigmoid cannot decay to
    model = net()
    rule = STR(settle=1.0).rule(model, plan())
    rule.begin(sgd(model))
    for step in range(1, 100):
        rule.before_step(step)
        rule.after_step(step)
    seen = rule.measured()
    assert seen is not None and int((seen["weight"] == 0).sum()) == 4


def test_str_lowers_thresholds_that_leave_too_few():
    model = net()
    rule = STR(start=-1.0, settle=0.01).rule(model, plan())  # a threshold of 0.27 leaves 4
    rule.extra()[0].data.fill_(-0.5)  # and 0.38 leaves 3
    rule.begin(sgd(model))
    rule.after_step(1)
    # The largest that has to go is 0.2: 0.31 is the fourth.
    assert flat(model.weight) == pytest.approx([0.3, 0, 0, 0.7, -0.5, 0.11, 0, 0])
    assert rule.weights() is None and rule.measured() is None


# --- ST-3


def test_st3_computes_as_the_paper_says_with_straight_gradients():
    model = net()
    rule = ST3(begin=0.0, end=0.01).rule(model, plan())
    rule.begin(sgd(model))
    rule.after_step(1)
    seen, measured = rule.weights(), rule.measured()
    assert seen is not None and measured is not None
    wanted = reference.st3_weights([flat(row) for row in model.weight], model.weight[0, 1].abs().item())
    assert flat(measured["weight"]) == pytest.approx(wanted[0] + wanted[1], rel=1e-5)
    assert flat(seen["weight"]) == pytest.approx(wanted[0] + wanted[1], rel=1e-5)
    upstream = torch.arange(1.0, 9.0).view(2, 4)
    (seen["weight"] * upstream).sum().backward()
    assert model.weight.grad is not None and torch.equal(model.weight.grad, upstream)


def test_lost_scale_of_units_without_weights():
    weight = torch.tensor([[0.0, 0.0], [0.1, -0.3]])
    assert lost_scale(weight, 0.2).flatten().tolist() == pytest.approx([1.0, 1.01 / 0.76])
    assert lost_scale(weight, 1.0).flatten().tolist() == pytest.approx([1.0, 101.0])
    assert lost_scale(torch.ones(3), 2.0).tolist() == [1.0] * 3


# --- L0


def test_hard_concrete_gates():
    for u, log_alpha in ((0.3, 1.0), (0.01, -2.0), (0.99, 0.0), (0.6, -0.5)):
        logit = torch.tensor(math.log(u) - math.log(1 - u) + log_alpha)
        assert stretched(logit / BETA).item() == pytest.approx(
            reference.hard_concrete(u, log_alpha), abs=1e-6
        )
    assert stretched(torch.tensor([CLOSED - 1e-4, CLOSED + 1e-3, 50.0])).sign().tolist() == [0, 1, 1]


def test_l0_cost_is_the_probability_of_open_gates():
    model = net()
    rule = L0(start=-1.0).rule(model, plan())
    open_gates = 0
    draws = 400
    for step in range(draws):
        rule.done = step
        seen = rule.weights()
        assert seen is not None
        open_gates += int((seen["weight"] != 0).sum())
    penalty = rule.penalty()
    assert penalty is not None
    expected = penalty.item() / rule.strength
    assert expected / 8 == pytest.approx(open_gates / draws / 8, abs=0.03)
    rule.done = 0
    again, same = rule.weights(), L0(start=-1.0).rule(model, plan()).weights()
    assert again is not None and same is not None and torch.equal(again["weight"], same["weight"])


def test_l0_raises_gates_where_too_many_had_closed():
    model = net()
    rule = L0(settle=0.01).rule(model, plan())
    rule.gates["weight"].data.copy_(torch.arange(8.0).view(2, 4) - 12)
    rule.begin(sgd(model))
    rule.after_step(1)
    # Gate 3 is just closed then, gates 4 to 7 open by 1 to 4.
    opened = stretched(CLOSED + torch.arange(1.0, 5.0))
    assert flat(model.weight) == pytest.approx([0.0] * 4 + flat(torch.tensor(VALUES[1]) * opened), rel=1e-4)


# --- variational dropout


@pytest.mark.parametrize("log_alpha", [-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
def test_divergence_is_that_of_the_log_uniform_prior(log_alpha: float):
    approximate = divergence(torch.tensor(log_alpha)).item()
    assert approximate == pytest.approx(reference.divergence_by_quadrature(log_alpha), abs=0.015)


def test_variational_dropout_keeps_the_weights_that_stand_out_of_their_noise():
    model = net()
    rule = VariationalDropout(start=-2.0, settle=0.01).rule(model, plan())
    measured = rule.measured()
    assert measured is not None
    # log alpha = -2 - 2 log |w| exceeds 3 below 0.082.
    assert flat(measured["weight"]) == pytest.approx([0.5, -0.2, 0, 0.9, -0.7, 0.31, 0, 0.11])
    rule.begin(sgd(model))
    rule.after_step(1)
    assert flat(model.weight) == pytest.approx([0.5, 0, 0, 0.9, -0.7, 0.31, 0, 0])


def test_noise_has_the_variance_it_says():
    rule = VariationalDropout(start=math.log(0.04)).rule(net([[0.5] * 4000]), plan())
    seen = rule.weights()
    assert seen is not None
    assert seen["weight"].std().item() == pytest.approx(0.2, rel=0.05)
    assert seen["weight"].mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_cost_rests_while_zeros_are_ahead_of_the_ramp():
    model = net()
    rule = VariationalDropout().rule(model, plan(0.5))
    rule.begin(sgd(model))
    rule.after_step(1)
    behind = rule.strength
    assert behind > 1 / 1000 and rule.penalty() is not None
    rule.gates["weight"].data.fill_(20.0)
    rule.after_step(2)
    assert rule.strength < behind and rule.penalty() is None


# --- SET and RigL


def test_drop_and_grow_by_hand():
    magnitude = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.0, 0.0])
    worth = torch.tensor([9.0, 1.0, 3.0, 9.0, 2.0, 0.0])
    mask = torch.tensor([True, True, False, True, False, False])
    assert drop_and_grow(magnitude, worth, mask, 1).tolist() == [True, False, True, True, False, False]
    assert drop_and_grow(magnitude, worth, mask, 2).tolist() == [True, False, True, True, False, False]
    assert drop_and_grow(magnitude, worth, mask, 0).tolist() == mask.tolist()
    # What is dropped may be grown at once.
    worth[1] = 5.0
    assert drop_and_grow(magnitude, worth, mask, 1).tolist() == mask.tolist()


def test_rigl_changes_its_mask_as_algorithm_1():
    generator = torch.Generator().manual_seed(3)
    model = net(torch.randn(6, 10, generator=generator).tolist())
    rule = RigL(every=10).rule(model, plan(0.7))
    optimizer = sgd(model)
    rule.begin(optimizer)
    before = rule.masks
    assert before is not None and before.kept == 18
    gradient = torch.randn(6, 10, generator=generator)
    model.weight.grad = gradient.clone()
    weights = flat(model.weight)
    fraction = 0.15 * (1 + math.cos(math.pi * 10 / 75))
    rule.before_step(9)
    assert rule.masks == before
    rule.before_step(10)
    values, kept = reference.rigl_update(
        weights, flat(gradient), before["weight"].flatten().tolist(), fraction
    )
    assert rule.masks is not None and rule.masks != before
    assert rule.masks["weight"].flatten().tolist() == kept
    assert flat(model.weight) == values
    optimizer.step()  # grown weights move at once, the others stay at zero
    assert (model.weight != 0).flatten().tolist() == kept
    rule.before_step(80)
    assert rule.masks["weight"].flatten().tolist() == kept


def test_set_grows_by_seed_and_step():
    def grown(seed: int, step: int) -> list[bool]:
        generator = torch.Generator().manual_seed(3)
        model = net(torch.randn(6, 10, generator=generator).tolist())
        training = Training(epochs=1, seed=seed)
        rule = SET(every=5).rule(model, Plan(0.7, ("weight",), 100, training))
        rule.begin(sgd(model))
        rule.before_step(step)
        assert rule.masks is not None and rule.masks.kept == 18
        return rule.masks["weight"].flatten().tolist()

    assert grown(0, 5) == grown(0, 5)
    assert grown(0, 5) != grown(1, 5) and grown(0, 5) != grown(0, 10)


def test_kept_zeros_become_visible():
    tensor, mask = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([True, False, True])
    assert without_zeros(tensor, mask).tolist() == pytest.approx([1e-7, 0.0, 2.0])


# --- AC/DC


def test_phases_of_a_hundred_steps():
    phases = ACDC(warmup=0.1, phase=0.1, last=0.7, final=0.9).phases(100)
    assert phases == {10: True, 20: False, 30: True, 40: False, 50: True, 60: False, 70: False, 90: True}
    ours = ACDC().phases(100)
    assert list(ours) == [*range(10, 80, 5), 85]
    assert [ours[step] for step in (10, 15, 70, 75, 85)] == [True, False, True, False, True]


def test_pruned_weights_train_again_in_dense_phases():
    model = net()
    optimizer = sgd(model)
    rule = ACDC(warmup=0.0, phase=0.25, last=0.5, final=0.75).rule(model, plan(0.5, 4))
    rule.begin(optimizer)
    zeros = []
    for step in range(1, 5):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        rule.after_step(step)
        zeros.append(int((model.weight == 0).sum()))
    assert zeros == [4, 0, 4, 4]
    assert rule.finish().kept == 4


# --- lottery tickets


@pytest.mark.parametrize(
    ("sparsity", "rounds"), [(0.0, 0), (0.2, 1), (0.36, 2), (0.9, 11), (0.95, 14), (0.98, 18)]
)
def test_rounds(sparsity: float, rounds: int):
    assert Iterative().rounds(sparsity) == rounds


def test_rounds_share_the_steps_and_each_sees_the_whole_schedule():
    rule = Iterative().rule(net(), plan(0.36, 90))
    assert rule.starts == [0, 30, 60]
    assert [rule.position(step) for step in (0, 1, 29, 30, 45, 60, 89, 90)] == [0, 3, 87, 0, 45, 0, 87, 89]
    late = Iterative(to=0.5).rule(net(), plan(0.36, 80))  # trainings of 40, 20 and 20 steps
    assert late.starts == [0, 40, 60] and late.first == 20
    assert [late.position(step) for step in (0, 20, 40, 59, 60)] == [0, 40, 40, 78, 40]


@pytest.mark.parametrize("rewind", ["weights", "rate"])
def test_what_is_rewound(rewind: str):
    model = net()
    optimizer = sgd(model)
    rule = Iterative(rewind, prune=0.5).rule(model, plan(0.75, 3))  # type: ignore[arg-type]
    rule.begin(optimizer)
    for step, zeros in ((1, 4), (2, 6), (3, 6)):
        model.weight.grad = model.weight.detach().sign()
        optimizer.step()
        trained = copy.deepcopy(model.weight.detach())
        rule.after_step(step)
        kept = model.weight != 0
        assert int((~kept).sum()) == zeros
        if step < 3:
            assert not optimizer.state  # momentum starts anew
            source = torch.tensor(VALUES) if rewind == "weights" else trained
            assert torch.equal(model.weight, source * kept)
    assert rule.finish().kept == 2


# --- LC


@pytest.mark.parametrize("multipliers", [True, False])
def test_lc_on_a_quadratic(multipliers: bool):
    a, curvature, kept, rounds = flat(torch.tensor(VALUES)), [1.0, 2, 1, 1, 0.5, 3, 1, 1], 3, 20
    model = net()
    method = LC(first=0.02, last=0.8, rounds=rounds, settle=1.0, multipliers=multipliers)
    rule = method.rule(model, plan(5 / 8, rounds))
    rule.begin(sgd(model))
    mus = []
    h = torch.tensor(curvature).view(2, 4)
    for step in range(1, rounds + 1):
        mus.append(rule.strength)
        # The exact L step, from the derivative of loss and penalty.
        penalty = rule.penalty()
        assert penalty is not None
        (pull,) = torch.autograd.grad(penalty, model.weight)
        mu = rule.strength
        with torch.no_grad():
            towards = model.weight - pull / mu  # theta + lambda / mu
            model.weight.copy_((h * torch.tensor(VALUES) + mu * towards) / (h + mu))
        if step == rounds:
            rule.advance(step)
        else:
            rule.after_step(step)
    _, theta, lam = reference.lc_quadratic(a, curvature, kept, mus, multipliers)
    # 1 - momentum over the rate is the unit of the pull.
    assert mus[0] == pytest.approx(0.02 * 0.1 / 0.1) and mus[-1] == pytest.approx(0.8)
    assert flat(rule.sparse["weight"]) == pytest.approx(theta, abs=1e-5)
    assert flat(rule.multiplier["weight"]) == pytest.approx(lam, abs=1e-5)
    rule.fix()
    assert flat(model.weight) == pytest.approx(theta, abs=1e-5) and rule.finish().kept == 3


# --- all


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=400))


@pytest.fixture(scope="module")
def trained(data: Dataset) -> DigitsCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN()
    fit(model, data, Training(epochs=4, batch_size=20, lr=0.05, augment=False))
    return model


@pytest.mark.parametrize("method", [STR(), L0(), VariationalDropout()], ids=lambda m: type(m).__name__)
def test_zeros_come_near_the_target_before_they_are_settled(
    method: STR | L0 | VariationalDropout, trained: DigitsCNN, data: Dataset
):
    model = copy.deepcopy(trained)
    training = Training(epochs=4, batch_size=20, lr=0.02, augment=False)
    history = fit(model, data, training, method=dataclasses.replace(method, settle=0.8), sparsity=0.8)
    assert history.epochs[3].sparsity == pytest.approx(0.8, abs=0.12)
    assert history.last.sparsity == pytest.approx(0.8, abs=1e-4)
    assert history.last.accuracy is not None and history.last.accuracy > 0.8


def test_a_ramp_that_begins_with_the_last_step_ends_with_it(data: Dataset):
    model = DigitsCNN()
    method = TargetGRDA(begin=0.95, end=1.0)
    history = fit(model, data, Training(epochs=2, batch_size=50), method=method, sparsity=0.9)
    assert history.last.sparsity == pytest.approx(0.9, abs=1e-4)


def test_more_zeros_than_asked_for_fail_the_run(data: Dataset, tmp_path: Path):
    training, model = Training(epochs=2, batch_size=50), DigitsCNN()
    for tried in (copy.deepcopy(model), model):  # again: marked failed, and not tried again
        with pytest.raises(Failed, match=r"more than the \d+ asked for, and without latents"):
            fit(tried, data, training, method=Threshold(Lasso(5.0)), sparsity=0.5, folder=tmp_path)


def test_refusals():
    for method, match in (
        (lambda: STR(settle=0), r"`settle` is a fraction of the run in \(0, 1\], got 0"),
        (lambda: STR(start=1.0), "`start` of a learned threshold must be negative, got 1"),
        (lambda: ST3(end=0.0), "0 <= begin < end <= 1, got 0 and 0"),
        (lambda: ST3(settle=0.3), "between the end of the ramp, 0.5, and that of the run, 1, got 0.3"),
        (lambda: ST3(updates=0), "at least 1, got 0"),
        (lambda: L0(travel=0.0), "`travel` is how far a latent can move in a run, positive, got 0"),
        (lambda: RigL(drop=1.0), r"`drop` is the fraction of the kept that changes, in \(0, 1\), got 1"),
        (lambda: SET(every=0), "`every` counts steps between changes, at least 1, got 0"),
        (lambda: ACDC(last=0.9), "0 <= warmup < last < final <= 1, got 0.1, 0.9 and 0.85"),
        (lambda: ACDC(phase=0.7), "at most the 0.65 of the run between .* got 0.7"),
        (lambda: Iterative("back"), '`rewind` is "weights" or "rate", got \'back\''),  # type: ignore[arg-type]
        (lambda: Iterative(prune=1.0), r"`prune` is a fraction of the weights left, in \(0, 1\), got 1"),
        (lambda: Iterative(to=1.0), r"`to` is a fraction of the first training, in \[0, 1\), got 1"),
        (lambda: LC(first=0.5, last=0.1), "0 < first <= last < 1, got 0.5 and 0.1"),
        (lambda: LC(rounds=1), "`rounds` counts C steps, at least 2, got 1"),
    ):
        with pytest.raises(EspalierError, match=match):
            method()
    for each in (STR(), ST3(), L0(), VariationalDropout(), SET(), RigL(), ACDC(), Iterative(), LC()):
        with pytest.raises(EspalierError, match="must be told how far to prune"):
            each.rule(net(), plan(None))


@pytest.mark.parametrize(
    "method", [STR(), ST3(), L0(), SET(), RigL(), Iterative(), LC()], ids=lambda m: type(m).__name__
)
def test_runs_without_steps_prune_too(method: STR, data: Dataset):
    model = DigitsCNN()
    history = fit(model, data, Training(epochs=0), method=method, sparsity=0.5)
    assert history.last.sparsity == pytest.approx(0.5, abs=1e-4)
