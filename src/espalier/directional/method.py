"""Directional pruning as a method of a training run, to be compared with others at equal conditions."""

import glob
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.directional.pruning import prune_directional
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule


@dataclass(frozen=True)
class DirectionalPruning(AbstractMethod):
    """Prunes once, along the directions that the loss does not mind, and trains what is left.

    The curvature is that of the mean loss over some training examples, not augmented, in eval mode; see `directional`.

    Args:
        at: fraction of the run where it prunes, in [0, 1]. A network must have learned something before its flat
            directions mean anything: 0, before the first step, is for one that is trained already.
        directions: leading eigenpairs computed each time.
        examples: training examples that the curvature is taken on.
        refresh: share of all weights newly at zero after which curvature is computed again, in (0, 1].
        adjust: put the weights that stay where the known curvature wants them.

    Raises:
        EspalierError: a value outside its range.

    References:
        Chao, Wang, Xing, Cheng (2020), "Directional pruning of deep neural networks". There the optimizer gRDA does
        it along the way; this is the path of `follow` at one moment.
    """

    at: float = 0.5
    directions: int = 10
    examples: int = 500
    refresh: float = 0.1
    adjust: bool = True

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("at", 0 <= self.at <= 1, "a fraction of the run, in [0, 1]"),
            ("directions", self.directions >= 1, "at least 1"),
            ("examples", self.examples >= 1, "at least 1"),
            ("refresh", 0 < self.refresh <= 1, "a share of the weights, in (0, 1]"),
        ):
            if not ok:
                raise EspalierError(f"`{name}` must be {need}, got {getattr(self, name)}")

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that acts once."""
        return _Once(self, model, plan)


class _Once(MaskRule):
    def __init__(self, method: DirectionalPruning, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.step = plan.at(method.at) if method.at and plan.steps else 0

    def begin(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        if self.step == 0:
            self.prune()

    def after_step(self, step: int) -> None:
        if step == self.step:
            self.prune()

    def prune(self) -> None:
        """Move the weights, and hold the zeros from now on."""
        if self.batches is None:
            raise EspalierError(
                "directional pruning looks at the loss on training data, and there is none here"
            )
        with torch.enable_grad(), self.scoring():
            masks = prune_directional(
                self.model,
                list(self.batches(self.method.examples)),
                self.target,
                scope="all",
                include=[glob.escape(name) for name in self.plan.names],
                directions=self.method.directions,
                refresh=self.method.refresh,
                adjust=self.method.adjust,
                seed=self.plan.training.seed,
            )
        self.hold(masks)
