"""The control of every pruning method: a narrower dense network with as many parameters."""

from collections.abc import Callable

import torch
from torch import nn

from espalier._errors import EspalierError

_HALVINGS = 24  # of the interval of widths: finer than one channel in a million


def channels(count: int, width: float) -> int:
    """That share of a number of channels, to the nearest, at least 1.

    Raises:
        EspalierError: the width is not a positive number.
    """
    if not 0 < width < float("inf"):
        raise EspalierError(f"the width of a network is a positive factor on its channels, got {width:g}")
    return max(1, round(count * width))


def width_for(make: Callable[[float], nn.Module], parameters: int) -> float:
    """The width at which a network comes nearest to a number of parameters.

        >>> from espalier.models import CifarResNet
        >>> make = lambda width: CifarResNet(20, width=width)
        >>> width = width_for(make, 27_000)
        >>> sum(parameter.numel() for parameter in make(width).parameters())
        26875

    Nothing is initialized on the way: networks are made without data. Of the widths that give the same network the
    answer is one; as channels are whole numbers, the count is met to some percent, worse in very small networks.

    Args:
        make: width in (0, 1] -> network; wider ones have at least as many parameters.
        parameters: of a pruned network, those that are not zero, norms and biases included.

    Raises:
        EspalierError: even one channel in each layer is more than twice as many, or the whole network is fewer.
    """
    low, high = 1e-6, 1.0
    fewest, most = _parameters(make, low), _parameters(make, high)
    if fewest > 2 * parameters or most < parameters:
        raise EspalierError(
            f"a narrower network with about {parameters:,} parameters does not exist: widths give {fewest:,} to "
            f"{most:,}"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        count = _parameters(make, middle)
        if count <= parameters:
            low, fewest = middle, count
        else:
            high, most = middle, count
    return low if parameters - fewest <= most - parameters else high


def _parameters(make: Callable[[float], nn.Module], width: float) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make(width).parameters())
