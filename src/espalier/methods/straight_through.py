"""ST-3: soft-thresholded weights in the forward pass, straight-through gradients in the backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._types import Tensors
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.ramp import check_ramp
from espalier.methods.settling import Settling
from espalier.optim import CUBIC, AbstractSchedule, lost_scale, soft_threshold


@dataclass(frozen=True)
class ST3(AbstractMethod):
    r"""Straight-through, soft-thresholded, sparse training: pruned weights go on learning and may come back.

    .. math:: \hat w_{ij} = \alpha_i \, S_{g_t}(w_{ij}), \qquad
              \alpha_i = \frac{1.01}{\rho_i + 0.01}, \qquad
              \rho_i = \frac{\sum_j |w_{ij}| \, [|w_{ij}| > g_t]}{\sum_j |w_{ij}|}, \qquad
              \frac{\partial L}{\partial w} := \frac{\partial L}{\partial \hat w}

    i is the output unit (dimension 0), which gets back the scale it loses by pruning; :math:`g_t` is the threshold
    that prunes the sparsity of a cubic ramp over all tensors, the same ramp as of `TargetGRDA`.

    Differs from the authors' code in that the threshold is searched at `updates` evenly spread steps of the ramp
    (and as often after it) instead of at every step, by exact selection instead of interpolated quantiles, that
    the ramp is given in fractions of the run, and that at `settle`, 1 by default as in theirs, exactly as many
    entries as asked stay.

    Args:
        begin: fraction of the run where the ramp starts, in [0, 1).
        end: fraction of the run where it ends, in (begin, settle].
        settle: fraction of the run where the mask is fixed and the seen weights become the trained ones.
        rescale: False leaves alpha at 1.
        updates: searches of the threshold on the ramp, at least 1.
        schedule: shape of the ramp.

    Raises:
        EspalierError: a value outside its range.

    References:
        Vanderschueren, De Vleeschouwer (2023), "Are straight-through gradients and soft-thresholding all you need
            for sparse training?", WACV.
    """

    begin: float = 0.0
    end: float = 0.5
    settle: float = 1.0
    rescale: bool = True
    updates: int = 100
    schedule: AbstractSchedule = CUBIC

    def __post_init__(self) -> None:
        check_ramp(self.begin, self.end, self.updates)
        if not self.end <= self.settle <= 1:
            raise EspalierError(
                f"the mask settles between the end of the ramp, {self.end:g}, and that of the run, 1, got "
                f"{self.settle:g}"
            )

    def rule(self, model: nn.Module, plan: Plan) -> "_StraightThrough":
        """A rule that follows the ramp."""
        return _StraightThrough(self, model, plan)


class _StraightThrough(Settling):
    def __init__(self, method: ST3, model: nn.Module, plan: Plan) -> None:
        super().__init__(method.settle, model, plan)
        self.method = method
        self.first, self.last = round(method.begin * plan.steps), plan.at(method.end)
        self.every = max(1, (self.last - self.first) // method.updates)
        self.threshold = 0.0

    def ranks(self) -> Tensors:
        return self.magnitudes()

    def advance(self, step: int) -> None:
        if step >= self.first and (step - self.first) % self.every == 0:
            self.threshold = self.quantile(self.ramp(self.first, self.last, self.method.schedule))

    def computed(self, weight: Tensor) -> Tensor:
        """The sparse, rescaled weights."""
        sparse = soft_threshold(weight, self.threshold)
        return sparse * lost_scale(weight, self.threshold) if self.method.rescale else sparse

    def weights(self) -> dict[str, Tensor] | None:
        seen = super().weights()
        if seen is None:
            return None
        # Forward the seen weights, backward the identity.
        return {name: p + (seen[name] - p).detach() for name, p in self.parameters.items()}

    def seen(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: self.computed(p) for name, p in self.parameters.items()}

    def plain(self, cut: float) -> dict[str, Tensor]:
        self.threshold = max(cut, 0.0)
        return self.seen()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        super().load_state_dict(state, optimizer)
        self.threshold = float(state["threshold"])
