"""What a run leaves behind: one record per epoch."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier._errors import Failed
from espalier._types import Counts
from espalier.evaluation import Evaluation, Interval
from espalier.likeness import Similarity
from espalier.masks import Masks
from espalier.train.training import Training


@dataclass(frozen=True)
class Turnover:
    """How the zeros moved over an epoch.

    Args:
        pruned: weights that became zero.
        regrown: weights that stopped being zero.
        churn: (pruned + regrown) / entries, in [0, 1].
        overlap: Jaccard index of the kept entries before and after, in [0, 1].
    """

    pruned: int
    regrown: int
    churn: float
    overlap: float


@dataclass(frozen=True)
class Epoch:
    """The network after an epoch; epoch 0 is the network as it came. None means not measured.

    Args:
        epoch: 0, 1, ...
        train_loss: mean training loss over the examples of the epoch, in train mode; None at epoch 0.
        accuracy: on the validation split.
        accuracy_interval: 95 % Wilson interval.
        loss: mean cross-entropy on the validation split, in nats.
        sparsity: zeros / entries of the selected weights, recounted.
        zeros: the count.
        kept: selected weights that are not zero, by parameter name.
        cosine: of the selected weights to the parent's.
        cosine_bound: the largest cosine the masks allow.
        agreement: with the parent's choices, on the inputs of the validation split.
        agreement_interval: 95 % Wilson interval.
        divergence: mean Jensen-Shannon divergence to the parent, in nats.
        logit_cosine: mean cosine of the logits to the parent's.
        turnover: how the zeros of the selected weights moved over the epoch; None at epoch 0.
        lr: learning rate at the end of the epoch (first parameter group).
        seconds: wall clock of the training part of the epoch.
    """

    epoch: int
    train_loss: float | None
    accuracy: float | None
    accuracy_interval: Interval | None
    loss: float | None
    sparsity: float
    zeros: int
    kept: Counts = field(repr=False)
    cosine: float | None
    cosine_bound: float | None
    agreement: float | None
    agreement_interval: Interval | None
    divergence: float | None
    logit_cosine: float | None
    turnover: Turnover | None
    lr: float
    seconds: float = field(compare=False)

    def record(self) -> dict[str, Any]:
        """For JSON and the checkpoint; numbers that are not finite become None."""
        return {name: _finite(value) for name, value in dataclasses.asdict(self).items()}

    @staticmethod
    def from_record(record: dict[str, Any]) -> "Epoch":
        """Undo `record`; unknown fields, from a later version, are dropped."""
        known = {f.name for f in dataclasses.fields(Epoch)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known
        }
        moved = values.get("turnover")
        values["turnover"] = None if moved is None else Turnover(**moved)
        return Epoch(**values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measured(
    *,
    epoch: int,
    train_loss: float | None,
    evaluation: Evaluation | None,
    kept: Masks,
    cosine: float | None,
    bound: float | None,
    similarity: Similarity | None,
    turnover: Turnover | None,
    lr: float,
    seconds: float,
) -> Epoch:
    """Put what was measured after an epoch into one record."""
    e, s = evaluation, similarity
    return Epoch(
        epoch=epoch,
        train_loss=train_loss,
        accuracy=e.accuracy if e else None,
        accuracy_interval=e.interval if e else None,
        loss=e.loss if e else None,
        sparsity=kept.sparsity,
        zeros=kept.entries - kept.kept,
        kept=kept.counts,
        cosine=cosine,
        cosine_bound=bound,
        agreement=s.agreement if s else None,
        agreement_interval=s.interval if s else None,
        divergence=s.divergence if s else None,
        logit_cosine=s.logit_cosine if s else None,
        turnover=turnover,
        lr=lr,
        seconds=seconds,
    )


@dataclass(frozen=True)
class History:
    """The run.

    Args:
        epochs: records from epoch 0 (before training) to the last.
        spec: what was run: training, data, masks, optimizer, precision.
        digest: of the spec.
        resumed: how many epochs were read from the folder instead of trained.
        scored: FLOPs of the passes that the scores of a method took beside the training, counted as they ran (two a
            multiply-accumulate of matrices and convolutions).
    """

    epochs: tuple[Epoch, ...]
    spec: dict[str, Any] = field(repr=False)
    digest: str
    resumed: int = field(default=0, compare=False)
    scored: int = 0

    @property
    def before(self) -> Epoch:
        """The network as it came."""
        return self.epochs[0]

    @property
    def last(self) -> Epoch:
        """The network as it is."""
        return self.epochs[-1]


class Diverged(Failed):
    """The loss became infinite or NaN: the run is marked failed, the last good checkpoint is kept.

    Args:
        message: one line for the user.
        history: the good epochs.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def settled(training: Training, epochs: Sequence[Epoch]) -> bool:
    """Whether the zeros hardly moved over the last epoch, where the training is to stop then."""
    last = epochs[-1] if epochs else None
    if training.stop_below is None or last is None or last.turnover is None or not last.zeros:
        return False
    return last.turnover.churn <= training.stop_below
