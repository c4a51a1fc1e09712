"""What a training costs: floating-point operations, dense and for what is not zero."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier._forward import as_input, modes
from espalier._types import Counts


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a whole training; a multiplication and an addition count as two.

    Args:
        forward: of all forward passes of the trained network, dense.
        backward: of all its backward passes, dense: twice the forward.
        teacher: of the teacher's forward passes.
        sparse: forward and backward if every product with a zero weight were left out, with each tensor's density
            taken as linear between the ends of two epochs. No hardware here does that; methods that need dense
            gradients on some steps (RigL, AC/DC) need more than it says.
        scoring: of what scores compute on training data, beside the training, counted as it ran, products with the
            Hessian too; None where it was not counted.
    """

    forward: int
    backward: int
    teacher: int
    sparse: int
    scoring: int | None = None

    @property
    def dense(self) -> int:
        """All that is computed here."""
        return self.forward + self.backward + self.teacher


def multiplications(model: nn.Module, example: Tensor) -> Counts:
    """Multiply-accumulates per example, by weight, of every convolution and linear layer that runs.

    Args:
        model: evaluated once, in eval mode, without gradients.
        example: inputs (B, ...); counts are for one of them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: Counts = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Linear):
            each = weight.numel() * (output.numel() // output.shape[-1])
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            each = weight.numel() * inputs[0][:, 0].numel()
        else:
            each = weight.numel() * output[:, 0].numel()
        name = names[id(weight)]
        found[name] = found.get(name, 0) + each // len(example)

    layers = (
        nn.Linear,
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, layers)]
    try:
        with modes(model), torch.no_grad():
            model.eval()
            model(as_input(model, example))
    finally:
        for handle in handles:
            handle.remove()
    return found


def cost(
    each: Counts,
    sizes: Counts,
    kept: Sequence[Mapping[str, int]],
    examples: int,
    teacher: Counts,
    scored: int = 0,
) -> Cost:
    """Cost of a training.

    Args:
        each: multiply-accumulates per example of the network, by weight.
        sizes: entries of each pruned weight.
        kept: entries that are not zero, by pruned weight, before the first epoch and after each.
        examples: trained on in an epoch.
        teacher: multiply-accumulates per example of the teacher; empty without one.
        scored: floating-point operations of scores.
    """
    epochs = len(kept) - 1
    forward = 2 * sum(each.values()) * examples * epochs
    sparse = 0.0
    for before, after in itertools.pairwise(kept):
        for name, macs in each.items():
            density = (before[name] + after[name]) / (2 * sizes[name]) if name in sizes else 1.0
            sparse += 3 * 2 * macs * density * examples
    taught = 2 * sum(teacher.values()) * examples * epochs
    return Cost(forward, 2 * forward, taught, round(sparse), scored)
