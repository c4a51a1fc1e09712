"""SET and RigL: sparse from the first step; now and then the smallest weights are dropped and others grown."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.allocate import ERK, AbstractAllocation
from espalier.data import seeded
from espalier.masks import Masks
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule, choose, without_zeros
from espalier.methods.ramp import check_fraction
from espalier.scores import AbstractScore, Magnitude
from espalier.threshold import top_mask


@dataclass(frozen=True)
class AbstractDropAndGrow(AbstractMethod):
    """What SET and RigL are told; see there."""

    drop: float = 0.3
    anneal: bool = True
    end: float = 0.75
    every: int | None = None
    start: AbstractScore = Magnitude()
    allocation: AbstractAllocation = ERK()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        check_fraction("end", self.end)
        if not 0 < self.drop < 1:
            raise EspalierError(
                f"`drop` is the fraction of the kept that changes, in (0, 1), got {self.drop:g}"
            )
        if self.every is not None and self.every < 1:
            raise EspalierError(f"`every` counts steps between changes, at least 1, got {self.every}")

    def fraction(self, step: int, last: int) -> float:
        """Fraction dropped at a step; the last change is at `last`."""
        return self.drop / 2 * (1 + math.cos(math.pi * step / last)) if self.anneal else self.drop


@dataclass(frozen=True)
class SET(AbstractDropAndGrow):
    r"""Sparse evolutionary training: random connections take the place of the weakest.

    Every so many steps and in each tensor, the fraction `drop` of the kept weights with the smallest magnitudes is
    dropped and as many, drawn uniformly among those not kept then, start from zero.

    Differs from the authors' description in that the smallest magnitudes go, where the paper drops the smallest
    positive and the largest negative weights, a fraction of each; that the spread over the tensors is exact and ERK,
    as in RigL's comparison; that changes come every `every` steps instead of every epoch and end before the run does;
    and that grown weights start from zero. Draws are a function of (seed, step).

    Args:
        drop: fraction of the kept weights that changes at once, in (0, 1).
        anneal: lower that fraction along a cosine, to 0 at `end`; SET as published does not.
        end: fraction of the run after which nothing changes any more, in (0, 1].
        every: steps between changes; None is 100, or as many as give twenty changes where that is fewer.
        start: chooses the first mask, tensor by tensor. The papers draw it (`Random(seed)`); for untrained
            weights magnitudes are as good, and they spare a network that is trained already.
        allocation: how the budget is spread over the tensors.

    Raises:
        EspalierError: a value outside its range.

    References:
        Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta (2018), "Scalable training of artificial neural networks with
            adaptive sparse connectivity inspired by network science", Nature Communications 9.
    """

    anneal: bool = False

    def rule(self, model: nn.Module, plan: Plan) -> "_Evolving":
        """A rule that grows at random."""
        return _Evolving(self, model, plan)


@dataclass(frozen=True)
class RigL(AbstractDropAndGrow):
    r"""The rigged lottery: connections with the largest gradients take the place of the weakest.

    At every `every`-th step until `end` of the run and in each tensor, the fraction

    .. math:: \tfrac{d}{2} \big(1 + \cos(\pi t / T_{\mathrm{end}})\big)

    of the kept weights with the smallest magnitudes is dropped, and as many, those with the largest gradient
    magnitudes of this step's batch among the weights not kept then, start from zero. A weight that is dropped and
    grown at once keeps its value.

    Differs from the authors' code in that the step of a change is also a step of the optimizer (there it takes
    the place of one), so that grown weights move at once, and in `every` and `start` where a run is short or begins
    with a trained network.

    Args:
        drop: d, fraction of the kept weights that changes at first, in (0, 1).
        anneal: False keeps the fraction constant.
        end: fraction of the run after which nothing changes any more, in (0, 1].
        every: steps between changes; None is 100, or as many as give twenty changes where that is fewer.
        start: chooses the first mask, tensor by tensor. The paper draws it (`Random(seed)`); for untrained
            weights magnitudes are as good, and they spare a network that is trained already.
        allocation: how the budget is spread over the tensors.

    Raises:
        EspalierError: a value outside its range.

    References:
        Evci, Gale, Menick, Castro, Elsen (2020), "Rigging the lottery: making all tickets winners", ICML, algorithm 1.
    """

    def rule(self, model: nn.Module, plan: Plan) -> "_Rigged":
        """A rule that grows by gradients."""
        return _Rigged(self, model, plan)


class _Changing(MaskRule):
    """The mechanism; a method says what grows."""

    def __init__(self, method: AbstractDropAndGrow, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.method, self.target = method, plan.target
        self.last = plan.at(method.end)
        self.every = method.every or max(1, min(100, self.last // 20))

    @abstractmethod
    def worth(self, name: str, step: int) -> Tensor:
        """Scores of the entries of a parameter for growing, higher = grow."""

    def begin(self, optimizer: Optimizer) -> None:
        self.hold(choose(self.method.start, self.method.allocation, self.evidence(), self.target), optimizer)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        # Before the optimizer, because the gradients are still dense; grown weights move in this very step.
        if step % self.every or step >= self.last:
            return
        masks = self.masks
        assert masks is not None
        changed = {}
        for name, parameter in self.parameters.items():
            mask = masks[name].to(parameter.device)
            count = int(self.method.fraction(step, self.last) * int(mask.sum()))
            changed[name] = drop_and_grow(parameter.abs(), self.worth(name, step), mask, count)
        self.hold(Masks(changed))

    def finish(self) -> Masks:
        masks = super().finish()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(without_zeros(parameter, masks[name]))
        return masks


class _Evolving(_Changing):
    def worth(self, name: str, step: int) -> Tensor:
        parameter = self.parameters[name]
        draw = seeded("grow", self.plan.training.seed, step, name)
        return torch.rand(parameter.shape, generator=draw).to(parameter.device)


class _Rigged(_Changing):
    def worth(self, name: str, step: int) -> Tensor:
        gradient = self.parameters[name].grad
        return torch.zeros_like(self.parameters[name]) if gradient is None else gradient.abs()


def drop_and_grow(magnitude: Tensor, worth: Tensor, mask: Tensor, count: int) -> Tensor:
    """A mask that has lost its smallest entries and gained as many of those that it did not have.

    Args:
        magnitude: of the weights.
        worth: higher = grow.
        mask: True where an entry is kept, in the same shape.
        count: entries dropped and grown; what is dropped may be grown at once, and then nothing changes.

    Returns:
        A mask with as many true entries; ties go to the smaller flat index.
    """
    stay = top_mask(magnitude.masked_fill(~mask, -torch.inf), int(mask.sum()) - count)
    return stay | top_mask(worth.masked_fill(stay, -torch.inf), count)
