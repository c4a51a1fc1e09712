"""The one training loop, on Accelerate: any pruning method or none, towards labels, a teacher, or both."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from espalier._errors import EspalierError, Failed
from espalier._forward import logits_of, modes
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit, Dataset, seeded
from espalier.masks import Masks
from espalier.methods import AbstractMethod, Dense, Fixed, Plan
from espalier.optim import DualAveraging
from espalier.processes import align
from espalier.selection import select
from espalier.train.distill import objective
from espalier.train.hardware import autocast, prepared, use_bf16, use_channels_last
from espalier.train.history import Diverged, Epoch, History, settled
from espalier.train.measure import Gauge
from espalier.train.optimizers import OptimizerFactory, build, scheduler
from espalier.train.state import (
    digest_of,
    load_state,
    mark_failed,
    save_state,
    tensors_digest,
    write_log,
)
from espalier.train.training import Training

OnEpoch = Callable[[Epoch, nn.Module], None]
Progress = Callable[[int, int, str], None]
"""Called after every step with steps done, steps in all, and a word on where the run is."""

_CHECK_EVERY = 50  # steps between looks at the loss: a look costs a synchronization on a GPU


def fit(
    model: nn.Module,
    data: Dataset,
    training: Training,
    *,
    masks: Masks | None = None,
    method: AbstractMethod | None = None,
    sparsity: float | None = None,
    parent: nn.Module | None = None,
    teacher: nn.Module | None = None,
    optimizer: Optimizer | OptimizerFactory | None = None,
    folder: str | Path | None = None,
    names: Sequence[str] | None = None,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> History:
    """Train a network in place.

    Every epoch runs in train mode and every submodule gets its own mode back at the end. Data order,
    augmentation and dropout depend on (seed, epoch) alone; the global random generators are left as they
    were. The network ends on the device it was trained on, in the ordinary memory layout.

    With a folder, the state after each epoch is written there in one step (`state.pt`) with a log
    (`log.jsonl`); called again with the same arguments, also after a kill or Ctrl-C, it goes on and ends with
    the bits of the uninterrupted run; a finished run is loaded and returned at once.

    Args:
        model: returns logits (B, classes), or an object with `.logits`.
        data: train split to train on, validation split to measure on (may be empty); the test split is not
            touched.
        training: what to do.
        masks: what is kept; pruned entries are set to zero and stay zero.
        method: prunes while training, instead of `masks`; the network ends with plain weights and its zeros.
        sparsity: what the method is to reach, zeros / entries of `names`, in [0, 1); some methods need none.
        parent: the dense network to compare with each epoch (weights and answers); must not be `model`.
        teacher: towards whose outputs to train (eval mode, same augmented inputs); needed without labels.
        optimizer: one that is built, or a factory from parameters; None builds `training.optimizer`. The
            schedule scales its own learning rate.
        folder: where to keep the run; None keeps nothing.
        names: parameters that the method prunes, and whose sparsity and cosine are logged; None takes the masks'
            or, without masks, the weights scope of `select`.
        on_epoch: called after epoch 0 (before training) and each epoch with its record and the network, which
            holds the weights it computes with.
        progress: called after every step.

    Returns:
        The records of all epochs.

    Raises:
        EspalierError: no training data, no labels and no teacher, parent is the model, masks and a method, a
            method that cannot do what is asked for, a folder of another run (names what differs), or a folder
            that cannot be written.
        Failed: the method cannot go on (a penalty left more zeros than asked for).
        Diverged: the loss is not finite any more. The last good state is in the folder after both (and in the
            model, if it has one).
    """
    _check(model, data, training, parent, teacher)
    if masks is not None:
        if method is not None:
            raise EspalierError("masks and a method were given: give one of them")
        method, sparsity = Fixed(masks), None
    run = _Run(model, data, training, method or Dense(), sparsity, parent, teacher, optimizer, folder, names)
    with run.attached():
        return run.go(on_epoch, progress)


class _Run:
    """What belongs to one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        training: Training,
        method: AbstractMethod,
        sparsity: float | None,
        parent: nn.Module | None,
        teacher: nn.Module | None,
        optimizer: Optimizer | OptimizerFactory | None,
        folder: str | Path | None,
        names: Sequence[str] | None,
    ) -> None:
        self.accelerator = Accelerator()
        self.model, self.training, self.method = model, training, method
        self.parent, self.teacher = parent, teacher
        self.folder = None if folder is None else Path(folder)
        start = tensors_digest(model.state_dict())
        device = self.accelerator.device
        for module in (model, parent, teacher):
            if module is not None:
                module.to(device)
        self.train, self.held_out = _near(data.train, device), _near(data.validation, device)
        self.bf16 = use_bf16(training, device, self.accelerator.mixed_precision)
        some = next(self.train.take(2).inputs(2), torch.zeros(0))
        self.channels_last = use_channels_last(training, model, some)
        self.names = tuple(names) if names is not None else _names(model, method)
        plan = Plan(sparsity, self.names, training.epochs * self.steps_per_epoch, training)
        self.rule = method.rule(model, plan)
        self.rule.check_start()
        self.rule.batches = self.examples
        if self.rule.weights() is not None and self.accelerator.num_processes > 1:
            raise EspalierError(f"{type(method).__name__} trains in one process only; start one")
        self.optimizer = self._optimizer(optimizer)
        masks = method.masks if isinstance(method, Fixed) else None
        self.spec = {
            **training.spec(),
            "data": f"{data.name} {data.train.digest} {data.validation.digest}",
            "weights at the start": start,
            "masks": "none" if masks is None else f"sparsity {masks.sparsity:.6g} ({tensors_digest(masks)})",
            "parent": "none" if parent is None else tensors_digest(parent.state_dict()),
            "teacher": "none" if teacher is None else tensors_digest(teacher.state_dict()),
            "given optimizer": "none" if optimizer is None else _describe(self.optimizer),
            "bf16": self.bf16,
            "channels_last": self.channels_last,
            "processes": self.accelerator.num_processes,
        }
        if self.accelerator.mixed_precision not in ("no", "bf16"):  # bf16 is said above
            self.spec["mixed_precision"] = self.accelerator.mixed_precision
        if masks is None and not isinstance(method, Dense):
            self.spec |= {"method": repr(method), "sparsity": "none" if sparsity is None else sparsity}
        if masks is None and self.names != (usual := _names(model, method)):
            self.spec["parameters"] = (
                f"{len(self.names)} of {len(usual)} ({digest_of({'names': self.names})})"
            )
        self.scheduler = scheduler(training, self.optimizer, self.steps_per_epoch, self.rule.position)
        self.gauge = Gauge(model, self.held_out, self.names, parent, masks)
        self.epochs: list[Epoch] = []
        self.resumed = 0

    def _optimizer(self, given: Optimizer | OptimizerFactory | None) -> Optimizer:
        """The rule's own, the one given, or the one the training names; with the rule's own parameters."""
        own = self.rule.optimizer()
        if own is not None:
            if given is not None:
                raise EspalierError(f"{type(self.method).__name__} brings its own optimizer: give none")
            return own
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if isinstance(given, Optimizer):
            found = given
        else:
            found = build(self.training, trainable) if given is None else given(trainable)
        if extra := self.rule.extra():
            found.add_param_group({"params": extra, "weight_decay": 0.0})
        return found

    @property
    def steps_per_epoch(self) -> int:
        return self.train.steps(self.training.batch_size, self.accelerator.num_processes)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Modes, memory layout, processes, random generators and the rule for the run; undone at the end."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(modes(self.model))
            if self.teacher is not None:
                stack.enter_context(modes(self.teacher))
                self.teacher.eval()
            if self.channels_last:
                stack.callback(self.model.to, memory_format=torch.contiguous_format)
                self.model.to(memory_format=torch.channels_last)
            # After the change of layout, which the gradient buckets of several processes are laid out by.
            self.wrapped, self.stepper = prepared(self.accelerator, self.model, self.optimizer)
            stack.callback(self.rule.close)
            yield

    def go(self, on_epoch: OnEpoch | None, progress: Progress | None) -> History:
        if not self.restore():
            self.rule.begin(self.optimizer)
            if not self.training.epochs:
                self.rule.finish()
            self.finish(0, None, 0.0, on_epoch)
        for epoch in range(len(self.epochs), self.training.epochs + 1):
            if settled(self.training, self.epochs) and self.reached():
                self.rule.finish()
                break
            began = time.perf_counter()
            loss = self.epoch(epoch, progress)
            align(self.model.buffers())  # batch statistics are of each process's own examples
            self.rule.after_epoch(epoch)
            if isinstance(self.optimizer, DualAveraging) and _freezes(self.optimizer):
                self.optimizer.mask_report()
            if epoch == self.training.epochs:
                self.rule.finish()
            self.finish(epoch, loss, time.perf_counter() - began, on_epoch)
        return self.history()

    def reached(self) -> bool:
        """Whether there are as many zeros as asked for."""
        sparsity = self.rule.plan.sparsity
        return sparsity is None or self.epochs[-1].zeros >= self.rule.entries - self.rule.kept

    def examples(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Unaugmented training batches for the scores of a rule."""
        batches = self.train.batches(
            self.training.batch_size, seed=self.training.seed, epoch=0, augment=False
        )
        left = count
        for x, y in batches:
            if left <= 0:
                return
            yield x[:left], y[:left]
            left -= len(x)

    def epoch(self, epoch: int, progress: Progress | None) -> float:
        """Train for one epoch; mean loss over its examples."""
        accelerator, training = self.accelerator, self.training
        # Dropout draws from the global generator: fixed per epoch, so that a resume needs no generator state.
        torch.manual_seed(seeded("dropout", training.seed, epoch).initial_seed())
        self.model.train()
        total, seen = torch.zeros((), dtype=torch.float64, device=accelerator.device), 0
        batches = self.train.batches(
            training.batch_size,
            seed=training.seed,
            epoch=epoch,
            augment=training.augment,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        for step, (x, y) in enumerate(batches, start=1):
            done = (epoch - 1) * self.steps_per_epoch + step
            try:
                loss = self.step(x, y, done)
            except EspalierError as error:
                # A method that looks at the weights may see before us that the run has diverged.
                if not _finite(self.model):
                    self.diverged(epoch, step)
                if not isinstance(error, Failed):
                    raise
                kept = self.fail(epoch, str(error))
                raise Failed(f"training stopped at epoch {epoch}, step {step}: {error}; {kept}") from None
            total += loss.detach().double() * len(x)
            seen += len(x)
            if (step % _CHECK_EVERY == 0 or step == self.steps_per_epoch) and not math.isfinite(
                accelerator.reduce(total)  # by every process, so that all stop at one step
            ):
                self.diverged(epoch, step)
            if progress is not None:
                progress(done, training.epochs * self.steps_per_epoch, f"epoch {epoch}/{training.epochs}")
        both = accelerator.reduce(torch.stack([total, total.new_tensor(float(seen))]))
        return float(both[0] / both[1])

    def step(self, x: Tensor, y: Tensor, number: int) -> Tensor:
        """One optimizer step; the loss before it, without the rule's penalty."""
        device = self.accelerator.device
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        weights = self.rule.weights()
        with autocast(self.accelerator, bf16=self.bf16):
            if weights is None:
                logits = logits_of(self.wrapped(x)).float()
            else:
                logits = logits_of(functional_call(self.model, weights, (x,))).float()
            target = None
            if self.teacher is not None:
                with torch.no_grad():
                    target = logits_of(self.teacher(x)).float()
        loss = objective(self.training, logits, y, target)
        penalty = self.rule.penalty()
        self.stepper.zero_grad()
        self.accelerator.backward(loss if penalty is None else loss + penalty)
        self.accelerator.unscale_gradients(self.stepper)  # of fp16
        self.rule.before_step(number)
        self.stepper.step()
        self.rule.after_step(number)
        self.scheduler.step()
        return loss

    def finish(self, epoch: int, loss: float | None, seconds: float, on_epoch: OnEpoch | None) -> None:
        """Measure the epoch; keep its record, then its state, then the log; then tell."""
        with self.rule.effective():
            lr = float(self.optimizer.param_groups[0]["lr"])
            record = self.gauge.measure(epoch, loss, lr, seconds)
        if epoch and not (math.isfinite(record.loss or 0.0) and _finite(self.model)):
            self.diverged(epoch, self.steps_per_epoch)  # the last step of an epoch shows in no training loss
        self.epochs.append(record)
        if self.folder is not None and self.accelerator.is_main_process:
            save_state(self.folder, self.state())
            write_log(self.folder, self.epochs)
        self.accelerator.wait_for_everyone()
        if on_epoch is not None:
            with self.rule.effective():
                on_epoch(self.epochs[-1], self.model)

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "spec": self.spec,
            "epochs": [e.record() for e in self.epochs],
            "model": self.model.state_dict(),
            "rule": self.rule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "scored_flops": self.rule.scored,
        }

    def restore(self) -> bool:
        """Go on from the folder's state, if it has one of this run."""
        state = None if self.folder is None else load_state(self.folder, self.spec)
        processes = self.accelerator.num_processes
        there = torch.tensor(float(state is not None), device=self.accelerator.device)
        if 0 < (seen := int(self.accelerator.reduce(there, "sum"))) < processes:
            raise EspalierError(
                f"{self.folder} holds a run for {seen} of {processes} processes only: give a folder that all machines "
                "share"
            )
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        self.rule.load_state_dict(state["rule"], self.optimizer)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.rule.scored = state.get("scored_flops", 0)
        self.epochs = [Epoch.from_record(record) for record in state["epochs"]]
        self.resumed = len(self.epochs) - 1
        with self.rule.effective():
            self.gauge.look()
        if self.folder is not None and self.accelerator.is_main_process:
            write_log(self.folder, self.epochs)
        return True

    def diverged(self, epoch: int, step: int) -> None:
        """The run is no use any more."""
        reason = f"the loss or the weights were not finite at epoch {epoch}, by step {step} of {self.steps_per_epoch}"
        kept, advice = self.fail(epoch, reason), f"Try a lower lr than {self.training.lr:g}"
        raise Diverged(f"training stopped: {reason}; {kept}. {advice}", self.history())

    def fail(self, epoch: int, reason: str) -> str:
        """Mark the run failed and put the last good weights back; says what was kept."""
        if self.folder is None:
            return "nothing was kept (no folder)"
        if (state := load_state(self.folder, self.spec)) is not None:  # None: on another machine
            self.model.load_state_dict(state["model"])
        self.accelerator.wait_for_everyone()  # else another would find the mark instead of the state
        if self.accelerator.is_main_process:
            mark_failed(self.folder, epoch, reason)
        return f"the state after epoch {epoch - 1} is kept in {self.folder}"

    def history(self) -> History:
        return History(tuple(self.epochs), self.spec, digest_of(self.spec), self.resumed, self.rule.scored)


