"""Operations counted as they run, against counts by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from espalier.flops import FlopCounter
from espalier.models import DigitsCNN


def test_a_network_counts_as_torch_counts_it():
    model, x = DigitsCNN(), torch.randn(4, 1, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    with FlopCounter() as ours:
        model(x).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gradients_of_grouped_convolutions_take_what_the_forward_pass_takes(groups: int):
    layer, x = nn.Conv2d(8, 16, 3, padding=1, groups=groups), torch.randn(2, 8, 5, 5, requires_grad=True)
    with FlopCounter() as forward:
        y = layer(x)
    assert forward.total == 2 * 2 * 16 * 5 * 5 * 9 * 8 // groups
    with FlopCounter() as backward:
        y.sum().backward()
    assert backward.total == 2 * forward.total
    layer.weight.requires_grad_(False)
    with FlopCounter() as inputs:
        layer(x).sum().backward()
    assert inputs.total == 2 * forward.total


def test_linear_layers_without_gradients():
    with FlopCounter() as counter, torch.no_grad():
        nn.Linear(3, 5)(torch.ones(7, 3))
    assert counter.total == 2 * 7 * 3 * 5
