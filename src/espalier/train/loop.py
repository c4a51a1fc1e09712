"""The one training loop, on Accelerate: fixed masks or none, towards labels, a teacher, or both."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._forward import collect_logits, logits_of, modes
from espalier.apply import hold
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit, Dataset, seeded
from espalier.evaluation import score
from espalier.likeness import compare_logits, cosine_bound, weight_cosine, zeros
from espalier.masks import Masks
from espalier.selection import select
from espalier.train.distill import objective
from espalier.train.hardware import use_bf16, use_channels_last
from espalier.train.history import Diverged, Epoch, History, measured
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
_COSINE_SLACK = 1e-6


def fit(
    model: nn.Module,
    data: Dataset,
    training: Training,
    *,
    masks: Masks | None = None,
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
        parent: the dense network to compare with each epoch (weights and answers); must not be `model`.
        teacher: towards whose outputs to train (eval mode, same augmented inputs); needed without labels.
        optimizer: one that is built, or a factory from parameters; None builds `training.optimizer`. The
            schedule scales its own learning rate.
        folder: where to keep the run; None keeps nothing.
        names: parameters whose sparsity and cosine are logged; None takes the masks' or, without masks, the
            weights scope of `select`.
        on_epoch: called after epoch 0 (before training) and each epoch with its record and the network.
        progress: called after every step.

    Returns:
        The records of all epochs.

    Raises:
        EspalierError: no training data, no labels and no teacher, parent is the model, a folder of another
            run (names what differs), or a folder that cannot be written.
        Diverged: the loss is not finite any more; the last good state is in the folder (and in the model, if
            it has one).
    """
    run = _Run(model, data, training, masks, parent, teacher, optimizer, folder, names)
    with run.attached():
        return run.go(on_epoch, progress)


