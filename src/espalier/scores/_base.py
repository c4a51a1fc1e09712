"""What a score sees, what it answers, and the one place where existing zeros become the last to be kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from espalier._errors import EspalierError, listing, near
from espalier._types import LazyTensors, Tensors


@dataclass(frozen=True)
class Evidence:
    """What is known about a network when its entries are scored.

    Args:
        weights: the selected parameters by name; may read its tensors on access.
    """

    weights: Tensors


class AbstractScore(ABC):
    """How much each entry of each parameter matters; higher means keep.

    A score is a frozen value without state: the same evidence gives the same scores, bit for bit, on every
    device and in every order of the names. `needs` names the fields of `Evidence` it reads, so that a
    driver gathers those and no others, and refuses early when one is missing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    @abstractmethod
    def scores(self, evidence: Evidence) -> Tensors:
        """Scores with the keys, shapes and devices of `evidence.weights`, in a real floating dtype.

        Only the order of the scores is used (and, by layer-adaptive allocations, their ratios). Scores that
        need one tensor at a time return `LazyTensors`, so that a checkpoint larger than memory can be
        scored. The evidence is left as it is.
        """


def ranked(score: AbstractScore, evidence: Evidence) -> Tensors:
    """Scores in which an entry that is already zero comes last: its score is -inf, which means "never kept".

    Pruning again a network that has zeros must leave them zero, whatever the score says (a random or a
    gradient score may well prefer one). Every other score is raised to the smallest finite number where it
    is -inf itself.

    Args:
        score: the score to gather.
        evidence: what it may read; every field in `score.needs` must be there.

    Returns:
        A mapping that makes one tensor per access: shapes of the weights, dtype and device of the score.

    Raises:
        EspalierError: if evidence is missing, if the score answers with other names or shapes, or (on access)
            if a tensor holds a weight that is not finite.
    """
    missing = sorted(field for field in score.needs if getattr(evidence, field, None) is None)
    if missing:
        raise EspalierError(f"{type(score).__name__} needs {listing(missing)}, which nothing has gathered.")
    evidence = replace(evidence, weights=_LatestOnly(evidence.weights))
    raw = score.scores(evidence)
    for name in evidence.weights:
        if name not in raw:
            raise EspalierError(
                f"{type(score).__name__} has no score for parameter {name!r}.{near(name, raw)}"
            )
    for name in raw:
        if name not in evidence.weights:
            raise EspalierError(f"{type(score).__name__} scored the unknown parameter {name!r}.")

    def load(name: str) -> Tensor:
        weight, values = evidence.weights[name].detach(), raw[name].detach()
        if weight.shape != values.shape:
            raise EspalierError(
                f"{type(score).__name__} gave {name!r} scores of shape {tuple(values.shape)} for weights of "
                f"shape {tuple(weight.shape)}."
            )
        finite = torch.isfinite(weight)
        if not finite.all():
            bad = finite.numel() - int(finite.sum())
            raise EspalierError(
                f"{name!r} holds {bad} entries that are NaN or infinite, which no score can rank; repair the "
                "checkpoint, or leave the tensor out with `exclude`."
            )
        lowest = torch.finfo(values.dtype).min
        return values.masked_fill(values == -torch.inf, lowest).masked_fill_(weight == 0, -torch.inf)

    return LazyTensors(list(evidence.weights), load)


class _LatestOnly(Mapping[str, Tensor]):
    """Remembers the tensor read last, so that a score and its caller share one read of a file."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._latest: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._latest is None or self._latest[0] != name:
            self._latest = (name, self._tensors[name])
        return self._latest[1]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # the inherited test would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
