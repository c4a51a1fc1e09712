"""Running a model on an example, and seeing what each layer meets."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from espalier._errors import EspalierError, first_line
from espalier._forward import modes

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""The input of a model: one tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True)
class Call:
    """One input of a layer.

    Args:
        shape: of the input.
        stride: of the input; a layer may be faster or slower for it.
        dtype: of the input.
        positions: vectors that are multiplied with the weight: tokens, output pixels.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    positions: int

    def input(self, generator: torch.Generator) -> Tensor:
        """A random input like it; its entries may share memory, as those of an expanded tensor do."""
        length = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        memory = torch.empty(max(1, length), dtype=self.dtype).normal_(generator=generator)
        return memory.as_strided(self.shape, self.stride)


def call(model: nn.Module, example: Example) -> Any:
    """Run a model on an example."""
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)


def _check(example: Any) -> None:
    """Refuse what is no input of a model at all."""
    if not isinstance(example, Tensor | tuple | list | Mapping):
        raise EspalierError(
            f"the example input must be a tensor, a tuple of arguments or a dict of them, got {type(example).__name__}"
        )
    if any(0 in shape for shape in shapes_of(example)):
        given = ", ".join(str(list(shape)) for shape in shapes_of(example))
        raise EspalierError(f"the example input is empty ({given}): nothing can be measured on it")


@contextmanager
def inference(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient, modes restored."""
    with torch.inference_mode():
        if not models:
            yield
            return
        with modes(models[0]):
            models[0].eval()
            with inference(*models[1:]):
                yield


def tensors_of(value: Any) -> list[Tensor]:
    """The floating tensors in whatever a model takes or returns."""
    leaves = pytree.tree_leaves(value)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        leaves = pytree.tree_leaves([dict(vars(leaf)) for leaf in leaves if hasattr(leaf, "__dict__")])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def shapes_of(example: Example) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors of an example, in order."""
    if isinstance(example, Mapping):
        example = dict(example)  # what tokenizers give is a mapping that torch does not look into
    return tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class Trace:
    """One run of a model on an example.

    Args:
        calls: module name -> what each Linear and Conv2d met, and how often.
        together: names of linear layers that got the very same tensor, where that was two or more of them.
        outputs: the floating tensors that came out.
    """

    calls: dict[str, Counter[Call]]
    together: tuple[tuple[str, ...], ...]
    outputs: list[Tensor]


def trace(model: nn.Module, example: Example) -> Trace:
    """Run a model once in eval mode and write down what its Linear and Conv2d met.

    Raises:
        EspalierError: the example is none or empty, the model does not run on it, or returns no floating tensor.
    """
    _check(example)
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, Counter[Call]] = {}
    given_to: dict[int, tuple[Tensor, list[str]]] = {}  # holds the inputs, so that no id is used twice
    handles = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            x, features = (
                inputs[0],
                output.shape[1 if isinstance(module, nn.Conv2d) and output.ndim == 4 else -1],
            )
            met = Call(tuple(x.shape), x.stride(), x.dtype, output.numel() // max(1, features))
            found.setdefault(names[module], Counter())[met] += 1
            if isinstance(module, nn.Linear):
                given_to.setdefault(id(x), (x, []))[1].append(names[module])

    for module in names:
        if isinstance(module, nn.Linear | nn.Conv2d):
            handles.append(module.register_forward_hook(note))
    try:
        with inference(model):
            outputs = tensors_of(call(model, example))
    except Exception as error:  # whatever the code of a network raises
        given = ", ".join(str(list(shape)) for shape in shapes_of(example)) or "no tensor"
        raise EspalierError(
            f"the model does not run on the example input ({given}): {type(error).__name__}: {first_line(error)}; "
            "give it as the model takes it, with its batch axis: a tensor, a tuple of arguments, or a dict of them"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise EspalierError("the model returns no floating tensor, so its outputs cannot be compared")
    calls = {name: found[name] for name in names.values() if name in found}
    together = tuple(
        tuple(group)
        for _, group in given_to.values()
        if len(set(group)) == len(group) > 1 and all(calls[name].total() == 1 for name in group)
    )
    return Trace(calls, together, outputs)


def disagreement(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest difference between two outputs, over the largest entry of the reference; infinite for other shapes."""
    if [x.shape for x in outputs] != [x.shape for x in reference]:
        return float("inf")
    worst = 0.0
    for a, b in zip(outputs, reference):
        if b.numel():
            scale = max(b.abs().max().item(), 1e-30)
            gap = (a.double() - b.double()).abs().max().item() / scale
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst
