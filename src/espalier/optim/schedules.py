"""How far along a ramp is at a given progress: frozen values, no torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from espalier._errors import EspalierError
from espalier._types import is_number, plain


class AbstractSchedule(ABC):
    """A nondecreasing map of [0, 1] onto [0, 1]."""

    @abstractmethod
    def fraction(self, progress: float) -> float:
        """Share of the ramp covered at `progress`, both in [0, 1]; 0 at 0 and 1 at 1."""


@dataclass(frozen=True)
class Polynomial(AbstractSchedule):
    r"""Fast first, then ever slower: :math:`1 - (1 - p)^{\mathrm{power}}`.

    Power 3 is the cubic ramp of Zhu and Gupta (2017, "To prune, or not to prune"); power 1 is a straight
    line.

    Args:
        power: > 0.

    Raises:
        EspalierError: `power` is not a positive number.
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        if not is_number(self.power) or not 0 < self.power < float("inf"):
            raise EspalierError(
                f"`power` of a schedule is {self.power!r}; it must be a positive number (cubic is 3)"
            )
        object.__setattr__(self, "power", plain(self.power))

    def fraction(self, progress: float) -> float:
        """Give 1 - (1 - progress)^power."""
        left = 1.0 - min(max(progress, 0.0), 1.0)
        return 1.0 - float(left**self.power)


CUBIC = Polynomial(3.0)
