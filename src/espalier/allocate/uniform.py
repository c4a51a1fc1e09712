"""The same fraction of every tensor."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from espalier._errors import EspalierError, near
from espalier._types import Counts, Tensors
from espalier.allocate._base import AbstractAllocation, budget, check_fraction, least, survey
from espalier.allocate.apportion import apportion


@dataclass(frozen=True)
class Uniform(AbstractAllocation):
    """Keep the same fraction of every tensor, to the nearest entry.

    A tensor with too few nonzeros keeps those, and the others share what it cannot hold.

    Args:
        floor: fraction of each tensor that is kept at least; it matters where a tensor is so small that its
            share rounds to nothing. In [0, 1].
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.floor, "floor")

    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Counts in proportion to the entries."""
        room = survey(scores)
        kept = budget(room, kept)
        lower = least(room, kept, dict.fromkeys(room.shapes, self.floor), f"`floor`={self.floor:g}")
        shares = {name: float(math.prod(shape)) for name, shape in room.shapes.items() if room.nonzeros[name]}
        return dict.fromkeys(room.shapes, 0) | apportion(shares, lower, dict(room.nonzeros), kept)


@dataclass(frozen=True)
class UniformPlus(AbstractAllocation):
    """The same fraction of every tensor, but a dense first convolution and at least a fifth of the last one.

    The first convolution is small and sees the input; the last layer decides. This is the rule of Gale et
    al. for convolutional networks.

    The first convolution is the first tensor with three dimensions or more, the last layer the last one
    with two or more, **in the order of the scores** (the order of the network): this is the one allocation
    that reads that order. Name them to be independent of it. A network without convolution has no dense
    tensor.

    Args:
        floor: fraction of each tensor that is kept at least; in [0, 1].
        last_floor: fraction of the last tensor that is kept at least; in [0, 1].
        first: parameter name of the first convolution.
        last: parameter name of the last layer.

    References:
        Gale, Elsen and Hooker, The state of sparsity in deep neural networks, 2019, arXiv 1902.09574
        (section 6).
    """

    floor: float = 0.0
    last_floor: float = 0.2
    first: str | None = None
    last: str | None = None

    def __post_init__(self) -> None:
        check_fraction(self.floor, "floor")
        check_fraction(self.last_floor, "last_floor")

    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Counts in proportion to the entries, after the first and the last tensor."""
        room = survey(scores)
        kept = budget(room, kept)
        shapes = room.shapes
        first = self.first or next((name for name, shape in shapes.items() if len(shape) >= 3), None)
        last = self.last or next((name for name in reversed(list(shapes)) if len(shapes[name]) >= 2), None)
        floors = dict.fromkeys(shapes, self.floor)
        if last is not None:
            floors[_known(last, shapes)] = max(self.floor, self.last_floor)
        if first is not None:
            floors[_known(first, shapes)] = 1.0
        lower = least(room, kept, floors, "the dense first convolution with the floor of the last layer")
        shares = {name: float(math.prod(shape)) for name, shape in shapes.items() if room.nonzeros[name]}
        return dict.fromkeys(shapes, 0) | apportion(shares, lower, dict(room.nonzeros), kept)


def _known(name: str, names: Iterable[str]) -> str:
    names = list(names)
    if name not in names:
        raise EspalierError(
            f"UniformPlus names {name!r}, which is not among the selected parameters.{near(name, names)}"
        )
    return name
