"""One step worked by hand, and what the hooks may and may not do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from espalier.apply import hold
from espalier.masks import Masks


class Recorder(TorchDispatchMode):
    """Remembers the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def layer() -> nn.Linear:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
    return module


KEEP_SECOND = Masks({"weight": torch.tensor([[False, True]])})


def test_one_step_of_momentum_by_hand() -> None:
    module = layer()
    step = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    step.state[module.weight]["momentum_buffer"] = torch.tensor([[7.0, 7.0]])
    with hold(module, KEEP_SECOND, step):
        assert step.state[module.weight]["momentum_buffer"].tolist() == [[0.0, 7.0]]
        module.weight.grad = torch.tensor([[3.0, 1.0]])
        step.step()
    # Buffer 0.9 * 7 + 1 = 7.3, weight 2 - 0.5 * 7.3.
    assert module.weight.grad.tolist() == [[0.0, 1.0]]
    assert step.state[module.weight]["momentum_buffer"].tolist() == [[0.0, pytest.approx(7.3)]]
    assert module.weight.tolist() == [[0.0, pytest.approx(-1.65)]]


def test_the_hooks_fill_and_nothing_else() -> None:
    """No operation that would make the host wait for a device, and no new tensor of the size of a "
    "parameter."""
    module = layer()
    step = torch.optim.SGD(module.parameters(), lr=0.0)
    with hold(module, KEEP_SECOND, step) as held:
        module.weight.grad = torch.ones(1, 2)
        with Recorder() as recorder:
            assert held._before_step(step, (step,), {}) is None
            held._after_step(step, (step,), {})
    assert recorder.names == ["masked_fill_.Scalar", "masked_fill_.Scalar"]


def test_the_closure_is_called_as_it_was_given() -> None:
    module = layer()
    step = torch.optim.SGD(module.parameters(), lr=1.0)

    def closure() -> Tensor:
        module.weight.grad = torch.ones(1, 2)
        return torch.tensor(5.0)

    with hold(module, KEEP_SECOND, step):
        assert step.step(closure) == 5
        assert module.weight.tolist() == [[0.0, 1.0]]
        assert step.step(closure=closure) == 5
    assert module.weight.tolist() == [[0.0, 0.0]]
    assert module.weight.grad is not None and module.weight.grad.tolist() == [[0.0, 1.0]]


def test_step_counters_of_scalar_parameters_are_not_state_of_the_weight() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(3.0))
    step = torch.optim.Adam(module.parameters())
    with hold(module, Masks({"scale": torch.tensor(False)}), step) as held:
        module.scale.grad = torch.tensor(1.0)
        step.step()
        held.apply_()
        assert module.scale.item() == 0
        assert step.state[module.scale]["step"] == 1


def test_two_holds_on_one_optimizer() -> None:
    module = layer()
    step = torch.optim.SGD(module.parameters(), lr=1.0)
    first = Masks({"weight": torch.tensor([[True, False]])})
    with hold(module, KEEP_SECOND, step), hold(module, first, step):
        module.weight.grad = torch.ones(1, 2)
        step.step()
    assert module.weight.tolist() == [[0.0, 0.0]]
