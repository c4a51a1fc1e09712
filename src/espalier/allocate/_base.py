"""What an allocation sees of the scores, and the bounds every allocation keeps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from espalier._errors import EspalierError
from espalier._types import Counts, LazyTensors, Tensors, required_in
from espalier.threshold import top_counts, top_mask


class AbstractAllocation(ABC):
    """Spreads a budget of kept entries over the tensors of a network.

    Every allocation sums to exactly the budget, never gives a tensor more than it has nonzero entries (a
    score of -inf marks an entry that is zero already, see `espalier.scores.ranked`), takes nothing away
    from any tensor when the budget grows, and does not depend on the order of the names unless it says so.
    """

    @abstractmethod
    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Exact number of entries kept per tensor.

        Args:
            scores: floating tensors by name; higher = keep, -inf = never keep.
            kept: entries to keep in all. Where fewer are nonzero, all nonzeros are kept and the sum is
                theirs.

        Returns:
            A count for each name, in the order of `scores`.

        Raises:
            EspalierError: if `kept` is out of range, or smaller than the lower bounds of the tensors
                together.
        """


@dataclass(frozen=True)
class Room:
    """How much of each tensor can be kept.

    Args:
        shapes: of each tensor, in the order of the scores.
        nonzeros: entries of each tensor that may be kept.
        required: entries of each tensor that are kept always (see `espalier.scores.ranked`).
    """

    shapes: Mapping[str, tuple[int, ...]]
    nonzeros: Mapping[str, int]
    required: Mapping[str, int]

    @property
    def entries(self) -> int:
        """Entries of all tensors, zeros included."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def survey(scores: Tensors) -> Room:
    """Shapes and nonzeros, each tensor read once."""
    shapes, nonzeros, required = {}, {}, {}
    marked = required_in(scores)
    for name in scores:
        tensor = scores[name]
        shapes[name] = tuple(tensor.shape)
        nonzeros[name] = tensor.numel() - int((tensor == -torch.inf).sum())
        required[name] = int((tensor == torch.inf).sum()) if name in marked else 0
    return Room(shapes, nonzeros, required)


def budget(room: Room, kept: int) -> int:
    """The entries that can be kept of the `kept` asked for."""
    if not 0 <= kept <= room.entries:
        raise EspalierError(
            f"cannot keep {kept} of {room.entries} entries; `kept` lies between 0 and that number."
        )
    return min(kept, sum(room.nonzeros.values()))


def least(room: Room, kept: int, floors: Mapping[str, float], cause: str) -> Counts:
    """Lower bounds from kept fractions, rounded up, and from required entries.

    A tensor cannot be held above its number of nonzeros.

    Args:
        room: what there is.
        kept: the budget, which the bounds must not exceed.
        floors: kept fraction in [0, 1] of each tensor.
        cause: what asked for the bounds, for the message.

    Raises:
        EspalierError: if the bounds sum to more than `kept`; says which sparsity can be reached.
    """
    bounds = {
        # The small number takes back what rounding of the product may have added to a whole number.
        name: max(
            min(math.ceil(floors[name] * math.prod(shape) - 1e-9), room.nonzeros[name]), room.required[name]
        )
        for name, shape in room.shapes.items()
    }
    total, entries = sum(bounds.values()), room.entries
    if total > kept:
        if any(room.required.values()):
            rows = "one entry in each row of a weight norm"
            cause = f"{cause} with {rows}" if any(floors.values()) else rows
        reachable = math.floor((entries - total) / entries * 1e6) / 1e6
        raise EspalierError(
            f"{cause} keeps at least {total} of {entries} entries, but only {kept} are to be kept; the "
            f"largest sparsity that can be reached is {reachable:.6g}: ask for less, or lower the floor."
        )
    return bounds


def check_fraction(value: float, argument: str) -> None:
    """Refuses what is not a fraction."""
    if not 0 <= value <= 1:
        raise EspalierError(f"`{argument}` is a kept fraction between 0 and 1, got {value!r}.")


def ranked_counts(scores: Tensors, kept: int, floor: float) -> Counts:
    """One ranking of all entries, after each tensor has received its floor."""
    required = required_in(scores)
    if floor == 0 and kept > 0 and not required:
        return top_counts(scores, kept)  # which refuses a rank that does not exist, at one pass less
    room = survey(scores)
    kept = budget(room, kept)
    bounds = least(room, kept, dict.fromkeys(room.shapes, floor), f"`floor`={floor:g}")
    # The best entries of each tensor are put before all others; the rest of the budget goes by rank as
    # before.
    return top_counts(LazyTensors(list(scores), lambda name: _promoted(scores, name, bounds[name])), kept)


def _promoted(scores: Tensors, name: str, count: int) -> torch.Tensor:
    """Scores of a tensor with its `count` best entries at +inf, and nothing else there."""
    values = scores[name].detach()
    best = top_mask(values, count, name)
    return values.clamp(max=torch.finfo(values.dtype).max).masked_fill_(best, torch.inf)
