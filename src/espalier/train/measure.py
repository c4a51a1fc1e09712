"""What is measured of a network after each epoch: accuracy, likeness to the parent, zeros and how they moved."""

from collections.abc import Sequence

from torch import Tensor, nn

from espalier._forward import collect_logits
from espalier.data import AbstractSplit
from espalier.evaluation import score
from espalier.likeness import compare_logits, cosine_bound, weight_cosine
from espalier.masks import Masks
from espalier.train.history import Epoch, Turnover, measured

_COSINE_SLACK = 1e-6


class Gauge:
    """Measures one network again and again on the same held-out inputs, against the same parent.

    Args:
        model: the network.
        held_out: the validation split; may be empty.
        names: parameters whose zeros and cosine are taken.
        parent: the dense network, or None.
        masks: masks that never change, or None; they bound the cosine.
    """

    def __init__(
        self,
        model: nn.Module,
        held_out: AbstractSplit,
        names: Sequence[str],
        parent: nn.Module | None,
        masks: Masks | None,
    ) -> None:
        self.model, self.held_out, self.names = model, held_out, tuple(names)
        self.parent_weights = None if parent is None else dict(parent.named_parameters())
        self.parent_logits: Tensor | None = None
        if parent is not None and len(held_out):
            self.parent_logits = collect_logits(parent, held_out)
        self.bound: float | None = None
        self._bounded = masks is not None and set(self.names) == set(masks)
        if self.parent_weights is not None and masks is not None:
            self.bound = cosine_bound(self.parent_weights, masks)
        self._kept: Masks | None = None

    def look(self) -> tuple[Masks, Turnover | None]:
        """What is not zero now, and what changed of it since the last look; None at the first."""
        weights = dict(self.model.named_parameters())
        before, now = self._kept, Masks.from_zeros({name: weights[name] for name in self.names})
        self._kept = now
        return now, turnover(before, now) if before else None

    def measure(self, epoch: int, train_loss: float | None, lr: float, seconds: float) -> Epoch:
        """Evaluate on the held-out split and count; every process does the same."""
        weights = dict(self.model.named_parameters())
        evaluation = similarity = cosine = None
        if len(self.held_out):
            logits = collect_logits(self.model, self.held_out)
            if int(self.held_out.labels.min()) >= 0:
                evaluation = score(logits, self.held_out.labels)
            if self.parent_logits is not None:
                similarity = compare_logits(logits, self.parent_logits)
        if self.parent_weights is not None:
            cosine = weight_cosine(weights, self.parent_weights, self.names)
        if self.bound is not None and cosine is not None and self._bounded:
            assert cosine <= self.bound + _COSINE_SLACK, (cosine, self.bound)
        kept, moved = self.look()
        return measured(
            epoch=epoch,
            train_loss=train_loss,
            evaluation=evaluation,
            kept=kept,
            cosine=cosine,
            bound=self.bound,
            similarity=similarity,
            turnover=moved,
            lr=lr,
            seconds=seconds,
        )


def turnover(before: Masks, after: Masks) -> Turnover:
    """What changed from one set of kept entries to another of the same parameters."""
    both = (before & after).kept
    pruned, regrown = before.kept - both, after.kept - both
    return Turnover(
        pruned=pruned,
        regrown=regrown,
        churn=(pruned + regrown) / after.entries if after.entries else 0.0,
        overlap=before.overlap(after),
    )
