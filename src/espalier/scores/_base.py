"""What a score sees, what it answers, and the one place where existing zeros become the last to be kept."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from espalier._errors import EspalierError, listing, near
from espalier._types import LazyTensors, RankedTensors, Tensors


@dataclass(frozen=True)
class Evidence:
    """What is known about a network when its entries are scored.

    L is the mean loss over the examples looked at; a sample is the mean over one group of them (see `Sampling`).
    What a score needs beyond the weights, `espalier.methods.gather` computes; None was not gathered.

    Args:
        weights: the selected parameters by name; may read its tensors on access.
        gradients: dL/dw, in the weights' shapes.
        squared_gradients: mean over the m samples of their squared gradients: the diagonal of the empirical Fisher
            matrix where a group is one example.
        gradient_samples: the m gradients themselves, (m, *shape).
        hessian_gradient: the Hessian of L times the gradient of L.
        hessian_diagonal: an estimate of the diagonal of the Hessian of L.
        synaptic_flow: dR/d|w| of the sum of outputs R of the network of absolute weights (see `SynFlow`).
        movement: minus w dL/dw, summed over the steps of a training run (see `Movement`).
        seed: of the run; 0 outside of one.
        groups: parameter name -> shape of its groups of entries, broadcast against its own. Each group keeps at
            least one entry: the rows of a weight norm, which are divided by their length.
    """

    weights: Tensors
    gradients: Tensors | None = None
    squared_gradients: Tensors | None = None
    gradient_samples: Tensors | None = None
    hessian_gradient: Tensors | None = None
    hessian_diagonal: Tensors | None = None
    synaptic_flow: Tensors | None = None
    movement: Tensors | None = None
    seed: int = 0
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """Which examples a score looks at, and how.

    Everything runs in eval mode. Examples that do not fill a last group are left out, unless they are all there are.

    Args:
        examples: how many training examples at most, unaugmented, in the order that the run's seed fixes.
        group: examples whose mean gradient is one sample, at least 1.
        batch_statistics: let batch norm normalize with the statistics of each group, as in training, for networks
            whose running statistics mean nothing yet; the running ones stay as they are.
        temperature: the logits are divided by it before the softmax, positive.

    Raises:
        EspalierError: a value outside its range.
    """

    examples: int = 1000
    group: int = 100
    batch_statistics: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.group <= self.examples:
            raise EspalierError(
                f"a group has at least 1 example and at most all {self.examples}, got `group`={self.group}"
            )
        if not 0 < self.temperature < float("inf"):
            raise EspalierError(f"a temperature is positive, got {self.temperature:g}")


class AbstractScore(ABC):
    """How much each entry of each parameter matters; higher means keep.

    A score is a frozen value without state: the same evidence gives the same scores, bit for bit, on every
    device and in every order of the names. `needs` names the fields of `Evidence` it reads, so that a
    driver gathers those and no others, and refuses early when one is missing. A score that needs examples has
    a field `sampling`, which says which.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})
    signed: ClassVar[bool] = False
    """Whether scores may be below zero, which `LAMP` refuses."""

    @abstractmethod
    def scores(self, evidence: Evidence) -> Tensors:
        """Scores with the keys, shapes and devices of `evidence.weights`, in a real floating dtype.

        Only the order of the scores is used (and, by layer-adaptive allocations, their ratios). Scores that
        need one tensor at a time return `LazyTensors`, so that a checkpoint larger than memory can be
        scored. The evidence is left as it is.
        """


def elementwise(
    evidence: Evidence, gathered: Tensors | None, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensors:
    """`function(w, v)` of each weight tensor and what was gathered for it, one tensor at a time.

    Both come in float64, so that products of small numbers do not vanish.
    """
    assert gathered is not None, "ranked() checks that what is needed is there"
    weights = evidence.weights
    return LazyTensors(
        list(weights), lambda name: function(weights[name].detach().double(), gathered[name].double())
    )


def ranked(score: AbstractScore, evidence: Evidence) -> Tensors:
    """Scores in which an entry that is already zero comes last: its score is -inf, which means "never kept".

    Pruning again a network that has zeros must leave them zero, whatever the score says (a random or a
    gradient score may well prefer one). Every other score is raised to the smallest finite number where it
    is -inf itself. Where entries form groups (`Evidence.groups`), the best nonzero entry of each is required:
    its score is +inf, and every allocation keeps it.

    Args:
        score: the score to gather.
        evidence: what it may read; every field in `score.needs` must be there (`espalier.methods.gather`).

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
        values = values.masked_fill(values == -torch.inf, lowest).masked_fill_(weight == 0, -torch.inf)
        return with_required(values, evidence.groups[name]) if name in evidence.groups else values

    required = frozenset(name for name in evidence.weights if name in evidence.groups)
    return RankedTensors(list(evidence.weights), load, required)


def with_required(scores: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Scores in which the best entry of each group is +inf, and no other entry is.

    Ties go to the first entry of the group. A group whose scores are all -inf has no best entry.

    Args:
        scores: floating; -inf marks entries that are never kept.
        groups: as many dimensions as the scores, each of the same size or 1: the groups run along those of 1.
    """
    if not scores.numel():
        return scores
    along = [d for d, size in enumerate(groups) if size == 1]
    order = [d for d in range(scores.dim()) if d not in along] + along
    sorted_dims = scores.permute(order)
    rows = sorted_dims.reshape(math.prod(groups), -1)
    best = rows.amax(1, keepdim=True)
    hits = (rows == best) & (best > -torch.inf)
    first = hits & (hits.cumsum(1) == 1)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    mask = first.view(sorted_dims.shape).permute(inverse)
    return scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill_(mask, torch.inf)


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