class _Run:
    """What belongs to one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        training: Training,
        masks: Masks | None,
        parent: nn.Module | None,
        teacher: nn.Module | None,
        optimizer: Optimizer | OptimizerFactory | None,
        folder: str | Path | None,
        names: Sequence[str] | None,
    ) -> None:
        _check(model, data, training, parent, teacher)
        self.accelerator = Accelerator()
        self.model, self.training, self.masks = model, training, masks
        self.parent, self.teacher = parent, teacher
        self.folder = None if folder is None else Path(folder)
        start = tensors_digest(model.state_dict())
        device = self.accelerator.device
        for module in (model, parent, teacher):
            if module is not None:
                module.to(device)
        self.train, self.held_out = _near(data.train, device), _near(data.validation, device)
        self.bf16 = use_bf16(training, device)
        some = next(self.train.take(2).inputs(2), torch.zeros(0))
        self.channels_last = use_channels_last(training, model, some)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if isinstance(optimizer, Optimizer):
            self.optimizer = optimizer
        else:
            self.optimizer = build(training, trainable) if optimizer is None else optimizer(trainable)
        self.spec = {
            **training.spec(),
            "data": f"{data.name} {data.train.digest} {data.validation.digest}",
            "weights at the start": start,
            "masks": "none" if masks is None else tensors_digest(masks),
            "parent": "none" if parent is None else tensors_digest(parent.state_dict()),
            "teacher": "none" if teacher is None else tensors_digest(teacher.state_dict()),
            "given optimizer": "none" if optimizer is None else _describe(self.optimizer),
            "bf16": self.bf16,
            "channels_last": self.channels_last,
            "processes": self.accelerator.num_processes,
        }
        self.scheduler = scheduler(training, self.optimizer, self.steps_per_epoch)
        self.names = tuple(names) if names is not None else _names(model, masks)
        self.parent_weights = None if parent is None else dict(parent.named_parameters())
        self.epochs: list[Epoch] = []
        self.resumed = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.train.steps(self.training.batch_size, self.accelerator.num_processes)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Modes, memory layout, processes, random generators and masks for the run; undone at the end."""
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
            self.wrapped, self.stepper = self.accelerator.prepare(self.model, self.optimizer)
            if self.masks is not None:
                stack.enter_context(hold(self.model, self.masks, self.optimizer))
            yield

    def go(self, on_epoch: OnEpoch | None, progress: Progress | None) -> History:
        self.references()
        self.restore()
        if not self.epochs:
            self.finish(self.measure(0, None, 0.0), on_epoch)
        for epoch in range(len(self.epochs), self.training.epochs + 1):
            began = time.perf_counter()
            loss = self.epoch(epoch, progress)
            self.finish(self.measure(epoch, loss, time.perf_counter() - began), on_epoch)
        return self.history()

    def references(self) -> None:
        """The parent's answers on the held-out inputs and the bound of the cosine, once per run."""
        self.parent_logits: Tensor | None = None
        if self.parent is not None and len(self.held_out):
            self.parent_logits = collect_logits(self.parent, self.held_out)
        self.bound: float | None = None
        if self.parent_weights is not None and self.masks is not None:
            self.bound = cosine_bound(self.parent_weights, self.masks)

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
            loss = self.step(x, y)
            total += loss.detach().double() * len(x)
            seen += len(x)
            if (step % _CHECK_EVERY == 0 or step == self.steps_per_epoch) and not total.isfinite().item():
                self.fail(epoch, step)
            if progress is not None:
                done = (epoch - 1) * self.steps_per_epoch + step
                progress(done, training.epochs * self.steps_per_epoch, f"epoch {epoch}/{training.epochs}")
        both = accelerator.reduce(torch.stack([total, total.new_tensor(float(seen))]))
        return float(both[0] / both[1])

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer step; the loss before it."""
        device = self.accelerator.device
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            logits = logits_of(self.wrapped(x)).float()
            target = None
            if self.teacher is not None:
                with torch.no_grad():
                    target = logits_of(self.teacher(x)).float()
        loss = objective(self.training, logits, y, target)
        self.stepper.zero_grad()
        self.accelerator.backward(loss)
        self.stepper.step()
        self.scheduler.step()
        return loss

    def measure(self, epoch: int, train_loss: float | None, seconds: float) -> Epoch:
        """Evaluate on the held-out split and count; every process does the same."""
        weights = dict(self.model.named_parameters())
        evaluation = similarity = cosine = None
        if len(self.held_out):
            logits = collect_logits(self.model, self.held_out)
            if int(self.held_out.labels.min()) >= 0:
                evaluation = score(logits, self.held_out.labels)
            if self.parent_logits is not None:
                similarity = compare_logits(logits, self.parent_logits)
        if self.parent_weights is not None:
            cosine = weight_cosine(weights, self.parent_weights, self.names)
        if self.bound is not None and cosine is not None and set(self.names) == set(self.masks or ()):
            assert cosine <= self.bound + _COSINE_SLACK, (cosine, self.bound)
        none, entries = zeros(weights, self.names)
        return measured(
            epoch=epoch,
            train_loss=train_loss,
            evaluation=evaluation,
            zeros=none,
            entries=entries,
            cosine=cosine,
            bound=self.bound,
            similarity=similarity,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=seconds,
        )

    def finish(self, epoch: Epoch, on_epoch: OnEpoch | None) -> None:
        """Keep the epoch's record, then its state, then the log, then tell."""
        self.epochs.append(epoch)
        if self.folder is not None and self.accelerator.is_main_process:
            save_state(self.folder, self.state())
            write_log(self.folder, self.epochs)
        self.accelerator.wait_for_everyone()
        if on_epoch is not None:
            on_epoch(epoch, self.model)

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "spec": self.spec,
            "epochs": [e.record() for e in self.epochs],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self) -> None:
        """Go on from the folder's state, if it has one of this run."""
        state = None if self.folder is None else load_state(self.folder, self.spec)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epochs = [Epoch.from_record(record) for record in state["epochs"]]
        self.resumed = len(self.epochs) - 1
        if self.folder is not None and self.accelerator.is_main_process:
            write_log(self.folder, self.epochs)

    def fail(self, epoch: int, step: int) -> None:
        """Mark the run failed, put the last good weights back, and raise."""
        reason = f"the loss was not finite at epoch {epoch}, by step {step} of {self.steps_per_epoch}"
        kept = "nothing was kept (no folder)"
        if self.folder is not None:
            state = load_state(self.folder, self.spec)
            assert state is not None
            self.model.load_state_dict(state["model"])
            kept = f"the state after epoch {epoch - 1} is kept in {self.folder}"
            if self.accelerator.is_main_process:
                mark_failed(self.folder, epoch, reason)
        advice = f"Try a lower lr than {self.training.lr:g}"
        raise Diverged(f"training stopped: {reason}; {kept}. {advice}", self.history())

    def history(self) -> History:
        return History(tuple(self.epochs), self.spec, digest_of(self.spec), self.resumed)


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


def _near(split: AbstractSplit, device: torch.device) -> AbstractSplit:
    """Images in memory go to an accelerator once, not batch by batch."""
    return split if device.type == "cpu" else split.to(device)


def _names(model: nn.Module, masks: Masks | None) -> tuple[str, ...]:
    return tuple(masks) if masks is not None else select(open_checkpoint(model)).names


def _describe(optimizer: Optimizer) -> str:
    """Class and hyper-parameters of every group, for the spec."""
    groups = [
        {k: v for k, v in group.items() if k != "params" and v is not None}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__qualname__} {groups}"
