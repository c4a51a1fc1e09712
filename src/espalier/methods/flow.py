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
    undo: list[tuple[Tensor, torch.dtype, Tensor | None, bool]] = []
    named = {id(t): (name, t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    try:
        for name, tensor in named.values():
            if not tensor.is_floating_point():
                continue
            data, last = tensor.data, name.rpartition(".")[2]
            if "bias" in last or last == "running_mean":
                undo.append((tensor, data.dtype, data, tensor.requires_grad))
                tensor.data = torch.zeros_like(data, dtype=torch.float64)
            elif isinstance(tensor, nn.Parameter):
                undo.append((tensor, data.dtype, torch.signbit(data), tensor.requires_grad))
                tensor.data = data.abs().double()
            else:
                undo.append((tensor, data.dtype, None, False))
                tensor.data = data.double()
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(id(tensor) in chosen)
        yield
    finally:
        for tensor, dtype, kept, trained in undo:
            data = tensor.data.to(dtype)
            if kept is not None:
                # The sign of every absolute value, or the tensor itself.
                data = torch.where(kept, data.neg(), data) if kept.dtype == torch.bool else kept
            tensor.data = data
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(trained)
