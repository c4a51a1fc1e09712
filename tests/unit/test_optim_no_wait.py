"""`step` never asks the device for a value: on the meta device there is none, and asking raises."""

from typing import Any

import pytest
import torch

from espalier.optim import DualAveraging, Lasso, LinearLaw, PowerLaw, TargetSparsity, _members

LAW = PowerLaw(0.01, 0.51)


def test_asking_the_meta_device_raises() -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        torch.empty((), device="meta").item()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        torch.empty(3, device="meta").tolist()


def test_a_target_asks_once_when_it_first_applies() -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        steps(1, law=TargetSparsity(0.9, 40))


@pytest.mark.parametrize(
    "options",
    [
        {"law": LAW},
        {"law": LAW, "foreach": False},
        {"law": LAW, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        {"law": LAW, "momentum": 0.9, "weight_decay": 1e-4, "decay": "prox", "scope": "paper"},
        {"law": LAW, "betas": (0.9, 0.99), "weight_decay": 1e-2, "decay": "decoupled"},
        {"law": LinearLaw(0.1)},
        {"law": Lasso(0.1)},
        {"law": LAW, "min_kept": 0.1},
        {"law": TargetSparsity(0.9, 40)},
        {"law": TargetSparsity(0.9, 40), "min_kept": 0.05, "momentum": 0.9},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_members, "check_target", lambda *_: None)  # the one count, tested above
    optimizer = steps(70, **options)  # past the searches of the guard, the ramp and the exact end of a target
    assert optimizer.frozen == isinstance(options["law"], TargetSparsity)


def steps(count: int, **options: Any) -> DualAveraging:
    """An optimizer after some steps on parameters that have shapes and no values."""
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((300, 300), (20,))]
    optimizer = DualAveraging(parameters, 0.1, **options)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    return optimizer
