"""Models from elsewhere (torchvision, a Hugging Face folder, an import path), and weights into a model."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier._errors import CheckpointError, EspalierError, listing, near
from espalier._types import Tensors


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


def hf_model(folder: str | Path) -> nn.Module:
    """Build and load the model of a Hugging Face folder, offline and without running code of the folder.

    The class is the one named by `architectures` in `config.json`, from the installed transformers.

    Raises:
        EspalierError: transformers is missing, the folder has no such config, or the class is unknown.
    """
    try:
        import transformers
    except ImportError:
        raise EspalierError("hf: models need transformers: pip install 'espalier[hf]'") from None
    if not (Path(folder) / "config.json").is_file():
        raise EspalierError(f"{folder} is no Hugging Face model folder: it has no config.json")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise EspalierError(
            f"transformers {transformers.__version__} has no class {architecture!r} (from {folder})"
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return]
    except (OSError, RuntimeError) as error:
        raise EspalierError(
            f"{folder} cannot be loaded as {architecture}: {str(error).splitlines()[0]}"
        ) from error


def imported(path: str, **arguments: Any) -> nn.Module:
    """Call `package.module:function` and return its model; the current folder is importable.

    Args:
        path: module and attribute with a colon between; the attribute is called.
        arguments: passed on.

    Raises:
        EspalierError: no colon, no such module or attribute, or the result is no `nn.Module`.
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
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise EspalierError(f"model {path!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def load_weights(model: nn.Module, tensors: Tensors, source: str = "the checkpoint") -> nn.Module:
    """Copy a checkpoint into a model, all or nothing.

    A `module.` prefix on every name is dropped. Batch-norm counters (`num_batches_tracked`) may be missing:
    files written by old versions of torch have none.

    Args:
        model: changed in place, and returned.
        tensors: name -> tensor; shapes must agree, dtypes are converted to the model's.
        source: what to call the checkpoint in the message.

    Raises:
        CheckpointError: names missing, unexpected, or of another shape (the first few of each are listed);
            nothing is changed then.
    """
    given = {name: tensors[name] for name in tensors}
    if given and all(name.startswith("module.") for name in given):
        given = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    own = model.state_dict()
    # What a state dict holds beyond tensors (get_extra_state) is for strict loading below to judge.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in own]
    differing = [
        f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    problems = [
        f"{len(names)} {word}: {listing(names)}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(problems)}. Is --model the right "
            f"architecture?"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given:
                tensor.copy_(given[name])
    return model
