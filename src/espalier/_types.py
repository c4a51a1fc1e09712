"""The one currency: tensors keyed by full parameter name; and what counts as a number."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""Parameter name -> tensor. A plain `dict`, or a mapping that reads its tensors on access."""

Counts = dict[str, int]
"""Parameter name -> exact number of entries kept."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, NumPy's included."""
    return isinstance(value, Real)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value counts something: a whole number, NumPy's included, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Python's own number or bool for NumPy's, which `torch.load(weights_only=True)` refuses; others as they are."""
    return value.item() if isinstance(value, np.generic) else value


class LazyTensors(Mapping[str, Tensor]):
    """A mapping whose tensors are made on access and never kept.

    Scores, allocations and masks take any `Tensors`; given this one they hold one tensor at a time, so a
    checkpoint larger than memory goes through the same code as a small dict.

    Args:
        names: the keys, in order.
        load: makes the tensor of a name; called at each access.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._load = load

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited test would make the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class RankedTensors(LazyTensors):
    """Scores, some of whose entries are required.

    Args:
        names: the keys, in order.
        load: makes the tensor of a name; called at each access.
        required: names of the tensors in which +inf marks an entry that every mask keeps.
    """

    def __init__(
        self, names: Sequence[str], load: Callable[[str], Tensor], required: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(names, load)
        self.required = required


def required_in(scores: Tensors) -> frozenset[str]:
    """Names of the tensors in which +inf marks a required entry."""
    return scores.required if isinstance(scores, RankedTensors) else frozenset()
