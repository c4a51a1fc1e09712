"""Rules that compute with a function of what is trained and settle on a mask: soft thresholds, gates, noise.

None of these methods hits a count by itself. At one step of the run the entries are ranked by the method's own
quantity, exactly as many as asked are kept at the values the network computes with, and they train on at that
mask.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._types import LazyTensors, Tensors
from espalier.masks import Masks
from espalier.methods._base import Plan
from espalier.methods.masked import MaskRule, without_zeros
from espalier.methods.ramp import sparsity_at
from espalier.optim import CUBIC, AbstractSchedule
from espalier.pruning import kept_entries
from espalier.threshold import kth_largest, top_counts


class Settling(MaskRule):
    """A rule that computes with `seen` until step `settle` and holds a mask from there on.

    Args:
        settle: fraction of the run, in (0, 1].
        model: the network.
        plan: of the run.
    """

    def __init__(self, settle: float, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.settle = plan.at(settle)
        self.done = 0
        _ = self.kept  # refuses a missing sparsity

    @property
    def settled(self) -> bool:
        """Whether the mask is fixed and the parameters are the weights."""
        return self.masks is not None

    # --- what a method says

    @abstractmethod
    def seen(self) -> dict[str, Tensor]:
        """What the network computes with when it is measured."""

    @abstractmethod
    def ranks(self) -> Tensors:
        """The method's own quantity, higher = keep, in the parameters' shapes."""

    @abstractmethod
    def plain(self, cut: float) -> dict[str, Tensor]:
        """Weights to go on with, given the highest rank that is not kept; zero at no entry that ranks higher."""

    def latents(self) -> Mapping[str, Tensor]:
        """Tensors that are trained beside the parameters, for saving."""
        return {}

    def advance(self, step: int) -> None:
        """Act after each step before the mask is settled."""

    # --- what the run asks

    def weights(self) -> dict[str, Tensor] | None:
        """What is seen, until the mask is settled."""
        return None if self.settled else self.seen()

    def measured(self) -> dict[str, Tensor] | None:
        """What is seen, without noise."""
        return None if self.settled else self.seen()

    def begin(self, optimizer: Optimizer) -> None:
        """Settle at once in a run without steps."""
        self._optimizer = optimizer
        if self.plan.steps == 0:
            self.fix()

    def after_step(self, step: int) -> None:
        """Settle at its step."""
        self.done = step
        if not self.settled:
            self.advance(step)
            if step == self.settle:
                self.fix()

    def fix(self) -> None:
        """Keep exactly as many entries as asked, from now on."""
        with torch.no_grad():
            ranks = self.ranks()
            masks = Masks.from_scores(ranks, top_counts(ranks, self.kept))
            cut = kth_largest(ranks, self.kept + 1).value if self.kept < self.entries else -torch.inf
            for name, tensor in self.plain(cut).items():
                self.parameters[name].copy_(without_zeros(tensor, masks[name]))
        self.hold(masks)

    def finish(self) -> Masks:
        """Settle if it has not been done."""
        if not self.settled:
            self.fix()
        return super().finish()

    def ramp(
        self, first: int = 0, last: int | None = None, schedule: AbstractSchedule = CUBIC, ahead: int = 0
    ) -> float:
        """Sparsity that a ramp between two steps, by default 0 and `settle`, asks for now or some steps ahead."""
        last = self.settle if last is None else last
        progress = (self.done + ahead - first) / max(1, last - first)
        return sparsity_at(progress, 0.0, self.plan.target, schedule)

    def magnitudes(self) -> Tensors:
        """Absolute weights, one tensor at a time."""
        return LazyTensors(list(self.parameters), lambda name: self.parameters[name].detach().abs())

    def quantile(self, sparsity: float) -> float:
        """The largest magnitude that a sparsity prunes; 0 where it prunes nothing."""
        kept = kept_entries(self.entries, sparsity)
        return kth_largest(self.magnitudes(), kept + 1).value if kept < self.entries else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The masks, the latents, and where the run is."""
        latents = {name: tensor.detach().clone() for name, tensor in self.latents().items()}
        return {**super().state_dict(), "done": self.done, "latents": latents}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Go on from there."""
        super().load_state_dict(state, optimizer)
        self.done = int(state["done"])
        with torch.no_grad():
            for name, tensor in self.latents().items():
                tensor.copy_(state["latents"][name])
