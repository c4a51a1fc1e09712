"""Zeros trained in by the optimizer: gRDA with a target, and every threshold law."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError, Failed
from espalier.allocate import AbstractAllocation
from espalier.masks import Masks, named_parameters
from espalier.methods._base import AbstractMethod, Plan, Rule, counts_by_magnitude
from espalier.methods.ramp import check_fraction, check_ramp
from espalier.optim import CUBIC, AbstractPathLaw, AbstractSchedule, DualAveraging, Law, TargetSparsity
from espalier.optim.options import check_kept, check_level, check_room, most_zeros

Decay = Literal["coupled", "decoupled", "prox"]


@dataclass(frozen=True)
class TargetGRDA(AbstractMethod):
    """gRDA whose threshold follows a schedule of sparsities instead of c and mu.

    Optimizer (SGD, or steps of Adam's type), momentum, weight decay and rates are the run's own. See
    `espalier.optim.TargetSparsity` for the law: after the ramp the count is exact and the mask frozen.

    Args:
        end: fraction of the run where the target is reached, in (begin, 1].
        begin: fraction of the run before the ramp, in [0, 1).
        schedule: shape of the ramp.
        allocation: how the zeros are spread; None is one threshold for all latents.
        decay: where weight decay acts; see `espalier.optim.DualAveraging`. AdamW's is decoupled, whatever this says.
        min_kept: smallest kept fraction of any tensor, against layer collapse.
        rescale: give each output unit back the l1 norm that the threshold takes, as ST-3 does. It helps LeNet5; where
            batch norm follows it only slows learning, and costs (`docs/directional-training.md`).

    Raises:
        EspalierError: a value outside its range.
    """

    end: float = 0.7
    begin: float = 0.0
    schedule: AbstractSchedule = CUBIC
    allocation: AbstractAllocation | None = None
    decay: Decay = "coupled"
    min_kept: float = 0.0
    rescale: bool = False

    def __post_init__(self) -> None:
        check_ramp(self.begin, self.end)
        check_kept(self.min_kept)

    def rule(self, model: nn.Module, plan: Plan) -> Rule:
        """A rule with an optimizer of its own."""
        return _Thresholded(model, plan, self._law(model, plan), self.decay, self.min_kept, settle=None)

    def _law(self, model: nn.Module, plan: Plan) -> TargetSparsity:
        kept = None
        if self.allocation is not None:
            kept = counts_by_magnitude(model, plan, self.allocation)
        warmup = max(0, min(round(self.begin * plan.steps), plan.steps - 1))  # the ramp ends inside the run
        steps = max(warmup + 1, plan.at(self.end))
        return TargetSparsity(plan.target, steps, self.schedule, warmup, kept=kept, rescale=self.rescale)


@dataclass(frozen=True)
class Threshold(AbstractMethod):
    """A threshold that grows by a law of its own: the paper's gRDA, classical RDA, lasso.

    The law decides how many zeros there are. Where a sparsity is asked for nevertheless, the optimizer is turned to
    that target at `settle` of the run, by the magnitudes of its latents, and the mask is frozen from there on, so
    that methods can be compared at equal counts; choose the law so that there is little to correct.

    Args:
        law: `PowerLaw(c, mu)` is gRDA, `LinearLaw` is RDA, `Lasso` is proximal SGD.
        paper: threshold every parameter, norms and biases too, as the paper does, instead of the pruned ones.
        settle: fraction of the run, in (0, 1]; without meaning where no sparsity is asked for.
        momentum: use the run's momentum; the paper has none.
        decay: where weight decay acts; see `espalier.optim.DualAveraging`.
        min_kept: smallest kept fraction of any tensor; not for lasso.
        freeze_below: freeze when an epoch's churn is at most this.

    Raises:
        EspalierError: a value outside its range.
    """

    law: AbstractPathLaw
    paper: bool = False
    settle: float = 0.9
    momentum: bool = True
    decay: Decay = "coupled"
    min_kept: float = 0.0
    freeze_below: float | None = None

    def __post_init__(self) -> None:
        check_fraction("settle", self.settle)
        check_kept(self.min_kept)
        if self.freeze_below is not None:
            check_level(self.freeze_below)

    def rule(self, model: nn.Module, plan: Plan) -> Rule:
        """A rule with an optimizer of its own."""
        if plan.sparsity is not None and self.freeze_below is not None:
            raise EspalierError(
                f"`freeze_below` may freeze before a sparsity of {plan.sparsity} is reached; give one of the two"
            )
        settle = None if plan.sparsity is None else plan.at(self.settle)
        return _Thresholded(
            model,
            plan,
            self.law,
            self.decay,
            self.min_kept,
            settle=settle,
            freeze_below=self.freeze_below,
            momentum=self.momentum,
            paper=self.paper,
        )


class _Thresholded(Rule):
    """A run of the dual-averaging optimizer."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        law: Law,
        decay: Decay,
        min_kept: float,
        *,
        settle: int | None,
        freeze_below: float | None = None,
        momentum: bool = True,
        paper: bool = False,
    ) -> None:
        super().__init__(model, plan)
        if plan.sparsity is not None:
            room = sum(most_zeros(p.numel(), min_kept) for p in self.parameters.values())
            check_room(plan.sparsity, self.entries, room)
            if plan.sparsity and not plan.steps:
                raise EspalierError(
                    "the optimizer prunes by its steps, and this run has none: give it epochs, or prune at once"
                )
        if fixed := [name for name, p in self.parameters.items() if not p.requires_grad]:
            raise EspalierError(
                f"the optimizer prunes what it trains, but {fixed[0]} does not train (requires_grad is False): let it "
                "train, or prune other parameters"
            )
        t = plan.training
        named = [(n, p) for n, p in named_parameters(model).items() if p.requires_grad]
        pruned = set(plan.names)
        groups = [
            {"params": [(n, p) for n, p in named if n in pruned], "prune": True},
            {"params": [(n, p) for n, p in named if n not in pruned], "prune": paper},
        ]
        adaptive = t.optimizer != "sgd"
        if t.optimizer == "adamw":
            decay = "decoupled"
        rate = t.momentum if momentum and not adaptive else 0.0
        self._optimizer = DualAveraging(
            [group for group in groups if group["params"]],
            t.lr,
            law=law,
            momentum=rate,
            nesterov=t.nesterov and rate > 0,
            betas=(0.9, 0.999) if adaptive else None,
            weight_decay=t.weight_decay,
            decay=decay,
            min_kept=min_kept,
            freeze_below=freeze_below,
        )
        self.settle = settle

    def optimizer(self) -> Optimizer:
        return self._optimizer

    def before_step(self, step: int) -> None:
        if step != self.settle:
            return
        group = self._optimizer.param_groups[0]
        zeros, most = self.zeros, self.entries - self.kept
        if not group["law"].dual and zeros > most:  # nothing remembers which of them matter least
            raise Failed(
                f"{group['law']} left {zeros} of {self.entries} entries zero at step {step}, more than the {most} "
                "asked for, and without latents none can be chosen to come back: lower the penalty"
            )
        self._aim(group["steps"])

    def _aim(self, steps: int) -> None:
        """Give the pruned group a target that is due at its next step, the one after `steps`."""
        law = TargetSparsity(self.plan.target, steps=steps + 1, warmup=steps)
        self._optimizer.param_groups[0]["law"] = law

    def state_dict(self) -> dict[str, Any]:
        group = self._optimizer.param_groups[0]
        aimed = self.settle is not None and isinstance(group["law"], TargetSparsity)
        return {"aimed": group["law"].warmup if aimed else None}

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        # Before the optimizer's state, which is refused under another law.
        if state["aimed"] is not None:
            self._aim(int(state["aimed"]))

    def finish(self) -> Masks:
        if self.settle is not None:  # a run without steps never came there
            assert self.plan.steps == 0 or self._optimizer.param_groups[0]["frozen"]
        return Masks.from_zeros(self.parameters)
