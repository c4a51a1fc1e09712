"""The smaller dense network with as many parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from espalier import EspalierError
from espalier.models import CifarResNet, DigitsCNN, LeNet5, WideResNet, width_for


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def resnet20(width: float) -> nn.Module:
    return CifarResNet(20, width=width)


def wide(width: float) -> nn.Module:
    return WideResNet(16, max(1, round(4 * width)))  # whole widening factors only


CASES: list[tuple[Callable[[float], nn.Module], tuple[int, ...]]] = [
    (resnet20, (3, 32, 32)),
    (lambda width: LeNet5(width=width), (1, 28, 28)),
    (lambda width: DigitsCNN(width=width), (1, 8, 8)),
]


@pytest.mark.parametrize(("make", "shape"), CASES, ids=["resnet20", "lenet5", "digits_cnn"])
@pytest.mark.parametrize("sparsity", [0.8, 0.98])
def test_nearest_of_the_widths_around(
    make: Callable[[float], nn.Module], shape: tuple[int, ...], sparsity: float
):
    wanted = round((1 - sparsity) * parameters(make(1.0)))
    width = width_for(make, wanted)
    model = make(width)
    found = parameters(model)
    with torch.device("meta"):
        every = [parameters(make(width * (1 + step / 50))) for step in range(-10, 11, 2)]
    assert abs(found - wanted) <= min(abs(count - wanted) for count in every)
    assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_resnet20_at_a_tenth():
    model = CifarResNet(20, width=width_for(resnet20, 27_000))
    assert [len(model.conv1.weight), model.linear.in_features] == [5, 20]
    assert parameters(model) == pytest.approx(27_000, rel=0.03)
    assert parameters(CifarResNet(20, width=1.0)) == 269_722


def test_whole_widening_factors():
    assert round(4 * width_for(wide, 700_000)) == 2


def test_refusals():
    for count in (20, 300_000):
        with pytest.raises(EspalierError, match=r"with about .* does not exist: widths give \d+ to 269,722"):
            width_for(resnet20, count)
    for width in (0.0, float("nan")):
        with pytest.raises(EspalierError, match="positive factor on its channels"):
            LeNet5(width=width)
