"""Checkpoints that live in memory: a module, or a plain mapping of tensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from espalier._errors import CheckpointError
from espalier.checkpoint.kinds import module_kinds
from espalier.checkpoint.stored import Resident, StoredCheckpoint


def module_checkpoint(module: nn.Module) -> StoredCheckpoint:
    """The parameters and buffers of a live module, tied ones once; reading gives the tensors themselves.

    Only what the state dict would hold counts: buffers registered with `persistent=False` are left out.
    """
    kinds = module_kinds(module)
    state = module.state_dict(keep_vars=True)
    tensors, aliases = drop_aliases((name, _checked(name, t)) for name, t in state.items() if name in kinds)
    return StoredCheckpoint(
        {name: Resident(tensor) for name, tensor in tensors.items()},
        aliases=aliases,
        kinds={name: kinds[name] for name in tensors},
    )


def mapping_checkpoint(tensors: Mapping[str, Tensor]) -> StoredCheckpoint:
    """A mapping of tensors, e.g. a state dict; the same memory under several names appears once.

    Raises:
        CheckpointError: a value is not a tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"a mapping of tensors was needed, but {name!r} is {type(tensor).__name__}")
    unique, aliases = drop_aliases((name, _checked(name, tensor)) for name, tensor in tensors.items())
    return StoredCheckpoint({name: Resident(tensor) for name, tensor in unique.items()}, aliases=aliases)


def drop_aliases(named: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split tensors into the first of each and the names that repeat it.

    Two tensors are the same when storage, offset, shape, stride and dtype agree; overlapping but different
    views stay separate tensors. Empty tensors have no memory to share and are the same only as objects.
    """
    first: dict[object, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named:
        key = _identity(tensor)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor
    return tensors, aliases


def _identity(tensor: Tensor) -> object:
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.numel():
        return id(tensor)
    storage = tensor.untyped_storage()
    memory = storage._cdata if tensor.device.type == "meta" else storage.data_ptr()
    view = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return tensor.device, memory, view


def _checked(name: str, tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise CheckpointError(f"{name!r} is not initialized yet; run one batch through the module first")
    if tensor.layout != torch.strided:
        raise CheckpointError(f"{name!r} is stored as {tensor.layout}; convert it with `.to_dense()` first")
    return tensor.detach()
