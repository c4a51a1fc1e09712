"""Callbacks for the Trainer of transformers.

    trainer = Trainer(..., callbacks=[Prune(0.9)])
    trainer = Trainer(..., callbacks=[HoldMasks(masks)])
    trainer = Trainer(..., optimizers=(optimizer, None), callbacks=[WatchMask(settled=0.001)])

The trainer gives its callbacks no way to log, so what they have to say is put into its state
(`trainer.state.log_history`, and with it `trainer_state.json`); for its other loggers too, hand over its own:

    trainer.add_callback(WatchMask(log=trainer.log))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from espalier._errors import EspalierError, first_line
from espalier.callbacks._pruning import Order, Run, Zeros
from espalier.callbacks._watching import Action, Watch
from espalier.checkpoint.atomic import atomic, save_torch
from espalier.masks import Masks
from espalier.methods import AbstractMethod, Fixed, Gradual
from espalier.optim import MaskReport, Settled
from espalier.selection import Scope

__all__ = ["HoldMasks", "Prune", "WatchMask"]

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise EspalierError(
            "espalier.callbacks.transformers needs transformers: pip install 'espalier[hf]'"
        ) from None

STATE_FILE = "espalier.pt"
"""What `Prune` leaves in the trainer's checkpoint folders."""

_GRADUAL = Gradual()
Log = Callable[[dict[str, float]], None]


class Prune(TrainerCallback):
    """Prunes a model while the trainer trains it.

    The default is gradual magnitude pruning: a cubic ramp from the first step to seven tenths of the run, whose
    last update leaves exactly the zeros asked for. Pruned weights stay zero under any optimizer, in every
    checkpoint, and after a resume; their gradients do not count in gradient clipping (`max_grad_norm`). With
    `load_best_model_at_end` the best model is pruned to the last masks. Logs `espalier/sparsity` after every
    epoch.

    Its state is a file in each checkpoint folder (`espalier.pt`), where a resumed run finds it. In such a run the
    ramp stays where the first run planned it, whatever the number of epochs is now. A run that ends before the
    ramp does (early stopping) is pruned less than asked: `masks` says how far. Sharded parameters (FSDP,
    DeepSpeed ZeRO-3) are not supported.

    Args:
        sparsity: zeros / selected entries at the end, in [0, 1).
        method: `Gradual`, `OneShot`, `Fixed` or any that needs no loop of ours; see `espalier.methods`.
        part: dotted name of the sub-module to prune, such as "bert.encoder"; "" is the whole model.
        scope: which parameters can be selected; see `espalier.select`.
        include: globs on full names inside the part; only these.
        exclude: globs on full names inside the part; not these.
        log: the trainer's `log`, see the module.
        resume_from: folder of the checkpoint that a run goes on from; None looks in the trainer's
            `resume_from_checkpoint` and `output_dir`.

    Attributes:
        masks: what is kept; None before the end of a training.

    Raises:
        EspalierError: the method cannot work in somebody else's loop; at the start of a training also if the
            method refuses, or a resumed run has no such file.
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
        log: Log | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        self.order = Order(sparsity, method, part, scope, include, exclude)
        self.log, self.resume_from = log, resume_from
        self.masks: Masks | None = None
        self._run: Run | None = None

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Begin, or go on: weights and the optimizer's state are loaded by now."""
        self._close()  # of a training that failed
        saved = None
        if state.global_step and not isinstance(self.order.method, Fixed):
            saved = _read(_folders(args, state, self.resume_from), state.global_step)
        model: nn.Module = kwargs["model"]
        epochs = max(1, round(state.num_train_epochs))
        self._run = self.order.start(model, [_inner(kwargs["optimizer"])], state.max_steps, epochs, saved)

    def on_pre_optimizer_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Gradients are there."""
        if self._run is not None:
            self._run.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Weights have moved."""
        if self._run is not None:
            self._run.after_step(state.global_step + 1)

    def on_epoch_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Log how many zeros there are."""
        if self._run is not None:
            self._run.after_epoch(round(state.epoch or 0))
            _log(self.log, state, {"sparsity": self._run.rule.sparsity})

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Leave the state in the checkpoint that was just written."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if self._run is not None and state.is_world_process_zero and folder.is_dir():
            with atomic(folder / STATE_FILE) as temporary:
                save_torch(self._run.state_dict(), temporary)

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Verify, say what is kept, and leave no hook behind."""
        if self._run is not None:
            self.masks = self._run.finish()
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None


def HoldMasks(masks: Masks | None = None, *, part: str = "") -> Prune:
    """Trains at fixed masks: what they prune is zero before the first step and at every moment after.

    Args:
        masks: of the model, or of its part; None holds the zeros that its weights have when the training starts.
        part: dotted name of the sub-module that the masks are for.

    Returns:
        The callback, a `Prune` with the method `Fixed`.
    """
    return Prune(method=Zeros() if masks is None else Fixed(masks), part=part)


class WatchMask(TrainerCallback):
    """Logs what the mask of an optimizer of `espalier.optim` does, and acts when it has settled.

    After every epoch: `espalier/sparsity`, `espalier/churn` (entries that became or stopped being zero since the
    epoch before, as a fraction), `espalier/regrown` (a count), `espalier/overlap` (Jaccard index of what is kept),
    `espalier/frozen` (0 or 1).

    Args:
        settled: when the mask has settled: a churn in [0, 1], or a `espalier.optim.Settled` for several epochs in
            a row; None only logs. A target that is still on its way never counts as settled.
        then: "freeze" fixes the zeros and trains the rest on; "stop" ends the training. Epochs are counted anew
            after a resume.
        log: the trainer's `log`, see the module.

    Attributes:
        report: the last counts, tensor by tensor.

    Raises:
        EspalierError: a value outside its range; at the start of a training also if the optimizer is another,
            or freezes by itself.
    """

    def __init__(
        self,
        *,
        settled: float | Settled | None = None,
        then: Action = "freeze",
        log: Log | None = None,
    ) -> None:
        self._watch = Watch(settled, then)
        self.log = log

    @property
    def report(self) -> MaskReport | None:  # noqa: D102
        return self._watch.report

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Refuse other optimizers before the first step."""
        self._watch.check([_inner(kwargs["optimizer"])])

    def on_epoch_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Look, log, act."""
        values, stop = self._watch.look(self._watch.check([_inner(kwargs["optimizer"])]))
        _log(self.log, state, values)
        if stop:
            control.should_training_stop = True


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrapper of Accelerate, whose hooks run at every step."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _log(log: Log | None, state: "TrainerState", values: dict[str, float]) -> None:
    values = {f"espalier/{name}": value for name, value in values.items()}
    if log is not None:
        log(values)
    else:
        state.log_history.append({**values, "epoch": state.epoch or 0.0, "step": state.global_step})


def _folders(args: "TrainingArguments", state: "TrainerState", given: str | Path | None) -> list[Path]:
    """Where the checkpoint of the resumed run may be."""
    if given is not None:
        return [Path(given)]
    folders = [Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"]
    if isinstance(args.resume_from_checkpoint, str):
        folders.insert(0, Path(args.resume_from_checkpoint))
    return folders


def _read(folders: Sequence[Path], step: int) -> dict[str, Any]:
    for folder in folders:
        file = folder / STATE_FILE
        if file.is_file():
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises a dozen kinds
                raise EspalierError(f"{file} cannot be read: {first_line(error)}") from error
            return state
    raise EspalierError(
        f"the training goes on at step {step}, but {STATE_FILE} is not in {folders[0]}: give the checkpoint's folder "
        "as resume_from, or hold its zeros with HoldMasks(masks)"
    )