def _check(
    model: nn.Module, data: Dataset, training: Training, parent: nn.Module | None, teacher: nn.Module | None
) -> None:
    if training.epochs and not len(data.train):
        raise EspalierError(f"data set {data.name} has no training examples")
    if not training.labels and teacher is None:
        raise EspalierError("training without labels needs a teacher: give one (--teacher parent)")
    if parent is model or teacher is model:
        raise EspalierError(
            "parent and teacher must not be the model itself: take a copy.deepcopy before pruning"
        )
    if training.labels and training.epochs and int(data.train.labels.min()) < 0:
        raise EspalierError(f"data set {data.name} has no labels: train towards a teacher with labels=False")


def _freezes(optimizer: DualAveraging) -> bool:
    """Whether its reports freeze it."""
    return any(group["freeze_below"] is not None for group in optimizer.param_groups)


def _finite(model: nn.Module) -> bool:
    """Whether all that trains is a number."""
    return all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)


def _near(split: AbstractSplit, device: torch.device) -> AbstractSplit:
    """Images in memory go to an accelerator once, not batch by batch."""
    return split if device.type == "cpu" else split.to(device)


def _names(model: nn.Module, method: AbstractMethod) -> tuple[str, ...]:
    return tuple(method.masks) if isinstance(method, Fixed) else select(open_checkpoint(model)).names


def _describe(optimizer: Optimizer) -> str:
    """Class and hyper-parameters of every group, for the spec."""
    groups = [
        {k: v for k, v in group.items() if k != "params" and v is not None}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__qualname__} {groups}"
