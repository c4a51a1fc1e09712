"""Data sets as frozen values whose batches depend on (seed, epoch) and nothing else."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from espalier._errors import EspalierError

VALIDATION_SEED = 20_240_507
"""Seed of the one permutation that cuts the validation split from the training images, for every data set."""

Batch = tuple[Tensor, Tensor]
"""Inputs float32 (B, ...) and labels int64 (B,); a label of -1 says that there is none."""


@dataclass(frozen=True)
class Normalization:
    """Per-channel `(x - mean) / sd` on inputs in [0, 1]; the default changes nothing ("ToTensor only").

    Args:
        mean: one value per channel, or one for all.
        sd: likewise, positive.
    """

    mean: tuple[float, ...] = (0.0,)
    sd: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.sd) or not all(s > 0 for s in self.sd):
            raise EspalierError(
                f"normalization needs as many means as standard deviations, all positive; got {self.mean} "
                f"and {self.sd}"
            )

    @property
    def identity(self) -> bool:
        """Whether inputs pass unchanged."""
        return not any(self.mean) and all(s == 1 for s in self.sd)

    def __call__(self, x: Tensor) -> Tensor:
        if self.identity:
            return x
        if len(self.mean) not in (1, x.shape[1]):
            raise EspalierError(
                f"normalization has {len(self.mean)} channels, the images have {x.shape[1]}: "
                "give one value per channel"
            )
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        sd = torch.tensor(self.sd, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        return x.sub_(mean).div_(sd)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's networks and the public CIFAR ResNets were trained with."""

CIFAR10 = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the pixels of CIFAR-10's training images."""

CIFAR100 = Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""The same of CIFAR-100."""


@dataclass(frozen=True)
class Augmentation:
    """Random crop from a zero-padded image, and left-right flip with probability one half.

    Args:
        padding: pixels of zeros (before normalization) on each side; 0 leaves the position alone.
        flip: whether mirror images keep their label.
    """

    padding: int = 4
    flip: bool = True


@dataclass(frozen=True)
class Options:
    """What one may ask of any data set.

    Args:
        normalization: None takes the default of the data set, named in its docstring.
        validation: fraction of the training images set aside for validation, in [0, 1). They are the first of
            one fixed permutation (`VALIDATION_SEED`), so every run and every method sees the same split.
        limit: at most that many images in each split (after the cut; the first in the fixed permutation).
    """

    normalization: Normalization | None = None
    validation: float = 0.1
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise EspalierError(f"validation fraction must be in [0, 1), got {self.validation}")
        if self.limit is not None and self.limit < 1:
            raise EspalierError(f"limit must be at least 1 image, got {self.limit}")


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator that depends on the parts alone."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def split_rows(train: int, test: int, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers of the training, validation (both in the training images) and test split, each int64."""
    order = torch.randperm(train, generator=seeded("validation", VALIDATION_SEED))
    held = round(train * options.validation)
    shown = (
        torch.randperm(test, generator=seeded("test", VALIDATION_SEED))
        if options.limit
        else torch.arange(test)
    )
    return tuple(rows[: options.limit] for rows in (order[held:], order[:held], shown))  # type: ignore[return-value]


