"""The fixed data a landscape is measured on."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.data import AbstractSplit
from espalier.data._base import Batch

Data = AbstractSplit | Iterable[Batch]
"""A split, or anything that gives the same (inputs, labels) each time it is iterated, such as a DataLoader."""


class FixedBatches:
    """The same examples in the same order and batches at every point.

    Args:
        data: of a split, batches of nearly equal size, at most `batch_size`, without augmentation, made anew
            at each pass; of another iterable its own batches, read twice (to see that they stay the same)
            and kept.
        name: what messages and tables call it.
        batch_size: examples per forward pass; a loader brings its own.
        augment: what `seen` gives carries the augmentation of the split; loaders are taken as they come.
        device: where the batches go.

    Raises:
        EspalierError: no examples, an example without a label, or other batches the second time.
    """

    def __init__(
        self,
        data: Data,
        name: str,
        *,
        batch_size: int = 500,
        augment: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self.augment = augment and isinstance(data, AbstractSplit)
        self._split: AbstractSplit | None = None
        self._kept: list[Batch] = []
        self._rows: Batch | None = None
        if isinstance(data, AbstractSplit):
            self._split, labels = data.to(self.device), data.labels
            self._size = _even(len(data), batch_size)
            self.digest = data.digest
        else:
            self._kept = _twice(data, name, self.device)
            self._rows = _joined(self._kept)
            if self._rows is not None:
                sizes = [len(y) for _, y in self._kept]
                x, y = self._rows
                self._kept = list(
                    zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)
                )  # views: held once
            labels = torch.cat([y for _, y in self._kept]) if self._kept else torch.zeros(0)
            self.digest = _digest(self._kept)
        if not len(labels):
            raise EspalierError(f"the {name} data are empty: there is nothing to measure on")
        if int(labels.min()) < 0:
            raise EspalierError(
                f"the {name} data have examples without a label (-1), and a loss needs labels"
            )
        self.examples, self.highest = len(labels), int(labels.max())

    def __iter__(self) -> Iterator[Batch]:
        if self._split is None:
            yield from self._kept
            return
        for x, y in self._split.batches(self._size):
            yield x.to(self.device), y.to(self.device)

    def seen(self) -> Iterator[Batch]:
        """The examples as a network in training sees them: one fixed draw of order and augmentation."""
        if self._split is None or not self.augment:
            return iter(self)
        return self.shuffled(self._size, 0, 0)

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
        """The examples in an order, and with an augmentation, that depend on (seed, epoch): to train on them.

        A loader whose batches have inputs of different shapes keeps its batches, in another order.
        """
        if self._split is not None:
            size = min(batch_size, self.examples)
            for x, y in self._split.batches(size, seed=seed, epoch=epoch, augment=self.augment):
                yield x.to(self.device), y.to(self.device)
            return
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        if self._rows is not None:
            x, y = self._rows
            for rows in torch.split(torch.randperm(self.examples, generator=generator), batch_size):
                yield x[rows.to(self.device)], y[rows.to(self.device)]
            return
        for i in torch.randperm(len(self._kept), generator=generator).tolist():
            yield self._kept[i]

    def steps(self, batch_size: int) -> int:
        """Batches that `shuffled` gives."""
        whole = self._split is None and self._rows is None
        return len(self._kept) if whole else -(-self.examples // min(batch_size, self.examples))

    def smallest(self) -> int:
        """Examples in the smallest batch."""
        if self._split is None:
            return min(len(y) for _, y in self._kept)
        return (self.examples - 1) % self._size + 1

    def passes(self) -> int:
        """Batches a pass."""
        return len(self._kept) if self._split is None else -(-self.examples // self._size)


def _even(n: int, batch_size: int) -> int:
    """The batch size with which n examples fall into as few batches, of sizes as equal as possible."""
    if batch_size < 1:
        raise EspalierError(f"batch size must be at least 1, got {batch_size}")
    return -(-n // max(1, -(-n // batch_size))) if n else 1


def _twice(data: Iterable[Batch], name: str, device: torch.device) -> list[Batch]:
    """The batches, after a second reading gave the same ones."""
    kept = [(x.to(device), y.to(device)) for x, y in data]
    for i, (first, again) in enumerate(zip_longest(kept, data)):
        same = first is not None and again is not None
        if not same or not all(_equal(a, b.to(device)) for a, b in zip(first, again, strict=True)):
            raise EspalierError(
                f"the {name} data changed between two readings, at batch {i}: a landscape over data that move is "
                "noise. Switch shuffling and random augmentation off (DataLoader(..., shuffle=False)), or pass "
                "list(loader); a generator can be read only once"
            )
    return kept


def _joined(batches: list[Batch]) -> Batch | None:
    """All examples as one batch; None where inputs of different shapes forbid it."""
    if len({(x.shape[1:], x.dtype) for x, _ in batches}) != 1:
        return None
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _digest(batches: Iterable[Batch]) -> str:
    state = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for tensor in batch:
            state.update(f"{tensor.dtype},{tuple(tensor.shape)};".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
