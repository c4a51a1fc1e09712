"""Names as the network has them: wrappers' prefixes stripped, pruning reparametrizations folded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier.checkpoint._base import REAL_DTYPES
from espalier.checkpoint.stored import AbstractStored

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel`, `DistributedDataParallel` and `torch.compile` put before every name."""


@dataclass(frozen=True)
class Masked(AbstractStored):
    """`orig * mask`, what a checkpoint of `torch.nn.utils.prune` stands for; pruned entries are +0.0."""

    orig: AbstractStored
    mask: AbstractStored

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the weight."""
        return self.orig.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Dtype of the weight."""
        return self.orig.dtype

    def pieces(self, entries: int) -> Iterator[Tensor]:
        """Pieces of the product."""
        for orig, mask in zip(self.orig.pieces(entries), self.mask.pieces(entries)):
            yield _masked(orig, mask)

    def read(self) -> Tensor:
        """The product."""
        return _masked(self.orig.read(), self.mask.read())


def _masked(orig: Tensor, mask: Tensor) -> Tensor:
    return (orig * mask.to(orig.dtype)).masked_fill(mask == 0, 0)


def network_names(
    stored: Mapping[str, AbstractStored], aliases: Mapping[str, str]
) -> tuple[dict[str, AbstractStored], dict[str, str], dict[str, str]]:
    """Give tensors the names they have in the network.

    Wrappers' prefixes go, each only when every name has it; they nest. Each pair `X_orig`, `X_mask` of equal
    shape becomes `X`, at the place of `X_orig`.

    Returns:
        The tensors and the aliases under their new names, and old name -> new name of the tensors that
        remain.
    """
    cut = _prefix([*stored, *aliases])
    masks = _masks({name[cut:]: at for name, at in stored.items()})
    renamed: dict[str, str] = {}
    tensors: dict[str, AbstractStored] = {}
    for old, at in stored.items():
        name = old[cut:]
        if name in masks:
            renamed[old] = name.removesuffix("_orig")
            tensors[renamed[old]] = Masked(at, masks[name])
        elif name.removesuffix("_mask") + "_orig" not in masks:
            renamed[old] = name
            tensors[name] = at
    return tensors, _renamed_aliases(aliases, cut, renamed, masks), renamed


def _renamed_aliases(
    aliases: Mapping[str, str], cut: int, renamed: Mapping[str, str], masks: Mapping[str, AbstractStored]
) -> dict[str, str]:
    kept = {}
    for alias, name in aliases.items():
        if name[cut:] in masks:
            kept[alias[cut:].removesuffix("_orig")] = renamed[name]
        elif name in renamed:
            kept[alias[cut:]] = renamed[name]
    return kept


def _prefix(names: list[str]) -> int:
    cut = 0
    while prefix := next((p for p in PREFIXES if names and all(n.startswith(p, cut) for n in names)), None):
        cut += len(prefix)
    return cut if all(len(name) > cut for name in names) else 0


def _masks(stored: Mapping[str, AbstractStored]) -> dict[str, AbstractStored]:
    """The name `X_orig` -> the mask it is to be multiplied with."""
    masks = {}
    for name, orig in stored.items():
        stem = name.removesuffix("_orig")
        mask = stored.get(stem + "_mask")
        if stem == name or stem in stored or mask is None:
            continue
        if mask.shape == orig.shape and orig.dtype in REAL_DTYPES:
            masks[name] = mask
    return masks
