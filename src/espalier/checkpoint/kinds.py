"""What a tensor is for: known from the module that owns it, guessed from its name in a file."""

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from espalier.checkpoint._base import REAL_DTYPES, Kind
from espalier.checkpoint.quantized import QUANTIZATION, quantization_scales
from espalier.checkpoint.reparametrized import MAGNITUDES, VECTORS, Norms, find_norms, plain_name
from espalier.checkpoint.roles import role

Known = tuple[Kind, str]
"""The kind of a tensor, and what it is instead of a weight (see `TensorInfo.why`)."""

_BUFFERS = re.compile(r"^(running_(mean|var)|num_batches_tracked|inv_freq|position_ids|total_(ops|params))$")
_NORM = re.compile(r"norm|(^|_)(bn|ln|gn)(\d|_|$)", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|(^|_)emb(\d|_|$)|^wte$|^wpe$|^shared$|(^|_)position|token_type|relative_attention_bias|^(cls|class)_token",
    re.IGNORECASE,
)
_IN_MODULES: frozenset[Kind] = frozenset({"embedding", "other"})
_IN_FILES: frozenset[Kind] = frozenset({"embedding", "other", "buffer"})
_NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_EMBEDDING_MODULES = (nn.Embedding, nn.EmbeddingBag)


def guess_kinds(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> dict[str, Known]:
    """Guess the kind of each tensor of a file from names, shapes and dtypes.

    A tensor is a norm when its prefix also has a `running_mean`, or when the component before `weight` or
    `bias` looks like one (`norm1`, `ln_f`, `LayerNorm`); an embedding when that component (of a matrix) or
    its own last component does (`wte`, `pos_embed`). Only the nearest component counts, so
    `patch_embed.proj.weight` is a weight. The scales of a quantized weight are scales. Constants and parameters
    of one value a channel are told by `role`.
    """
    normed = {name.rpartition(".")[0] for name in shapes if name.rpartition(".")[2] == "running_mean"}
    norms = find_norms(shapes)
    known = _special(shapes, dtypes, norms)
    kinds: dict[str, Known] = {}
    for name, shape in shapes.items():
        plain = plain_name(name, norms)
        special = known.get(name) or (role(plain, shape, _IN_FILES) if dtypes[name] in REAL_DTYPES else None)
        kinds[name] = special or (_guess(plain, shape, dtypes[name], normed), "")
    return kinds


def _special(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], norms: Norms
) -> dict[str, Known]:
    """The tensors that belong to another: scales of quantized weights, magnitudes and vectors of norms."""
    scales = quantization_scales(dtypes, shapes)
    return {
        **dict.fromkeys(norms.vectors, ("buffer", VECTORS)),
        **dict.fromkeys(norms.magnitudes, ("scale", MAGNITUDES)),
        **dict.fromkeys(scales, ("scale", QUANTIZATION)),
    }


def _guess(name: str, shape: tuple[int, ...], dtype: torch.dtype, normed: set[str]) -> Kind:
    prefix, _, last = name.rpartition(".")
    if dtype not in REAL_DTYPES or _BUFFERS.match(last):
        return "buffer"
    if prefix in normed:
        return "norm"
    if last not in ("weight", "bias"):
        return "embedding" if _EMBEDDING.search(last) else "weight"
    parts = prefix.split(".")
    if len(shape) < 2 and len(parts) > 1 and parts[-1].isdigit():
        parts.pop()  # norms.3.weight: a vector in a numbered list takes the name of the list
    if _NORM.search(parts[-1]):
        return "norm"
    if last == "weight" and len(shape) == 2 and _EMBEDDING.search(parts[-1]):
        return "embedding"
    return "weight"


def module_kinds(module: nn.Module) -> dict[str, Known]:
    """The kind of every parameter and buffer of a module, under every name it has.

    The type of the owner decides: torch's normalization and embedding layers, and classes whose name ends in
    "Norm". Parameters that a class outside torch owns directly (`pos_embed` of a vision transformer) are
    guessed by name.
    """
    kinds: dict[str, Known] = {}
    tensors: dict[str, torch.Tensor] = {}
    owners = dict(module.named_modules(remove_duplicate=False))
    for prefix, owner in owners.items():
        for name, parameter in owner.named_parameters(prefix, recurse=False, remove_duplicate=False):
            plain = plain_name(name, Norms())  # of a parametrized module, the owner is the module itself
            layer = owner if plain == name else owners[plain.rpartition(".")[0]]
            kinds[name], tensors[name] = _owned_kind(layer, plain, parameter), parameter
        for name, buffer in owner.named_buffers(prefix, recurse=False, remove_duplicate=False):
            kinds[name], tensors[name] = ("buffer", ""), buffer
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if not nn.parameter.is_lazy(t)}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    known = _special(shapes, dtypes, find_norms(shapes))
    return kinds | {name: known[name] for name in kinds if name in known}


def _owned_kind(owner: nn.Module, name: str, parameter: torch.Tensor) -> Known:
    if parameter.dtype not in REAL_DTYPES:
        return "buffer", ""
    cls = type_before_parametrizations(owner)
    if isinstance(owner, _NORM_MODULES) or cls.__name__.endswith("Norm"):
        return "norm", ""
    if isinstance(owner, _EMBEDDING_MODULES):
        return "embedding", ""
    if cls.__module__.startswith("torch.nn.") or nn.parameter.is_lazy(parameter):
        return "weight", ""
    shape = tuple(parameter.shape)
    return role(name, shape, _IN_MODULES) or (_guess(name, shape, parameter.dtype, set()), "")
