"""Each mistake has its own message."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from espalier import EspalierError
from espalier.optim import (
    GRDA,
    ConstantLaw,
    DualAveraging,
    Lasso,
    LinearLaw,
    Polynomial,
    PowerLaw,
    ProxSGD,
    Settled,
    TargetSparsity,
    TimePowerLaw,
)

LAW = PowerLaw(0.01, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerLaw(-1.0, 0.5), "`c` of PowerLaw is -1.0; it must be a number >= 0"),
        (lambda: PowerLaw(float("nan"), 0.5), "`c` of PowerLaw is nan"),
        (lambda: PowerLaw(0.1, 1.5), r"`mu` of PowerLaw is 1.5; it must be in \[0, 1\]"),
        (lambda: TimePowerLaw(0.1, -0.5), "`mu` of TimePowerLaw is -0.5"),
        (lambda: TimePowerLaw(float("inf"), 0.5), "`c` of TimePowerLaw is inf"),
        (lambda: LinearLaw(-1.0), "`penalty` of LinearLaw is -1.0"),
        (lambda: Lasso(-2.0), "`penalty` of Lasso is -2.0"),
        (lambda: ConstantLaw(-3.0), "`value` of ConstantLaw is -3.0"),
        (lambda: Polynomial(0.0), "`power` of a schedule is 0.0; it must be a positive number"),
        (lambda: Polynomial("x"), "`power` of a schedule is 'x'; it must be a positive number"),  # type: ignore[arg-type]
        (lambda: Settled("a"), "`churn` of Settled is 'a'; it is a fraction"),  # type: ignore[arg-type]
        (lambda: Settled(0.1, reports=1.5), "`reports` of Settled is 1.5"),  # type: ignore[arg-type]
        (lambda: TargetSparsity(0.9, True), "`steps` is True; it counts steps"),
        (lambda: TargetSparsity(0.9, 10, kept=[50]), r"`kept` is \[50\]; give entries"),  # type: ignore[arg-type]
        (lambda: TargetSparsity(90, 100), "`sparsity` is 90; it is a fraction in"),
        (lambda: TargetSparsity(0.9, 100, warmup=-1), "`warmup` is -1; it counts steps"),
        (lambda: TargetSparsity(0.9, 10, warmup=10), "`steps` is 10: no ramp is left after 10 warm-up steps"),
        (lambda: TargetSparsity(0.9, 10, every=0), "`every` is 0; it counts steps between searches"),
        (lambda: PowerLaw("0.01", 0.5), "`c` of PowerLaw is '0.01'; it must be a number"),  # type: ignore[arg-type]
        (lambda: TimePowerLaw(0.01, None), "`mu` of TimePowerLaw is None"),  # type: ignore[arg-type]
        (lambda: TargetSparsity("0.9", 10), "`sparsity` is '0.9'; it is a fraction"),  # type: ignore[arg-type]
        (
            lambda: TargetSparsity(0.9, float("nan")),  # type: ignore[arg-type]
            "`steps` is nan; it counts steps, so it must be a whole number",
        ),
        (lambda: TargetSparsity(0.9, 10, every=2.5), "`every` is 2.5; it counts steps"),  # type: ignore[arg-type]
        (
            lambda: TargetSparsity(0.9, 10, "cubic"),  # type: ignore[arg-type]
            "`schedule` is 'cubic'; give the shape of the ramp",
        ),
    ],
)
def test_laws(make, message) -> None:
    with pytest.raises(EspalierError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": 0.5}, "`law` is 0.5; give a law, such as PowerLaw"),
        ({"lr": -0.1}, "`lr` is -0.1; it must be a number >= 0"),
        ({"lr": float("nan")}, "`lr` is nan"),
        ({"lr": "fast"}, "`lr` is 'fast'"),
        ({"lr": torch.ones(2)}, "`lr` is a tensor with several entries or on an accelerator"),
        ({"momentum": 1.0}, r"`momentum` is 1.0; it must be in \[0, 1\)"),
        ({"nesterov": True}, "`nesterov` needs a `momentum` above 0"),
        ({"betas": (0.9, 0.99), "momentum": 0.9}, "`betas` .* and `momentum` exclude each other"),
        ({"momentum": "0.9"}, r"`momentum` is '0.9'; it must be in \[0, 1\)"),
        ({"betas": 0.9}, r"`betas` is 0.9; it must be two numbers"),
        ({"weight_decay": "1e-4"}, "`weight_decay` is '1e-4'; it must be a number >= 0"),
        ({"min_kept": "some"}, "`min_kept` is 'some'; it is a fraction of each tensor"),
        ({"betas": (0.9, 1.0)}, r"`betas` is \(0.9, 1.0\); it must be two numbers"),
        ({"betas": (0.9, 0.99), "eps": 0.0}, "`eps` is 0.0; it must be above 0"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0"),
        ({"decay": "l2"}, "`decay` is 'l2'; it must be one of 'coupled', 'decoupled', 'prox'"),
        ({"scope": "all"}, "`scope` is 'all'; it must be one of 'weights', 'paper'"),
        ({"prune": "yes"}, "`prune` is 'yes'; it must be True, False, or None"),
        ({"min_kept": 1.0}, "`min_kept` is 1.0; it is a fraction of each tensor"),
        ({"min_kept": 0.1, "law": Lasso(0.1)}, "`min_kept` needs a law with a latent"),
        ({"freeze_below": True}, "`freeze_below` is True; give a fraction"),
        ({"freeze_below": 2.0}, "`freeze_below` is 2.0; it is a fraction of the entries"),
        (
            {"freeze_below": 0.1, "law": TargetSparsity(0.5, 10)},
            "`freeze_below` and TargetSparsity exclude each other",
        ),
        ({"compiled": True, "foreach": True}, "`compiled` and `foreach` exclude each other"),
    ],
)
def test_options(options, message) -> None:
    w = Parameter(torch.ones(2, 2))
    with pytest.raises(EspalierError, match=message):
        DualAveraging([w], **{"lr": 0.1, "law": LAW, **options})
    with pytest.raises(EspalierError, match=message):
        optimizer = DualAveraging([Parameter(torch.ones(2, 2))], 0.1, law=LAW)
        optimizer.add_param_group({"params": [w], **options})


@pytest.mark.parametrize("key", ["c", "mu", "penalty"])
def test_hyperparameters_of_laws_in_a_group(key) -> None:
    optimizer = GRDA([Parameter(torch.ones(2, 2))], 0.1)
    with pytest.raises(
        EspalierError, match=f"a group has `{key}`, which no step reads; give the group a `law`"
    ):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))], key: 0.5})


def test_numbers_of_laws_are_plain_and_equal() -> None:
    law = PowerLaw(np.float64(1), torch.tensor(0.5).item())
    assert law == PowerLaw(1, 0.5) and repr(law) == repr(PowerLaw(1, 0.5)) == "PowerLaw(c=1.0, mu=0.5)"
    assert type(law.c) is float
    w = Parameter(torch.ones(2, 2))
    target = TargetSparsity(np.float32(0.5), np.int64(10))  # type: ignore[arg-type]
    given: Any = {"lr": np.float32(0.125), "momentum": np.float64(0.9), "nesterov": np.bool_(True)}
    optimizer = DualAveraging([w], law=target, **given)
    optimizer.add_param_group(
        {
            "params": [Parameter(torch.ones(2, 2))],
            "betas": (np.float64(0.9), 0.99),
            "momentum": 0,
            "nesterov": False,
        }
    )
    w.grad = torch.ones(2, 2)
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    again = DualAveraging([w], 0.1, law=TargetSparsity(0.5, 10))
    again.add_param_group({"params": [Parameter(torch.ones(2, 2))], "betas": (0.9, 0.99)})
    again.load_state_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.ones(2, 2, dtype=torch.complex64), "a parameter is complex"),
        (torch.ones(2, 2, dtype=torch.int64), "a parameter has dtype torch.int64"),
    ],
)
def test_dtypes_without_a_threshold(parameter, message) -> None:
    optimizer = GRDA([torch.ones(2, 2)], 0.1)
    with pytest.raises(EspalierError, match=message):
        optimizer.add_param_group({"params": [parameter]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients() -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = GRDA(table.named_parameters(), 0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EspalierError, match=r"the gradient of 'weight' is sparse.*sparse=False"):
        optimizer.step()


def start(law: TargetSparsity, weights: torch.Tensor, **options) -> None:
    w = Parameter(weights)
    optimizer = DualAveraging([("layer.weight", w)], 0.1, law=law, **options)
    w.grad = torch.zeros_like(w)
    optimizer.step()


def test_targets_that_cannot_be_reached() -> None:
    with pytest.raises(
        EspalierError, match="needs 90 zeros, but `min_kept` leaves room for 80 in 100 entries; lower one"
    ):
        start(TargetSparsity(0.9, 10), torch.ones(10, 10), min_kept=0.2)
    with pytest.raises(EspalierError, match=r"is 50 zeros, but 60 of 100 entries are zero already"):
        start(TargetSparsity(0.5, 10), torch.tensor([0.0] * 60 + [1.0] * 40).view(10, 10))


def test_a_target_is_checked_before_its_first_search_whenever_that_is() -> None:
    """Also for the law that a group is given later, and again after a refusal that was caught."""
    w = Parameter(torch.tensor([0.0] * 60 + [1.0] * 40).view(10, 10))
    optimizer = DualAveraging([w], 0.1, law=PowerLaw(0.0, 0.5))
    w.grad = torch.zeros_like(w)
    optimizer.step()
    optimizer.param_groups[0]["law"] = TargetSparsity(0.5, 10)
    for _ in range(2):
        with pytest.raises(EspalierError, match=r"is 50 zeros, but 60 of 100 entries are zero already"):
            optimizer.step()


def test_a_target_without_anything_to_threshold() -> None:
    bias = Parameter(torch.ones(3))
    optimizer = DualAveraging([bias], 0.1, law=TargetSparsity(0.5, 10))
    bias.grad = torch.ones(3)
    with pytest.raises(EspalierError, match=r"a sparsity of 0\.5 is asked for, but nothing is thresholded"):
        optimizer.step()


def test_a_dense_group_may_come_when_the_target_is_reached() -> None:
    w, bias = Parameter(torch.arange(1.0, 5.0).view(2, 2)), Parameter(torch.ones(2))
    optimizer = DualAveraging([w], 0.1, law=TargetSparsity(0.5, 1))
    w.grad, bias.grad = torch.zeros_like(w), torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": [bias]})
    optimizer.step()
    assert int((w == 0).sum()) == 2 and torch.allclose(bias, torch.full((2,), 0.9))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            {"layer.wieght": 10},
            "`kept` names 'layer.wieght', which is not thresholded here. Did you mean 'layer.weight'",
        ),
        ({}, "`kept` says nothing of 'layer.weight'"),
        ({"layer.weight": 101}, "`kept` asks for 101 of 100 entries of 'layer.weight'"),
        ({"layer.weight": 20}, "`kept` sums to 20 entries, but the sparsity leaves 10"),
    ],
)
def test_allocations_that_do_not_fit(kept, message) -> None:
    with pytest.raises(EspalierError, match=message):
        start(TargetSparsity(0.9, 10, kept=kept), torch.ones(10, 10))


def test_an_allocation_below_the_floor() -> None:
    weights = {name: Parameter(torch.ones(10, 10)) for name in ("a", "b")}
    law = TargetSparsity(0.5, 10, kept={"a": 10, "b": 90})
    optimizer = DualAveraging(weights.items(), 0.1, law=law, min_kept=0.2)
    with pytest.raises(EspalierError, match="`kept` leaves 10 entries of 'a', but `min_kept` asks for 20"):
        optimizer.step()


def test_a_state_of_another_law() -> None:
    w = Parameter(torch.ones(2, 2))
    saved = GRDA([w], 0.1, 0.01, 0.6).state_dict()
    with pytest.raises(
        EspalierError, match=r"saved under PowerLaw\(c=0.01, mu=0.6\), but this optimizer has Lasso"
    ):
        ProxSGD([w], 0.1, 0.5).load_state_dict(saved)
    with pytest.raises(EspalierError, match="saved under another optimizer, without a law"):
        ProxSGD([w], 0.1, 0.5).load_state_dict(torch.optim.SGD([w], 0.1).state_dict())
