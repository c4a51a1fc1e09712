"""From a network and a method to a trained network with its zeros, measured once on the test split."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from espalier.budget import Budget, Point, largest_sparsity
from espalier.checkpoint import open_checkpoint
from espalier.data import Dataset
from espalier.finetuning import HIGHEST, Stage, stages_of
from espalier.masks import Masks
from espalier.methods import AbstractMethod
from espalier.selection import Scope, select
from espalier.train import Epoch, History, Training, fit
from espalier.train.loop import Progress


@dataclass(frozen=True)
class TrainedNetwork:
    """What a training with a pruning method gave.

    Args:
        sparsity: zeros / selected entries at the end, recounted.
        zeros: the count.
        entries: selected entries.
        all_zeros: zeros of all parameters, selected or not.
        all_entries: entries of all parameters.
        stages: on the test split: the network one started from (where there is one), and the trained one.
        history: what was logged after each epoch, on the validation split.
    """

    sparsity: float
    zeros: int
    entries: int
    all_zeros: int
    all_entries: int
    stages: tuple[Stage, ...]
    history: History

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sparsity": self.sparsity,
            "zeros": self.zeros,
            "entries": self.entries,
            "all_zeros": self.all_zeros,
            "all_entries": self.all_entries,
            "stages": [stage.to_dict() for stage in self.stages],
            "epochs": [epoch.record() for epoch in self.history.epochs],
            "spec": self.history.spec,
        }


def train_pruned(
    model: nn.Module,
    data: Dataset,
    training: Training,
    method: AbstractMethod,
    *,
    sparsity: float | None = None,
    parent: nn.Module | None = None,
    teacher: nn.Module | None = None,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    folder: Path | None = None,
    on_epoch: Callable[[Epoch, nn.Module], None] | None = None,
    progress: Progress | None = None,
) -> TrainedNetwork:
    """Train a network in place with a pruning method and measure the result.

    The network of the last epoch is the result; no epoch is picked. The test split is read once, at the end.

    Args:
        model: as it is at the start, from scratch or trained.
        data: train to train on, validation for the log, test to report.
        training: epochs, rates, seed.
        method: how zeros come about.
        sparsity: to reach, in [0, 1); None where the method decides.
        parent: the dense network to compare with; not the model itself.
        teacher: towards whose outputs to train as well, or alone if `training.labels` is False; may be the parent.
        scope: which parameters are pruned.
        include: globs on parameter names; only these.
        exclude: globs on parameter names; not these.
        folder: where the run can be resumed from.
        on_epoch: called after each epoch.
        progress: called after every step.

    Raises:
        EspalierError: see `fit` and `select`.
        Diverged: the loss is not finite any more.
    """
    names = select(open_checkpoint(model), scope, include, exclude).names
    history = fit(
        model,
        data,
        training,
        method=method,
        sparsity=sparsity,
        parent=parent,
        teacher=teacher,
        names=names,
        folder=folder,
        on_epoch=on_epoch,
        progress=progress,
    )
    parameters = dict(model.named_parameters())
    zeros = {name: int((parameter == 0).sum()) for name, parameter in parameters.items()}
    selected, entries = sum(zeros[name] for name in names), sum(parameters[name].numel() for name in names)
    networks = {"trained": model} if parent is None else {"start": parent, "trained": model}
    return TrainedNetwork(
        sparsity=selected / entries,
        zeros=selected,
        entries=entries,
        all_zeros=sum(zeros.values()),
        all_entries=sum(parameter.numel() for parameter in parameters.values()),
        stages=tuple(stages_of(networks, data.test)) if len(data.test) else (),
        history=history,
    )


def search_trained(
    parent: nn.Module,
    data: Dataset,
    training: Training,
    method: AbstractMethod,
    drop: float,
    *,
    teach: bool = False,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    resolution: float = 0.01,
    folder: Path | None = None,
    tell: Callable[[Point], None] | None = None,
    progress: Progress | None = None,
) -> Budget:
    """The largest sparsity that a training with a method reaches inside an accuracy budget.

    Every sparsity tried is a whole training from the dense network; the validation split decides (see
    `espalier.budget.largest_sparsity`).

    Args:
        parent: the dense network to start from and to compare with; stays as it is.
        data: train to train on, validation to decide on.
        training: of each try.
        method: how zeros come about; one that takes a sparsity.
        drop: tolerated drop of accuracy, as a fraction; its whole 95 % interval must stay inside.
        teach: train towards the parent's outputs as well.
        scope: which parameters are pruned.
        include: globs on parameter names; only these.
        exclude: globs on parameter names; not these.
        resolution: width of the last bracket of sparsities.
        folder: where the tries can be resumed from.
        tell: called after each try.
        progress: called after every step of every try.

    Raises:
        EspalierError: see `fit` and `largest_sparsity`.
    """
    names = select(open_checkpoint(parent), scope, include, exclude).names

    def trained(sparsity: float) -> nn.Module:
        model = copy.deepcopy(parent)
        fit(
            model,
            data,
            training,
            method=method,
            sparsity=sparsity,
            teacher=parent if teach else None,
            names=names,
            folder=None if folder is None else folder / f"sparsity-{sparsity:.6f}",
            progress=progress,
        )
        return model

    parameters = dict(parent.named_parameters())
    return largest_sparsity(
        trained,
        parent,
        data.validation,
        drop,
        low=Masks.from_zeros({name: parameters[name] for name in names}).sparsity,
        high=HIGHEST,
        resolution=resolution,
        progress=tell,
    )
