"""A checkpoint together with the network it fills and its dense parent; imports torch, so commands import it late."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.allocate import AbstractAllocation
from espalier.amount import AbstractAmount
from espalier.checkpoint import Written, open_checkpoint, rewrite
from espalier.cli import names
from espalier.finetuning import masks_of
from espalier.masks import Masks
from espalier.models import load_weights
from espalier.pruning import prune
from espalier.selection import select


class Subject:
    """The checkpoint, the network it fills, its dense parent, and which tensors count."""

    def __init__(
        self,
        file: Path,
        parent: Path | None,
        model: str,
        classes: int,
        scope: str = "weights",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.checkpoint = open_checkpoint(file)
        self.selecting: dict[str, Any] = {"scope": scope, "include": include, "exclude": exclude}
        self.model = load_weights(names.model(model, classes), self.checkpoint.state_dict(), str(file))
        self.parent: nn.Module | None = None
        if parent is not None:
            self.parent = load_weights(
                names.model(model, classes), open_checkpoint(parent).state_dict(), str(parent)
            )

    def masks(self) -> Masks:
        """What is zero already stays zero."""
        masks = masks_of(self.model, select(open_checkpoint(self.model), **self.selecting).names)
        if masks.sparsity == 0:
            raise EspalierError(
                "nothing in FILE is zero: prune it first, or give --amount, --budget or --agreement"
            )
        return masks

    def prune(
        self, network: nn.Module, amount: float | AbstractAmount, allocation: AbstractAllocation
    ) -> Masks:
        """Prune a network of this shape in place."""
        return prune(network, amount, allocation=allocation, **self.selecting)

    def write(self, output: Path, sparse: bool) -> Written:
        """The checkpoint as it came, with the tensors of the network."""
        state = self.model.state_dict()

        def change(name: str, tensor: Tensor) -> Tensor:
            return state[name].to(tensor.dtype) if name in state else tensor

        return rewrite(self.checkpoint, output, change, {}, sparse=sparse)
