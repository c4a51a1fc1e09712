"""Models from elsewhere (torchvision, an import path), and weights into a model."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import CheckpointError, EspalierError, listing, near
from espalier._types import Tensors


@dataclass(frozen=True)
class Filled:
    """A network filled from a checkpoint.

    Args:
        model: the network.
        places: name in the network's state dict -> name in the checkpoint, of tensors that were taken as they
            are (but for their dtype), so that they can be written back.
    """

    model: nn.Module
    places: Mapping[str, str]

    @property
    def unplaced(self) -> list[str]:
        """Floating tensors of the network that no single tensor of the checkpoint holds."""
        return [
            name
            for name, tensor in self.model.state_dict().items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and name not in self.places
        ]


def torchvision_model(name: str, classes: int | None = None) -> nn.Module:
    """Build a torchvision network by name, without weights.

    Args:
        name: for instance "resnet18", "mobilenet_v2", "vit_b_16".
        classes: number of logits; None keeps torchvision's default (1000 for classifiers).

    Raises:
        EspalierError: torchvision is missing, or has no model of that name.
    """
    try:
        from torchvision import models
    except ImportError:
        raise EspalierError(f"torchvision:{name} needs torchvision: pip install 'espalier[train]'") from None
    known = models.list_models()
    if name not in known:
        raise EspalierError(f"torchvision has no model {name!r}.{near(name, known)}")
    return models.get_model(name, **({} if classes is None else {"num_classes": classes}))  # type: ignore[no-any-return]


def imported(path: str, **arguments: Any) -> nn.Module:
    """Call `package.module:function` and return its model; the current folder is importable.

    Args:
        path: module and attribute with a colon between; the attribute is called.
        arguments: passed on.

    Raises:
        EspalierError: no colon, no such module or attribute, it needs other arguments, or the result is no
            `nn.Module`.
    """
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise EspalierError(f"model {path!r} must look like package.module:function")
    try:
        sys.path.insert(0, "")
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise EspalierError(f"model {path!r}: {error}; is it installed, or in the current folder?") from error
    finally:
        sys.path.remove("")
    function = getattr(module, attribute, None)
    if not callable(function):
        raise EspalierError(
            f"model {path!r}: {module_name} has no function {attribute!r}.{near(attribute, dir(module))}"
        )
    model = _called(path, function, arguments)
    if not isinstance(model, nn.Module):
        raise EspalierError(f"model {path!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _called(path: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        raise EspalierError(f"model {path!r} is no Python function or class that makes a model") from None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        required = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and name not in arguments
        ]
        given = "needs arguments" if required else "does not take these arguments"
        raise EspalierError(
            f"model {path!r} {given} ({', '.join(required) or error}): it is called with "
            f"{', '.join(arguments) or 'none'}, so wrap it in a function of yours"
        ) from None
    return function(**arguments)


def load_weights(model: nn.Module, tensors: Tensors, source: str = "the checkpoint") -> nn.Module:
    """Copy a checkpoint into a model, all or nothing.

    A `module.` prefix on every name is dropped. Batch-norm counters (`num_batches_tracked`) may be missing:
    files written by old versions of torch have none.

    Args:
        model: changed in place, and returned.
        tensors: name -> tensor; shapes must agree, dtypes are converted to the model's.
        source: what to call the checkpoint in the message.

    Raises:
        CheckpointError: names missing, unexpected, or of another shape (the first few of each are listed), or
            entries that are NaN or, in a parameter, infinite; nothing is changed then.
    """
    return fill(model, tensors, source).model


def fill(model: nn.Module, tensors: Tensors, source: str = "the checkpoint") -> Filled:
    """`load_weights`, which also tells what each tensor of the model is called in the checkpoint."""
    prefix = "module." if len(tensors) and all(name.startswith("module.") for name in tensors) else ""
    given = {name.removeprefix(prefix): tensors[name] for name in tensors}
    own = model.state_dict()
    lazy = [n for n, tensor in own.items() if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"{type(model).__name__} is lazily initialized: {listing(lazy)} have no shape before a first batch; "
            "run one through the network where it is made"
        )
    # What a state dict holds beyond tensors (get_extra_state) is for strict loading below to judge.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in own]
    differing = [
        f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    problem = misfit(type(model).__name__, source, missing, unexpected, differing)
    if problem:
        raise CheckpointError(problem)
    new = {name: given[name].to(tensor.dtype) for name, tensor in own.items() if name in given}
    check_finite(model, {name: (prefix + name, tensor) for name, tensor in new.items()}, source)
    with torch.no_grad():
        for name, tensor in new.items():
            own[name].copy_(tensor)
    return Filled(model, {name: prefix + name for name in new})


def misfit(
    model: str,
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    differing: Iterable[str],
) -> str:
    """What does not fit, in one line; "" if all does."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
    problems = [f"{len(found)} {word}: {listing(found)}" for word, names in kinds if (found := list(names))]
    if not problems:
        return ""
    return f"{source} does not fit {model}: {'; '.join(problems)}. Is --model the right architecture?"


def check_finite(model: nn.Module, tensors: Mapping[str, tuple[str, Tensor]], source: str) -> None:
    """Refuse a network that can compute nothing; a buffer may hold infinities (attention masks do).

    Args:
        model: tells parameters from buffers.
        tensors: name in the model -> name in the checkpoint, and the tensor as the model gets it.
        source: what to call the checkpoint in the message.

    Raises:
        CheckpointError: a tensor holds NaN, or a parameter infinities.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for own, (name, tensor) in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        nan = int(tensor.isnan().sum())
        infinite = int(tensor.isinf().sum()) if own in parameters else 0
        if nan or infinite:
            found = " and ".join(
                f"{count:,} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count
            )
            raise CheckpointError(
                f"{source}: tensor {name!r} holds {found} of {tensor.numel():,} entries; "
                f"the network computes nothing with it, so take an earlier checkpoint"
            )


def round_to(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """Give every tensor of a model the values it has after being stored in another dtype.

    So the network that is measured is the one that is written: a file in bfloat16 holds other numbers than the
    float32 network that was trained. The dtypes of the model stay. Rounding may make zeros, never a zero
    nonzero.

    Args:
        model: changed in place, all or nothing, and returned.
        dtypes: name in the state dict -> dtype in the file; others are left alone.

    Raises:
        EspalierError: a finite value is beyond the dtype.
    """
    rounded = []
    for name, tensor in model.state_dict().items():
        dtype = dtypes.get(name, None)
        if dtype is None or not isinstance(tensor, Tensor) or tensor.dtype == dtype:
            continue
        new = tensor.detach().to(dtype).to(tensor.dtype)
        if tensor.is_floating_point() and bool((tensor.isfinite() & ~new.isfinite()).any()):
            raise EspalierError(
                f"tensor {name!r} holds {tensor.abs().max().item():.3g}, beyond the {dtype} of the file: "
                f"convert the checkpoint to bfloat16 or float32 first"
            )
        rounded.append((tensor, new))
    with torch.no_grad():
        for tensor, new in rounded:
            tensor.copy_(new)
    return model
