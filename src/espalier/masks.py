"""Which entries of a network are kept: a frozen value, one bit an entry, without any copy of the weights."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from espalier._errors import CheckpointError, EspalierError, listing, near
from espalier._types import Counts, LazyTensors, Tensors
from espalier.checkpoint.write import save_checkpoint
from espalier.threshold import top_mask

_FORMAT = "espalier-masks-1"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MaskedTensor:
    """One line of `Masks.summary`.

    Args:
        name: of the parameter.
        shape: of the parameter.
        kept: entries that stay.
    """

    name: str
    shape: tuple[int, ...]
    kept: int

    @property
    def entries(self) -> int:
        """Entries of the parameter."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Pruned entries over entries; 0 for an empty tensor."""
        return 1 - self.kept / self.entries if self.entries else 0.0


class Masks(Mapping[str, Tensor]):
    """Parameter name -> bool tensor, True where the entry is kept.

    A value: nothing changes it. Each mask is held as packed bits, an eighth of a byte per entry, and
    `masks[name]` unpacks a fresh bool tensor on the CPU. Parameters without a mask are left alone by
    everything here.

    Made by `from_scores`, `from_zeros`, `from_nm`, `load`, or from bool tensors.

    Args:
        masks: bool tensors by name; copied.

    Raises:
        EspalierError: if a tensor is not bool.
    """

    _shapes: dict[str, tuple[int, ...]]
    _bits: Tensors

    def __init__(self, masks: Tensors) -> None:
        shapes, bits = {}, {}
        for name in masks:
            mask = masks[name]
            if mask.dtype != torch.bool:
                raise EspalierError(f"the mask of {name!r} is {mask.dtype}; masks are bool, True = kept.")
            shapes[name], bits[name] = tuple(mask.shape), _pack(mask)
        self._shapes, self._bits = shapes, bits

    @classmethod
    def from_scores(
        cls, scores: Tensors, counts: Mapping[str, int], *, shapes: Shapes | None = None
    ) -> "Masks":
        """Keeps exactly `counts[name]` entries of each tensor: the highest, ties to the smaller flat index.

        Args:
            scores: floating tensors by name; higher = keep.
            counts: entries kept, for the same names.
            shapes: shapes of the scores. With them, masks are made anew from the scores at each access
                instead of being held, for checkpoints whose masks do not fit in memory; the scores must then
                stay as they are.

        Raises:
            EspalierError: if names differ, a count is out of range, or a score is NaN.
        """
        _same_names(scores, counts, "scores", "counts")

        def make(name: str) -> Tensor:
            values, kept = scores[name], counts[name]
            if not 0 <= kept <= values.numel():
                raise EspalierError(f"cannot keep {kept} of the {values.numel()} entries of {name!r}.")
            return top_mask(values, kept, name)

        if shapes is None:
            return cls(LazyTensors(list(scores), make))
        return cls._of(shapes, LazyTensors(list(scores), lambda name: _pack(make(name))), dict(counts))

    @classmethod
    def from_zeros(cls, tensors: Tensors) -> "Masks":
        """Keeps what is not zero (-0.0 is zero): the masks of a network that is pruned already."""
        return cls(LazyTensors(list(tensors), lambda name: tensors[name].detach() != 0))

    @classmethod
    def from_nm(cls, scores: Tensors, n: int, m: int) -> "Masks":
        """Keeps the `n` highest of each `m` consecutive entries along dimension 1, ties to the smaller index.

        Dimension 1 is the input axis of linear layers and convolutions, the one that sparse hardware reads
        along (in a transposed convolution it is the output axis: only names and shapes are seen here). A
        tensor with fewer than two dimensions, or whose dimension 1 is not a multiple of `m`, is kept dense:
        `indivisible` lists them. Scores of -inf are never kept, also where that leaves fewer than `n`, or a
        dense tensor with zeros.

        Args:
            scores: floating tensors by name.
            n: entries kept per group, 1 to `m`.
            m: entries per group.

        Raises:
            EspalierError: if `n` and `m` do not fit, or a score is NaN.
        """
        if not 1 <= n <= m:
            raise EspalierError(f"cannot keep {n} of every {m} entries; N:M needs 1 <= N <= M.")
        return cls(LazyTensors(list(scores), lambda name: _nm_mask(scores[name].detach(), n, m, name)))

    @classmethod
    def load(cls, path: str | Path) -> "Masks":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: if the file is not a mask file, or its content does not match its own digest.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read masks from {path}: {error}") from None
        if metadata.get("format") != _FORMAT:
            found = metadata.get("format", "none")
            raise CheckpointError(
                f"{path} is not a mask file: its format is {found!r}, needed {_FORMAT!r}; use "
                f"`Masks.from_zeros` for a pruned checkpoint."
            )
        masks = cls.__new__(cls)
        try:
            shapes = {
                str(name): tuple(map(int, shape)) for name, shape in json.loads(metadata["shapes"]).items()
            }
            _same_names(shapes, bits, "shapes", "tensors")
            masks._shapes, masks._bits = shapes, {name: bits[name] for name in shapes}
            intact = metadata["digest"] == masks.digest
        except (KeyError, TypeError, ValueError, AttributeError):
            intact = False
        if not intact:
            raise CheckpointError(f"{path} is damaged: its masks do not match their digest; write it again.")
        return masks

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file of packed bits, under a temporary name first.

        The first entry is the lowest bit of a byte. The metadata hold the format, the shapes and the
        digest; see `load`.
        """
        metadata = {"format": _FORMAT, "shapes": json.dumps(self._shapes), "digest": self.digest}
        save_checkpoint(Path(path), self._bits, metadata)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return dict(self._shapes)

    @cached_property
    def counts(self) -> Counts:
        """Parameter name -> entries kept."""
        return {name: int(_ONES[self._bits[name].numpy()].sum(dtype=np.int64)) for name in self}

    @property
    def entries(self) -> int:
        """Entries under a mask, kept and pruned."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def kept(self) -> int:
        """Entries kept."""
        return sum(self.counts.values())

    @property
    def sparsity(self) -> float:
        """Pruned entries over entries under a mask; 0 without any."""
        return (self.entries - self.kept) / self.entries if self.entries else 0.0

    def summary(self) -> tuple[MaskedTensor, ...]:
        """Kept and pruned, tensor by tensor."""
        return tuple(MaskedTensor(name, self._shapes[name], kept) for name, kept in self.counts.items())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits in the order of the names: equal masks have equal digests."""
        total = hashlib.sha256()
        for name in sorted(self):
            total.update(json.dumps([name, self._shapes[name]]).encode())
            total.update(self._bits[name].numpy().tobytes())
        return total.hexdigest()

    def overlap(self, other: "Masks") -> float:
        """Jaccard similarity: entries kept by both over entries kept by either; 1 if neither keeps any."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def lost(self, other: "Masks") -> float:
        """Fraction of the entries kept here that are not kept in `other`; 0 if none is kept here."""
        return 1 - (self & other).kept / self.kept if self.kept else 0.0

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of one tensor with its pruned entries at +0.0; the tensor itself if it has no mask.

        Fits `espalier.checkpoint.write.rewrite`, which asks for one tensor at a time.
        """
        if name not in self._shapes:
            return tensor
        self._check_shape(name, tensor)
        return tensor.masked_fill(self._removed(name, tensor.device), 0.0)

    def apply_(self, target: nn.Module | Tensors) -> None:
        """Sets the pruned entries to +0.0, in place; the others are not touched.

        Args:
            target: a module, or tensors by name. Wrappers of `torch.compile` and data parallelism are seen
                through.

        Raises:
            EspalierError: if a masked parameter is missing or has another shape; nothing is changed then.
        """
        tensors = self._targets(target)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.masked_fill_(self._removed(name, tensor.device), 0.0)

    def verify(self, target: nn.Module | Tensors) -> None:
        """Checks that every pruned entry is zero, whatever happened since.

        Args:
            target: a module, or tensors by name.

        Raises:
            EspalierError: if an entry has come back; names the tensor with the most of them and their number.
        """
        revived = {}
        for name, tensor in self._targets(target).items():
            removed = self._removed(name, tensor.device)
            revived[name] = int((tensor.detach() != 0).logical_and_(removed).sum())
        worst = max(revived, key=lambda name: revived[name], default=None)
        if worst is not None and revived[worst]:
            tensors = sum(count > 0 for count in revived.values())
            raise EspalierError(
                f"{revived[worst]} pruned entries of {worst!r} are not zero ({sum(revived.values())} in "
                f"{tensors} tensors); something changed the weights after pruning, such as training without "
                f"`hold` or merging an adapter: `masks.apply_(module)` sets them to zero again."
            )

    def __getitem__(self, name: str) -> Tensor:
        return _unpack(self._bits[name], self._shapes[name])

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # the inherited test would unpack the mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __and__(self, other: "Masks") -> "Masks":
        return self._combined(other, torch.bitwise_and)

    def __or__(self, other: "Masks") -> "Masks":
        return self._combined(other, torch.bitwise_or)

    def __invert__(self) -> "Masks":
        bits = {name: _clear_padding(~self._bits[name], shape) for name, shape in self._shapes.items()}
        return self._of(self._shapes, bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Masks({self.kept} of {self.entries} entries kept in {len(self)} tensors)"

    @classmethod
    def _of(cls, shapes: Shapes, bits: Tensors, counts: Counts | None = None) -> "Masks":
        """Masks from packed bits; counts if they are known already."""
        masks = cls.__new__(cls)
        masks._shapes, masks._bits = {name: tuple(shapes[name]) for name in bits}, bits
        if counts is not None:
            masks.counts = counts
        return masks

    def _combined(self, other: "Masks", operation: Callable[[Tensor, Tensor], Tensor]) -> "Masks":
        _same_names(self, other, "one", "the other")
        for name, shape in self._shapes.items():
            if shape != other._shapes[name]:
                raise EspalierError(
                    f"masks of {name!r} have the shapes {shape} and {other._shapes[name]}; they belong to "
                    f"different networks."
                )
        return self._of(
            self._shapes, {name: operation(self._bits[name], other._bits[name]) for name in self._shapes}
        )

    def _removed(self, name: str, device: torch.device) -> Tensor:
        """True where the entry is pruned, on the device."""
        return self[name].logical_not_().to(device)

    def _targets(self, target: nn.Module | Tensors) -> dict[str, Tensor]:
        """The masked tensors of a module or mapping, checked."""
        tensors = named_parameters(target) if isinstance(target, nn.Module) else target
        for name in self:
            if name not in tensors:
                raise EspalierError(
                    f"there is a mask for {name!r} but no such parameter.{near(name, tensors)} The masks "
                    f"were made for another network, or under other names."
                )
        found = {name: tensors[name] for name in self}
        for name, tensor in found.items():
            self._check_shape(name, tensor)
        return found

    def _check_shape(self, name: str, tensor: Tensor) -> None:
        if tuple(tensor.shape) != self._shapes[name]:
            raise EspalierError(
                f"the mask of {name!r} has shape {self._shapes[name]} and the parameter "
                f"{tuple(tensor.shape)}; they belong to different networks."
            )


def indivisible(shapes: Shapes, m: int) -> tuple[str, ...]:
    """Names of the tensors that `Masks.from_nm` keeps dense: no dimension 1, or not a multiple of `m`."""
    return tuple(name for name, shape in shapes.items() if len(shape) < 2 or shape[1] % m)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile` and data parallelism, whose names have no prefix."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every name of every parameter; shared parameters appear under each of their names."""
    return dict(unwrapped(module).named_parameters(remove_duplicate=False))


