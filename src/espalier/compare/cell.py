"""What is compared: networks, contenders, sparsities, seeds, teachers; and one run of it, a cell."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from espalier._errors import EspalierError
from espalier.data import Dataset
from espalier.methods import AbstractMethod, Dense
from espalier.selection import Scope
from espalier.train import Training
from espalier.train.state import digest_of

EQUAL = (
    *("epochs", "batch_size", "augment", "seed", "precision"),
    *("labels", "teacher_weight", "temperature"),
)
"""Fields of the training in which no method may differ from the others: the budget, the batches, how exactly they are
computed, and who teaches how."""

STOPS = (
    "`stop_below` ends some runs before others, and in a comparison every method trains equally long: leave it out "
    "(`espalier train` has it)"
)


@dataclass(frozen=True)
class Range:
    """Where a number is looked for.

    Args:
        low: smallest.
        high: largest.
        log: on a logarithmic scale.

    Raises:
        EspalierError: nothing lies between them.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise EspalierError(
                f"a range needs low < high, both positive on a logarithmic scale, got {self.low:g} to {self.high:g}"
            )


@dataclass(frozen=True)
class Network:
    """What is pruned, on which data.

    Args:
        name: for tables.
        build: seed -> the network as a run begins, the same for every contender.
        data: gives the data set; called when a run needs it.
        parent: gives the trained dense network that `build` starts from, or None where runs start from scratch.
        smaller: seed, sparsity -> a narrower dense network with about as many parameters as the pruned one keeps, or
            None where none is known.
        source: what makes it this network and these data (names, digests of files), for the digest of a cell.
    """

    name: str
    build: Callable[[int], nn.Module] = field(repr=False, compare=False)
    data: Callable[[], Dataset] = field(repr=False, compare=False)
    parent: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)
    smaller: Callable[[int, float], nn.Module] | None = field(default=None, repr=False, compare=False)
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Contender:
    """A method with its name in the tables.

    Args:
        label: unique in a study.
        method: the method.
        changes: fields of the training that this method needs otherwise, such as no momentum for the paper's gRDA.
        smaller: train the network's narrower dense version instead: a control of the size that a sparsity leaves.
        sparsities: the only ones of the study it takes part in; None is all.
        seeds: likewise.
        teachers: likewise.
        ranges: what is tuned of it beside what is of every method; "lr" is a field of the training, "method.end" of
            the method, "method.law.c" of its law.

    Raises:
        EspalierError: a change of what must be equal for all, or an early stop.
    """

    label: str
    method: AbstractMethod
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    smaller: bool = False
    sparsities: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    teachers: tuple[bool, ...] | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_equal([*self.changes, *self.ranges])

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned, so that one run serves every sparsity."""
        return isinstance(self.method, Dense) and not self.smaller


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        network: what is pruned.
        contender: how.
        sparsity: asked for; None for the dense control.
        seed: of data order, augmentation, dropout, and of the initial weights from scratch.
        teacher: whether the dense parent teaches.
        training: of this run, tuned values and seed included.
        scope: which parameters are pruned.
    """

    network: Network
    contender: Contender
    sparsity: float | None
    seed: int
    teacher: bool
    training: Training
    scope: Scope = "weights"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What makes it this run and no other."""
        return {
            "network": self.network.name,
            "source": dict(self.network.source),
            "label": self.contender.label,
            "method": repr(self.contender.method),
            "sparsity": self.sparsity,
            "teacher": self.teacher,
            "training": self.training.spec(),
            "scope": self.scope,
        }

    @property
    def digest(self) -> str:
        """Names the folder of the run."""
        return digest_of(self.spec)

    def __str__(self) -> str:
        """For people: "resnet20, gradual, 0.95, seed 0"."""
        asked = "dense" if self.sparsity is None else f"{self.sparsity:g}"
        taught = ", with teacher" if self.teacher else ""
        return f"{self.network.name}, {self.contender.label}, {asked}, seed {self.seed}{taught}"


@dataclass(frozen=True)
class Study:
    """Every run that is asked for.

    Args:
        title: one line.
        networks: what is pruned.
        contenders: how; those with one label differ in their sparsities.
        sparsities: in (0, 1).
        seeds: one run each.
        training: of every run, but for what a contender changes; its seed is replaced, and the precision "auto" is
            fp32 here, so that runs of different machines are alike.
        teachers: False, True or both.
        scope: which parameters are pruned.

    Raises:
        EspalierError: the training stops early.
    """

    title: str
    networks: tuple[Network, ...]
    contenders: tuple[Contender, ...]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    training: Training
    teachers: tuple[bool, ...] = (False,)
    scope: Scope = "weights"

    def __post_init__(self) -> None:
        if self.training.stop_below is not None:
            raise EspalierError(STOPS)

    def cells(self) -> Iterator[Cell]:
        """The runs, untuned, one seed of everything first."""
        for seed in self.seeds:
            for network in self.networks:
                for teacher in self.teachers:
                    for contender in self.contenders:
                        if _outside(seed, contender.seeds) or _outside(teacher, contender.teachers):
                            continue
                        training = replace(self.training, **{**contender.changes, "seed": seed})
                        if training.precision == "auto":
                            training = replace(training, precision="fp32")
                        for sparsity in (None,) if contender.dense else self.sparsities:
                            if contender.dense or not _outside(sparsity, contender.sparsities):
                                yield Cell(network, contender, sparsity, seed, teacher, training, self.scope)


def check_equal(fields: Iterable[str]) -> None:
    """Refuse what would make a comparison unequal."""
    for name in fields:
        if name == "stop_below":
            raise EspalierError(STOPS)
        if name in EQUAL:
            raise EspalierError(
                f"`{name}` must be equal for all methods, or the comparison would not be: give it to the study's "
                "training"
            )


def _outside(value: object, only: tuple[object, ...] | None) -> bool:
    return only is not None and value not in only
