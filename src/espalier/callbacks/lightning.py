"""Callbacks for the Lightning Trainer (`lightning` or `pytorch_lightning`).

    trainer = Trainer(callbacks=[Prune(0.9)])
    trainer = Trainer(callbacks=[HoldMasks(masks)])
    trainer = Trainer(callbacks=[WatchMask(settled=0.001)])  # with an optimizer of espalier.optim

They go on from the trainer's own checkpoints (`fit(..., ckpt_path=...)`), which may be read with `weights_only=True`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.callbacks._pruning import Order, Run, Zeros
from espalier.callbacks._watching import Action, Watch
from espalier.masks import Masks
from espalier.methods import AbstractMethod, Fixed, Gradual
from espalier.optim import MaskReport, Settled
from espalier.selection import Scope

__all__ = ["HoldMasks", "Prune", "WatchMask"]

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise EspalierError(
                "espalier.callbacks.lightning needs lightning: pip install 'espalier[lightning]'"
            ) from None

_GRADUAL = Gradual()


class Prune(Callback):
    """Prunes a `LightningModule` while the trainer trains it.

    The default is gradual magnitude pruning: a cubic ramp from the first step to seven tenths of the run, whose
    last update leaves exactly the zeros asked for. Pruned weights stay zero under any optimizer, in every
    checkpoint, and after a resume; their gradients do not count in gradient clipping. Logs `espalier/sparsity`
    after every epoch.

    In a run that goes on from a checkpoint the ramp stays where the first run planned it, whatever the number of
    epochs is now. A run that ends before the ramp does (early stopping) is pruned less than asked: `masks` says
    how far. Sharded parameters (FSDP) are not supported.

    Args:
        sparsity: zeros / selected entries at the end, in [0, 1).
        method: `Gradual`, `OneShot`, `Fixed` or any that needs no loop of ours; see `espalier.methods`.
        part: dotted name of the sub-module to prune, such as "net"; "" is the whole `LightningModule`.
        scope: which parameters can be selected; see `espalier.select`.
        include: globs on full names inside the part; only these.
        exclude: globs on full names inside the part; not these.

    Attributes:
        masks: what is kept; None before the end of a fit.

    Raises:
        EspalierError: the method cannot work in somebody else's loop; at the start of a fit also if there are
            several optimizers, the number of steps is unknown, or the method refuses.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        method: AbstractMethod = _GRADUAL,
        *,
        part: str = "",
        scope: Scope = "weights",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.order = Order(sparsity, method, part, scope, include, exclude)
        self.masks: Masks | None = None
        self._run: Run | None = None
        self._saved: dict[str, Any] | None = None
        self._steps_seen = 0

    @property
    def state_key(self) -> str:
        """Several of these may prune different parts."""
        order = self.order
        return self._generate_state_key(part=order.part, include=order.include, exclude=order.exclude)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Begin: weights and the callback's state are loaded by now, the optimizer's state comes after."""
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs or 1
        self._close()
        self._run = self.order.start(pl_module, trainer.optimizers, steps, epochs, self._saved)
        self._saved = None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Steps of an earlier run are not acted upon again."""
        self._steps_seen = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: Optimizer
    ) -> None:
        """Gradients are there."""
        if self._run is not None:
            self._run.before_step(trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Weights have moved, unless gradients are still being accumulated."""
        if self._run is not None and trainer.global_step > self._steps_seen:
            self._steps_seen = trainer.global_step
            self._run.after_step(trainer.global_step)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log how many zeros there are."""
        if self._run is not None:
            self._run.after_epoch(trainer.current_epoch + 1)
            pl_module.log("espalier/sparsity", self._run.rule.sparsity, sync_dist=True)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Verify, and say what is kept."""
        if self._run is not None:
            self.masks = self._run.finish()

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        """Leave no hook behind."""
        self._close()

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Leave no hook behind."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Steps planned, masks, and what else the method keeps."""
        return {} if self._run is None else self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there at the next fit."""
        self._saved = state_dict or None

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None


def HoldMasks(masks: Masks | None = None, *, part: str = "") -> Prune:
    """Trains at fixed masks: what they prune is zero before the first step and at every moment after.

    Args:
        masks: of the module, or of its part; None holds the zeros that its weights have when the fit starts.
        part: dotted name of the sub-module that the masks are for, such as "net" where `espalier.prune(net, ...)`
            made them and the `LightningModule` calls that network `self.net`.

    Returns:
        The callback, a `Prune` with the method `Fixed`.
    """
    return Prune(method=Zeros() if masks is None else Fixed(masks), part=part)


class WatchMask(Callback):
    """Logs what the mask of an optimizer of `espalier.optim` does, and acts when it has settled.

    After every epoch: `espalier/sparsity`, `espalier/churn` (entries that became or stopped being zero since the
    epoch before, as a fraction), `espalier/regrown` (a count), `espalier/overlap` (Jaccard index of what is kept),
    `espalier/frozen` (0 or 1).

    Args:
        settled: when the mask has settled: a churn in [0, 1], or a `espalier.optim.Settled` for several epochs in
            a row; None only logs. A target that is still on its way never counts as settled.
        then: "freeze" fixes the zeros and trains the rest on; "stop" ends the training.

    Attributes:
        report: the last counts, tensor by tensor.

    Raises:
        EspalierError: a value outside its range; at the start of a fit also if the optimizer is another, or
            freezes by itself.
    """

    def __init__(self, *, settled: float | Settled | None = None, then: Action = "freeze") -> None:
        super().__init__()
        self._watch = Watch(settled, then)

    @property
    def report(self) -> MaskReport | None:  # noqa: D102
        return self._watch.report

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse other optimizers before the first step."""
        self._watch.check(trainer.optimizers)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look, log, act."""
        values, stop = self._watch.look(self._watch.check(trainer.optimizers))
        # Equal on all processes; synchronized because Lightning warns of anything else.
        pl_module.log_dict({f"espalier/{name}": value for name, value in values.items()}, sync_dist=True)
        if stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Calm epochs in a row so far."""
        return {"calm": self._watch.calm}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._watch.calm = int(state_dict["calm"])