_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
"""How many bits of a byte are set."""


def _pack(mask: Tensor) -> Tensor:
    """Eight entries to a byte, the first in the lowest bit; the last byte is filled with zeros."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little"))


def _unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).view(shape)


def _clear_padding(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros in the bits behind the last entry, so that equal masks have equal bytes."""
    if used := math.prod(shape) % 8:
        bits[-1] &= (1 << used) - 1
    return bits


def _nm_mask(scores: Tensor, n: int, m: int, name: str) -> Tensor:
    if scores.isnan().any():
        raise EspalierError(f"{name!r} has scores that are NaN, which have no rank; look for NaN upstream.")
    alive = scores != -torch.inf
    if indivisible({name: tuple(scores.shape)}, m):
        return alive
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))  # type: ignore[no-untyped-call]
    # A stable sort leaves equal scores in the order of their index.
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    kept = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device).scatter_(-1, best, True)
    return kept.flatten(-2).movedim(-1, 1) & alive


def _same_names(one: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> None:
    """Refuses mappings whose names differ, showing which and what is near."""
    for left, right, has, lacks in ((one, other, first, second), (other, one, second, first)):
        extra = [name for name in left if name not in right]
        if extra:
            raise EspalierError(
                f"names differ: {listing(map(repr, extra))} in {has} but not in "
                f"{lacks}.{near(extra[0], right)}"
            )
