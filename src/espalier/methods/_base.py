"""What a pruning method is: a frozen value that makes a rule, and the places where a rule acts on a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._types import Counts
from espalier.allocate import LAMP, AbstractAllocation
from espalier.checkpoint.reparametrized import groups_of
from espalier.flops import FlopCounter
from espalier.masks import Masks, named_parameters, unwrapped
from espalier.processes import align
from espalier.pruning import kept_entries
from espalier.scores import Evidence, Magnitude, ranked

if TYPE_CHECKING:
    from espalier.train.training import Training

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Batches of unaugmented training inputs and labels, at most so many examples, in an order that the seed fixes."""


@dataclass(frozen=True)
class Plan:
    """The run a method is asked to prune in.

    Args:
        sparsity: asked for, zeros / entries of the named parameters, in [0, 1); None where the method decides.
        names: the parameters that are pruned, in order.
        steps: optimizer steps of the whole run.
        training: rates, epochs, seed of the run.
    """

    sparsity: float | None
    names: tuple[str, ...]
    steps: int
    training: "Training"

    @property
    def target(self) -> float:
        """The sparsity, where a method cannot do without.

        Raises:
            EspalierError: none was given.
        """
        if self.sparsity is None:
            raise EspalierError(
                "this method must be told how far to prune: give a sparsity in [0, 1), such as 0.9"
            )
        return self.sparsity

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.steps // max(1, self.training.epochs)

    def at(self, fraction: float) -> int:
        """The step at a fraction of the run, at least 1."""
        return max(1, round(fraction * self.steps))


class AbstractMethod(ABC):
    """How a network comes by its zeros: hyper-parameters only, so that it names a run.

    Subclasses are frozen dataclasses whose `repr` says everything; one file an idea. What happens during a run is
    the business of the `Rule` that a method makes.
    """

    @abstractmethod
    def rule(self, model: nn.Module, plan: Plan) -> "Rule":
        """The rule for one run on one network.

        Args:
            model: as it is at the start; the rule may look, but changes nothing before `begin`.
            plan: what is asked for.

        Raises:
            EspalierError: the method cannot do what is asked for (no sparsity given, a floor above it).
        """

    def check(self, model: nn.Module, plan: Plan) -> None:
        """Refuse what cannot be done, before anything is trained.

        A rule is made and its start checked, a floor tried on the magnitudes.

        Raises:
            EspalierError: says why not.
        """
        self.rule(model, plan).check_start()
        allocation, score = getattr(self, "allocation", None), getattr(self, "score", None)
        if isinstance(allocation, LAMP) and score is not None and score.signed:
            raise EspalierError(
                f"LAMP needs scores that are not negative, and those of {type(score).__name__} may be; use Global, "
                "Uniform or ERK"
            )
        if allocation is not None and plan.sparsity is not None:
            counts_by_magnitude(model, plan, allocation)


def counts_by_magnitude(model: nn.Module, plan: Plan, allocation: AbstractAllocation) -> Counts:
    """Entries of each tensor that an allocation keeps by the magnitudes of now, as many in all as the plan asks for.

    Args:
        model: the network.
        plan: says which parameters, and how far.
        allocation: how the budget is spread over the tensors.

    Raises:
        EspalierError: no sparsity, or the allocation has a floor above it.
    """
    parameters = named_parameters(model)
    weights = {name: parameters[name].detach() for name in plan.names}
    entries = sum(weight.numel() for weight in weights.values())
    buffers = unwrapped(model).named_buffers()
    shapes = {name: tuple(tensor.shape) for name, tensor in [*parameters.items(), *buffers]}
    evidence = Evidence(weights, groups=groups_of(shapes, plan.names))
    return allocation.counts(ranked(Magnitude(), evidence), kept_entries(entries, plan.target))


