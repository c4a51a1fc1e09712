"""What the `Prune` callbacks do, whichever loop calls them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError, near
from espalier.checkpoint import open_checkpoint
from espalier.masks import Masks, named_parameters, unwrapped
from espalier.methods import AbstractMethod, Fixed, MaskRule, Plan, Rule, TargetGRDA, Threshold
from espalier.selection import Scope, select

if TYPE_CHECKING:
    from espalier.train import Training

_OURS_ALONE = ("weights", "penalty", "extra", "position", "optimizer")
"""What a rule may ask of a loop that only our own can do."""


@dataclass(frozen=True)
class Order:
    """What to prune, how, and how far.

    Args:
        sparsity: zeros / selected entries at the end, in [0, 1); None where the method decides.
        method: how the network comes by its zeros.
        part: dotted name of the sub-module to prune; "" is all of the module.
        scope: which parameters can be selected; see `espalier.select`.
        include: globs on full names; only these.
        exclude: globs on full names; not these.

    Raises:
        EspalierError: the method needs a loop of ours.
    """

    sparsity: float | None
    method: AbstractMethod
    part: str = ""
    scope: Scope = "weights"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.method, TargetGRDA | Threshold):
            raise EspalierError(
                f"{type(self.method).__name__} prunes by an optimizer of its own: give the trainer an "
                "espalier.optim.DualAveraging as its optimizer, and the callback WatchMask"
            )

    def start(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        steps: float,
        epochs: int,
        state: dict[str, Any] | None,
    ) -> "Run":
        """Begin, or go on from a state.

        Args:
            module: the network, with its weights loaded.
            optimizers: of the trainer; there must be one.
            steps: optimizer steps of the whole run.
            epochs: of the whole run.
            state: from `Run.state_dict`; None begins.

        Raises:
            EspalierError: several optimizers, no end in sight, no such part, or the method refuses.
        """
        if len(optimizers) != 1:
            raise EspalierError(f"pruning follows one optimizer, the trainer has {len(optimizers)}")
        if not 0 <= steps < float("inf"):
            raise EspalierError(
                "pruning needs to know the end of the run: give the trainer its number of steps"
            )
        # The ramp stays where it was planned, also when the run is made longer on the way.
        total = int(steps) if state is None else int(state["steps"])
        part = part_of(module, self.part)
        if isinstance(self.method, Fixed):
            names = tuple(self.method.masks)
            unknown = [name for name in names if name not in named_parameters(part)]
            if unknown:
                raise EspalierError(
                    f"the module has no parameter {unknown[0]!r} that a mask is for.{_hint(module, unknown[0])}"
                )
        else:
            selection = select(open_checkpoint(unwrapped(part)), self.scope, self.include, self.exclude)
            names = selection.names
        rule = self.method.rule(part, Plan(self.sparsity, names, total, cast("Training", _Elsewhere(epochs))))
        _refuse(self.method, rule)
        rule.batches = _no_batches
        if state is None:
            rule.begin(optimizers[0])
        else:
            rule.load_state_dict(state["rule"], optimizers[0])
        return Run(rule, total)


@dataclass(frozen=True)
class Zeros(AbstractMethod):
    """Keeps whatever is not zero when the run starts."""

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that looks once."""
        return _Zeros(model, plan)


class _Zeros(MaskRule):
    def begin(self, optimizer: Optimizer) -> None:
        masks = Masks.from_zeros({name: p.detach() for name, p in self.parameters.items()})
        if not masks.sparsity:
            raise EspalierError("the module has no zeros to hold: prune it first, or give the masks")
        self.hold(masks, optimizer)


class Run:
    """A rule at work in a loop elsewhere; steps count from 1.

    Args:
        rule: begun.
        steps: optimizer steps that were planned.
    """

    def __init__(self, rule: Rule, steps: int) -> None:
        self.rule, self.steps = rule, steps
        self._handles: list[Any] = []
        # Gradients are masked as they come, so that clipping by norm sees what is trained; not for a rule that
        # wants to see where dense gradients point.
        if isinstance(rule, MaskRule) and type(rule).before_step is Rule.before_step:
            for name, parameter in rule.parameters.items():
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(_Masking(rule, name))  # type: ignore[no-untyped-call]
                    self._handles.append(handle)

    def before_step(self, step: int) -> None:
        """Gradients are there."""
        self.rule.before_step(step)

    def after_step(self, step: int) -> None:
        """Weights have moved."""
        self.rule.after_step(step)

    def after_epoch(self, epoch: int) -> None:
        """Epoch 1, 2, ... is over."""
        self.rule.after_epoch(epoch)

    def finish(self) -> Masks:
        """What is kept, after a last look that the rest is zero; less may be pruned than asked in a run cut short."""
        if isinstance(self.rule, MaskRule) and self.rule.masks is None:
            return Masks(
                {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.rule.parameters.items()}
            )
        return self.rule.finish()

    def close(self) -> None:
        """Take every hook off."""
        self.rule.close()
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What `Order.start` needs to go on; fit for `torch.load(weights_only=True)`."""
        return {"steps": self.steps, "rule": self.rule.state_dict()}


class _Masking:
    """Masks a parameter's gradient once it is accumulated."""

    def __init__(self, rule: MaskRule, name: str) -> None:
        self.rule, self.name = rule, name

    def __call__(self, parameter: Tensor) -> None:
        if self.rule.held is not None:
            self.rule.held.mask_gradient(self.name)


@dataclass(frozen=True)
class _Elsewhere:
    """What is known of a training run that is not ours, in the place of a `Training`."""

    epochs: int
    seed: int = 0


def part_of(module: nn.Module, name: str) -> nn.Module:
    """A sub-module by dotted name.

    Raises:
        EspalierError: there is none.
    """
    module = unwrapped(module)
    known = dict(module.named_modules())
    if name not in known:
        raise EspalierError(f"the module has no part {name!r}.{near(name, known)}")
    part: nn.Module = known[name]
    return part


def _hint(module: nn.Module, name: str) -> str:
    """Where a parameter of that name is: a network inside a LightningModule is often masked by itself."""
    for part, child in unwrapped(module).named_modules():
        if part and name in named_parameters(child):
            return f" Its part {part!r} has: give part={part!r}"
    return near(name, named_parameters(module))


def _refuse(method: AbstractMethod, rule: Rule) -> None:
    asked = [hook for hook in _OURS_ALONE if getattr(type(rule), hook) is not getattr(Rule, hook)]
    if asked:
        raise EspalierError(
            f"{type(method).__name__} changes more of a run than a callback can ({', '.join(asked)}): train with "
            "espalier.fit, or take Gradual, OneShot or Fixed"
        )


def _no_batches(examples: int) -> Iterator[tuple[Tensor, Tensor]]:
    raise EspalierError(
        "this score needs training data, which a callback does not have: prune before the run, then HoldMasks"
    )
