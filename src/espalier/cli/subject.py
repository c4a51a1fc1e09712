"""A checkpoint together with the network it fills and its dense parent; imports torch, so commands import it late."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError, listing
from espalier._forward import probe
from espalier.allocate import AbstractAllocation
from espalier.amount import AbstractAmount
from espalier.checkpoint import Written, open_checkpoint, rewrite
from espalier.cli import names
from espalier.data import Dataset
from espalier.finetuning import masks_of
from espalier.masks import Masks
from espalier.models import Filled, round_to
from espalier.pruning import prune
from espalier.selection import select


class Subject:
    """The checkpoint, the network it fills, its dense parent, and which tensors count.

    With `data`, one example is tried first, so that a network for other inputs is an error before any work.
    """

    def __init__(
        self,
        file: Path,
        parent: Path | None,
        model: str,
        classes: int,
        scope: str = "weights",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        data: Dataset | None = None,
    ) -> None:
        self.checkpoint = open_checkpoint(file)
        self.selecting: dict[str, Any] = {"scope": scope, "include": include, "exclude": exclude}
        self.filled: Filled = names.model(model, classes, self.checkpoint, str(file))
        self.model = self.filled.model
        if data is not None:
            probe(self.model, data, f"--model {model}")
        self.parent: nn.Module | None = None
        if parent is not None:
            self.parent = names.model(model, classes, open_checkpoint(parent), str(parent)).model

    def masks(self) -> Masks:
        """What is zero already stays zero."""
        self._check_places()
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
        self._check_places()
        return prune(network, amount, allocation=allocation, **self.selecting)

    def round_(self) -> None:
        """Give the network the values that the dtypes of the checkpoint can hold: those that `write` writes."""
        infos = self.checkpoint.infos
        round_to(
            self.model, {own: infos[self._stored(name)].dtype for own, name in self.filled.places.items()}
        )

    def write(self, output: Path, sparse: bool) -> Written:
        """The checkpoint as it came, with the tensors of the network."""
        self._check_places()
        state = self.model.state_dict()
        owners: dict[str, str] = {}
        for own, place in self.filled.places.items():
            name = self._stored(place)
            owner = owners.setdefault(name, own)
            if owner != own and not torch.equal(state[own], state[owner]):
                raise EspalierError(
                    f"{owner!r} and {own!r} are one tensor in {self.checkpoint.path} and differ now: "
                    "the model must tie them"
                )

        def change(name: str, tensor: Tensor) -> Tensor:
            # What the network has no use for (position_ids of old transformers) goes through.
            return state[owners[name]].to(tensor.dtype) if name in owners else tensor

        return rewrite(self.checkpoint, output, change, {}, sparse=sparse)

    def _stored(self, name: str) -> str:
        return self.checkpoint.aliases.get(name, name)

    def _check_places(self) -> None:
        if unplaced := self.filled.unplaced:
            raise EspalierError(
                f"{len(unplaced)} tensors of the network are none of {self.checkpoint.path} as they are "
                f"({listing(unplaced)}), so they cannot be written back: use `espalier prune`, which needs no "
                "network"
            )