class AbstractSplit(ABC):
    """A part of a data set: a fixed sequence of (input, label) pairs."""

    name: str
    labels: Tensor  # int64 (n,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Identifies labels and (a sample of) inputs; equal data gives equal digests on every machine."""

    @abstractmethod
    def take(self, count: int) -> "AbstractSplit":
        """The first `count` examples (all, if there are fewer)."""

    @abstractmethod
    def to(self, device: torch.device) -> "AbstractSplit":
        """The split with its images kept on a device, where it can; order and augmentation stay the same."""

    @abstractmethod
    def _load(self, rows: list[Tensor], seed: int | None, epoch: int, augment: bool) -> Iterator[Batch]:
        """Batches of the given positions, each int64 (B,)."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        augment: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Iterate once over the split.

        Order and augmentation are functions of (seed, epoch) and the position in the split, not of any
        generator's state, the batch size or the number of processes: a resumed run and every rival method see
        the same.

        Args:
            batch_size: examples per batch over all shards together; the last batch may be smaller.
            seed: None keeps the order of the split; an integer shuffles.
            epoch: changes the shuffle and the augmentation; 0, 1, ...
            augment: apply the split's augmentation (needs a seed).
            shard: (i, n): of each batch the examples i, i + n, ...; with n > 1 the last batch is cut to a
                multiple of n, so that every process takes the same number of steps.

        Returns:
            Iterator over (inputs float32 (B, ...), labels int64 (B,)).

        Raises:
            EspalierError: batch size below 1, not a multiple of n, or `augment` without `seed`.
        """
        index, processes = shard
        if batch_size < 1 or batch_size % processes:
            raise EspalierError(
                f"batch size must be a positive multiple of {processes} processes, got {batch_size}"
            )
        if augment and seed is None:
            raise EspalierError("augmentation is random: give `seed` with `augment=True`")
        n = len(self)
        order = torch.arange(n) if seed is None else torch.randperm(n, generator=seeded("order", seed, epoch))
        cut = n - n % batch_size % processes
        return self._load_all(order[:cut], batch_size, seed, epoch, augment, index, processes)

    def _load_all(
        self,
        order: Tensor,
        size: int,
        seed: int | None,
        epoch: int,
        augment: bool,
        index: int,
        processes: int,
    ) -> Iterator[Batch]:
        yield from self._load(
            [rows[index::processes] for rows in torch.split(order, size)], seed, epoch, augment
        )

    def steps(self, batch_size: int, processes: int = 1) -> int:
        """Number of batches that `batches` gives each of so many processes."""
        n = len(self)
        return -(-(n - n % batch_size % processes) // batch_size)

    def inputs(self, batch_size: int, *, seed: int | None = None, epoch: int = 0) -> Iterator[Tensor]:
        """Inputs only, as `batches` gives them: for everything that must not look at labels."""
        for x, _ in self.batches(batch_size, seed=seed, epoch=epoch):
            yield x


@dataclass(frozen=True, eq=False)
class TensorSplit(AbstractSplit):
    """Images in memory; scaling, normalization and augmentation are applied per batch, vectorised.

    Args:
        name: "train", "validation" or "test".
        images: all images of the file, uint8 or float32 (N, C, H, W); splits share them.
        all_labels: int64 (N,).
        rows: the positions that belong to this split, int64 (n,).
        scale: inputs are `images / scale` (255 for bytes).
        normalization: applied after scaling.
        augmentation: what `augment=True` does; None does nothing.
    """

    name: str
    images: Tensor
    all_labels: Tensor
    rows: Tensor
    scale: float = 255.0
    normalization: Normalization = Normalization()
    augmentation: Augmentation | None = None
    labels: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.all_labels[self.rows.to(self.all_labels.device)])

    @cached_property
    def _digest(self) -> str:
        """Labels of all, bytes of up to 1,000 images spread evenly."""
        chosen = self.rows[:: max(1, len(self.rows) // 1000)]
        state = hashlib.blake2b(f"{tuple(self.images.shape[1:])},{self.scale},{self.normalization}".encode())
        state.update(self.labels.cpu().numpy().tobytes())
        state.update(self.images[chosen.to(self.images.device)].cpu().numpy().tobytes())
        return state.hexdigest()[:16]

    @property
    def digest(self) -> str:
        return self._digest

    def take(self, count: int) -> "TensorSplit":
        return replace(self, rows=self.rows[:count])

    def to(self, device: torch.device) -> "TensorSplit":
        return replace(self, images=self.images.to(device), all_labels=self.all_labels.to(device))

    def _load(self, rows: list[Tensor], seed: int | None, epoch: int, augment: bool) -> Iterator[Batch]:
        moves = None
        if augment and self.augmentation is not None:
            assert seed is not None
            moves = _moves(len(self), self.augmentation, seeded("augment", seed, epoch))
        for batch in rows:
            x = self.images[self.rows[batch].to(self.images.device)]
            if moves is not None and self.augmentation is not None:
                x = _shift(x, self.augmentation.padding, *(m[batch].to(x.device) for m in moves))
            x = x.to(torch.float32)
            if self.scale != 1:
                x = x.div_(self.scale)
            yield self.normalization(x), self.labels[batch.to(self.labels.device)]


def _moves(n: int, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Vertical and horizontal offsets and flips of every example of an epoch, drawn at once."""
    high = 2 * augmentation.padding + 1
    down, across = (torch.randint(high, (n,), generator=generator) for _ in range(2))
    flip = torch.rand(n, generator=generator) < 0.5
    return down, across, flip if augmentation.flip else torch.zeros_like(flip)


def _shift(x: Tensor, padding: int, down: Tensor, across: Tensor, flip: Tensor) -> Tensor:
    """Crop each image at its offset in the padded image, then mirror where asked; x is (B, C, H, W)."""
    b, _, h, w = x.shape
    if padding:
        windows = (
            F.pad(x, (padding,) * 4).unfold(2, h, 1).unfold(3, w, 1)
        )  # (B, C, offsets, offsets, H, W), a view
        x = windows[torch.arange(b, device=x.device), :, down, across]
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test split of one data set.

    Args:
        name: the word for tables, e.g. "cifar10_jpeg".
        train: what weights are fitted on.
        validation: what choices are made on; cut from the training images, may be empty.
        test: reported, never used to choose.
        classes: names in the order of the labels.
        input_shape: one input, (C, H, W).
        provenance: where the data come from and how they were cut, for reports.
    """

    name: str
    train: AbstractSplit
    validation: AbstractSplit
    test: AbstractSplit
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    provenance: str


def in_memory(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor, Tensor],
    *,
    classes: tuple[str, ...],
    source: str,
    options: Options,
    normalization: Normalization,
    augmentation: Augmentation | None,
    scale: float = 255.0,
) -> Dataset:
    """Assemble a data set from (images, labels) and the rows of its three splits."""
    common = {
        "scale": scale,
        "normalization": options.normalization or normalization,
        "augmentation": augmentation,
    }

    def split(label: str, data: tuple[Tensor, Tensor], chosen: Tensor) -> TensorSplit:
        return TensorSplit(label, data[0], data[1].long(), chosen, **common)  # type: ignore[arg-type]

    return Dataset(
        name,
        split("train", train, rows[0]),
        split("validation", train, rows[1]),
        split("test", test, rows[2]),
        classes,
        tuple(train[0].shape[1:]),
        provenance(source, rows, options),
    )


def provenance(source: str, rows: tuple[Tensor, Tensor, Tensor], options: Options) -> str:
    """One line on where the data come from and how they were cut."""
    sizes = "train {:,}, validation {:,}, test {:,}".format(*map(len, rows))
    cut = f"validation {options.validation:g} of the training images, seed {VALIDATION_SEED}"
    limit = "" if options.limit is None else f", at most {options.limit:,} a split"
    return f"{source}; {sizes}; {cut}{limit}"


def data_folder(data: str | Path | None = None) -> Path:
    """The folder of data sets: the one given, or `ESPALIER_DATA`.

    Raises:
        EspalierError: neither is given, or it is no folder.
    """
    given = data if data is not None else os.environ.get("ESPALIER_DATA")
    if given is None:
        raise EspalierError(
            "no data folder: set ESPALIER_DATA or give --data-root, the folder that holds the data set"
        )
    folder = Path(given)
    if not folder.is_dir():
        raise EspalierError(
            f"data folder {folder} does not exist: set ESPALIER_DATA or --data-root to the right one"
        )
    return folder
