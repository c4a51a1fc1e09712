"""The flow of ones through the network of absolute weights, whose own numbers come back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import device_of, logits_of, modes


def synaptic_flow(model: nn.Module, parameters: dict[str, nn.Parameter], x: Tensor) -> dict[str, Tensor]:
    """dR/d|w| of the sum R of all outputs for an input of ones; see `espalier.scores.SynFlow`.

    Args:
        model: in eval mode for the pass; its floating tensors are float64 meanwhile, then as before.
        parameters: by which to differentiate.
        x: a batch of one input, for its shape only.

    Returns:
        Float64 tensors in the parameters' shapes, not negative.

    Raises:
        EspalierError: inputs that are not numbers (tokens), or a flow that is zero or not finite.
    """
    if not x.is_floating_point() or not len(x):
        raise EspalierError(
            "synaptic flow sends ones in the shape of an input through the network, and there is no input of "
            f"floating numbers (got {str(x.dtype).removeprefix('torch.')}, shape {tuple(x.shape)}); use another score"
        )
    with modes(model), _absolute(model, list(parameters.values())), torch.enable_grad():
        model.eval()
        ones = torch.ones_like(x, dtype=torch.float64, device=device_of(model))
        total = logits_of(model(ones)).sum()
        found = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    if not (torch.isfinite(total) and total > 0):
        raise EspalierError(
            f"the synaptic flow of this network is {total.item():g}: a layer is empty, or normalizes its input away "
            "(layer norm); use another score"
        )
    return dict(zip(parameters, found, strict=True))


@contextmanager
def _absolute(model: nn.Module, wanted: list[nn.Parameter]) -> Iterator[None]:
    """Absolute weights and no additive terms, in float64; one tensor after the other, without a second network."""
    chosen = {id(p) for p in wanted}
    undo: list[_Before] = []
    named = {id(t): (name, t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        for name, tensor in named.values():
            if not tensor.is_floating_point():
                continue
            last, parameter = name.rpartition(".")[2], isinstance(tensor, nn.Parameter)
            additive = "bias" in last or last == "running_mean"
            undo.append(_Before(tensor, whole=additive))
            if additive:
                tensor.data = torch.zeros_like(tensor.data, dtype=torch.float64)
            else:
                tensor.data = (tensor.data.abs() if parameter else tensor.data).double()
            if parameter:
                tensor.requires_grad_(id(tensor) in chosen)
        yield
    finally:
        for before in undo:
            before.put_back()


class _Before:
    """What a tensor was: all of it, or the signs of what comes back from its absolute values."""

    def __init__(self, tensor: Tensor, whole: bool) -> None:
        self.tensor, self.trained = tensor, tensor.requires_grad
        self.dtype, self.stride = tensor.dtype, tensor.stride()
        self.whole = tensor.data if whole else None
        self.negative = torch.signbit(tensor.data)

    def put_back(self) -> None:
        tensor, new = self.tensor, self.whole
        if new is None:
            # With the same strides, by which kernels are chosen.
            new = torch.empty_strided(tensor.shape, self.stride, dtype=self.dtype, device=tensor.device)
            new.copy_(tensor.data.abs())
            new[self.negative] = -new[self.negative]
        tensor.data = new
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(self.trained)
