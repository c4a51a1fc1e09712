"""One ranking of all entries of the network."""

from dataclasses import dataclass

from espalier._types import Counts, Tensors
from espalier.allocate._base import AbstractAllocation, check_fraction, ranked_counts


@dataclass(frozen=True)
class Global(AbstractAllocation):
    """Keep the entries that score highest in the whole network, wherever they are.

    With magnitudes this is the pruning closest to the parent in cosine and in distance, and it empties
    tensors whose scale is small: see `floor`, `LAMP`, and the warnings of `espalier inspect`.

    Equal scores go to the smaller (parameter name, flat index). Memory is one tensor of scores beyond those
    given.

    Args:
        floor: fraction of each tensor that is kept at least, rounded up to entries; in [0, 1].

    Raises:
        EspalierError: if the floors together keep more than the budget.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.floor, "floor")

    def counts(self, scores: Tensors, kept: int) -> Counts:
        """Counts of the entries that score highest in all."""
        return ranked_counts(scores, kept, self.floor)