class Rule:
    """A method at work in one run; every hook does nothing until a method needs it.

    The order in a run: the constructor; `optimizer`; then `begin`, or after a resume `load_state_dict`; in each step
    (numbered from 1) forward with `weights`, `penalty`, backward, `before_step`, the optimizer, `after_step`; after
    each epoch's last step `after_epoch`; after the last `finish`; at the end, also of a failed run, `close`.

    The network's own Parameter objects always hold what is trained. A method whose network computes with something
    else (a thresholded or gated copy) says so in `weights`.

    Args:
        model: the network, already on its device.
        plan: of the run.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan = model, plan
        # Training data for scores that need gradients; set by the run, before `begin` or `load_state_dict`.
        self.batches: Batches | None = None
        self.scored = 0  # FLOPs of passes beside the training's
        parameters = named_parameters(model)
        self.parameters: dict[str, nn.Parameter] = {name: parameters[name] for name in plan.names}

    @property
    def entries(self) -> int:
        """Entries of the pruned parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def kept(self) -> int:
        """Entries to keep at the end, exactly."""
        return kept_entries(self.entries, self.plan.target)

    @property
    def zeros(self) -> int:
        """Zeros of the pruned parameters now."""
        with torch.no_grad():
            return sum(int((parameter == 0).sum()) for parameter in self.parameters.values())

    @property
    def sparsity(self) -> float:
        """Zeros / entries of the pruned parameters now."""
        return self.zeros / self.entries

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Count what runs inside as passes beside the training's, on the same network in every process."""
        align(self.model.buffers())  # batch statistics are of each process's own examples
        with FlopCounter() as counter:
            yield
        self.scored += counter.total

    def check_start(self) -> None:
        """Refuse a sparsity below the one that the network has.

        Raises:
            EspalierError: says both.
        """
        if not self.plan.sparsity:
            return  # 0 asks for nothing
        zeros, asked = self.zeros, self.entries - self.kept
        if zeros > asked:
            raise EspalierError(
                f"a sparsity of {self.plan.sparsity} is {asked} zeros, but {zeros} of {self.entries} entries are zero "
                "already; ask for a larger sparsity, or fine-tune with their mask"
            )

    # --- what is trained

    def extra(self) -> list[nn.Parameter]:
        """Parameters of the method (thresholds, gates) that train beside the network's, without weight decay."""
        return []

    def optimizer(self) -> Optimizer | None:
        """An optimizer that prunes by itself; None leaves the choice to the run."""
        return None

    def begin(self, optimizer: Optimizer) -> None:
        """Prepare a run that starts."""

    def position(self, step: int) -> int:
        """Where the learning-rate schedule stands before optimizer step `step + 1`; rewinding moves it back."""
        return step

    # --- a step

    def weights(self) -> dict[str, Tensor] | None:
        """What the network computes with instead of its parameters, differentiable; None if nothing else."""
        return None

    def measured(self) -> dict[str, Tensor] | None:
        """What it would compute with if the run ended now: `weights` without noise; None for the parameters."""
        return self.weights()

    def penalty(self) -> Tensor | None:
        """A differentiable term beside the loss; None if there is none."""
        return None

    def before_step(self, step: int) -> None:
        """Act on the gradients, dense and averaged over processes, before optimizer step `step` (1, 2, ...)."""

    def after_step(self, step: int) -> None:
        """Act on the weights after optimizer step `step`."""

    def after_epoch(self, epoch: int) -> None:
        """Act at the end of epoch `epoch` (1, 2, ...), before it is measured."""

    # --- the end

    def finish(self) -> Masks:
        """Leave plain weights with their zeros in the network and say which are kept, exactly as many as asked."""
        return Masks.from_zeros(self.parameters)

    def close(self) -> None:
        """Take every hook off the optimizer and the network; called twice is harmless."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Go on from a state instead of `begin`; weights are loaded, the optimizer's state will be after this."""

    @contextmanager
    def effective(self) -> Iterator[None]:
        """The network with what it computes with in its parameters, for measuring; undone at the end."""
        with torch.no_grad():
            seen = self.measured()
            if seen is None:
                yield
                return
            before = {name: self.parameters[name].detach().clone() for name in seen}
            for name, tensor in seen.items():
                self.parameters[name].copy_(tensor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    self.parameters[name].copy_(tensor)


@dataclass(frozen=True)
class Dense(AbstractMethod):
    """No pruning at all: the control that every other method is measured against."""

    def rule(self, model: nn.Module, plan: Plan) -> Rule:
        """A rule that does nothing."""
        return Rule(model, plan)
