"""Floating-point operations, counted as they run."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products of matrices and convolutions that run inside, forward and backward.

    A multiplication and an addition count as two. By torch's own formulas, but for the backward pass of a convolution,
    for whose weights torch 2.15 counts `groups` times too many. Fused recurrent layers (LSTM, GRU on some devices) have
    no formula and are not counted. `torch.utils.flop_counter.FlopCounterMode` would keep the graphs of all that runs
    inside until it ends.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        if formula is None:
            with self:  # made of others
                found = func.decompose(*args, **kwargs)
                if found is not NotImplemented:
                    return found
        out = func(*args, **kwargs)
        if packet is torch.ops.aten.convolution_backward:
            self.total += _of_backward(*args)
        elif formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _of_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Each of the two gradients takes what the forward pass does; of the inputs, or the weights, or both."""
    transposed, wanted = rest[4], rest[7]
    each = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed=transposed)
    return int(each * sum(wanted[:2]))
