"""Rules that hold a mask: what one-shot, gradual and drop-and-grow methods share."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.allocate import AbstractAllocation
from espalier.apply import Hold, hold
from espalier.masks import Masks
from espalier.methods._base import Plan, Rule
from espalier.methods.evidence import gather
from espalier.pruning import kept_entries
from espalier.scores import AbstractScore, Evidence, ranked


def choose(
    score: AbstractScore, allocation: AbstractAllocation, evidence: Evidence, sparsity: float
) -> Masks:
    """The masks of a score at a sparsity; entries that are zero already are the first to go.

    Args:
        score: what makes an entry worth keeping.
        allocation: how the budget is spread over the tensors.
        evidence: what the score reads.
        sparsity: zeros / entries, in [0, 1).
    """
    scores = ranked(score, evidence)
    entries = sum(tensor.numel() for tensor in evidence.weights.values())
    counts = allocation.counts(scores, kept_entries(entries, sparsity))
    return Masks.from_scores(scores, counts)


class MaskRule(Rule):
    """A rule whose zeros are a mask at any time, held through the optimizer's steps."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.held: Hold | None = None
        self._optimizer: Optimizer | None = None

    @property
    def masks(self) -> Masks | None:
        """What is kept now; None while nothing is masked."""
        return None if self.held is None else self.held.masks

    def hold(self, masks: Masks | None, optimizer: Optimizer | None = None) -> None:
        """Prune to these masks from now on, or to none; the same ones again change nothing."""
        self._optimizer = optimizer or self._optimizer
        if self.held is not None:
            self.held.release()
            self.held = None
        if masks is not None:
            self.held = hold(self.model, masks, self._optimizer)

    def evidence(self, score: AbstractScore | None = None) -> Evidence:
        """What a score needs of the network as it is now; the weights, without one."""
        needs = frozenset({"weights"}) if score is None else score.needs
        sampling = getattr(score, "sampling", None)
        with self.scoring() if needs - {"weights"} else nullcontext():
            found = gather(self.model, self.plan.names, needs, self.batches, sampling)
        return replace(found, seed=self.plan.training.seed)

    def finish(self) -> Masks:
        """The masks, after a last look that every pruned weight is zero."""
        assert self.masks is not None, "a method ended without masks"
        self.masks.verify(self.model)
        return self.masks

    def close(self) -> None:
        """Release the hold."""
        if self.held is not None:
            self.held.release()

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": None if self.masks is None else {name: self.masks[name] for name in self.masks}}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Hold the masks again."""
        masks: dict[str, Tensor] | None = state["masks"]
        self.hold(None if masks is None else Masks(masks), optimizer)


_TOKEN = 1e-7
"""Stands for a kept weight that nothing moves from zero: small enough to change no output, kept by float16."""


def without_zeros(tensor: Tensor, mask: Tensor) -> Tensor:
    """A tensor whose entries under a mask are none of them exactly zero, so that a recount finds them kept.

    A grown weight of a dead unit has no gradient and would stay at zero; such an entry gets 1e-7.
    """
    return tensor.masked_fill((tensor == 0) & mask.to(tensor.device), _TOKEN)
