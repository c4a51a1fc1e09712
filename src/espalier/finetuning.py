"""Parent, pruned, re-estimated, fine-tuned: one network through its stages, each measured the same way."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from espalier._forward import collect_logits
from espalier.budget import Budget, largest_agreeing_sparsity, largest_sparsity
from espalier.data import AbstractSplit, Dataset
from espalier.evaluation import Evaluation, PairedDifference, paired_difference, score
from espalier.likeness import Similarity, compare_logits
from espalier.masks import Masks
from espalier.recalibration import Recalibration, recalibrate
from espalier.train import History, Training, fit
from espalier.train.loop import Progress

HIGHEST = 0.999
"""Largest sparsity a budget search tries."""


@dataclass(frozen=True)
class Stage:
    """The network at one stage, on the test split, in eval mode.

    Args:
        name: "parent", "pruned", "re-estimated" or "fine-tuned".
        evaluation: accuracy and loss.
        drop: accuracy of the parent minus that of this network, paired by example; None without a parent.
        similarity: to the parent on the same inputs; None without a parent.
    """

    name: str
    evaluation: Evaluation
    drop: PairedDifference | None
    similarity: Similarity | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        e = self.evaluation
        return {
            "name": self.name,
            "accuracy": e.accuracy,
            "interval": list(e.interval),
            "loss": e.loss,
            "n": e.n,
            "drop": None if self.drop is None else asdict(self.drop),
            "similarity": None if self.similarity is None else asdict(self.similarity),
        }


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning did.

    Args:
        sparsity: zeros / selected entries at the end, recounted.
        zeros: the count.
        entries: selected entries.
        stages: in the order they were reached.
        history: what was logged after each epoch, on the validation split.
        recalibration: what re-estimating batch norm did; None if it was not asked for.
        budget: the search that chose the sparsity; None if it was given.
    """

    sparsity: float
    zeros: int
    entries: int
    stages: tuple[Stage, ...]
    history: History
    recalibration: Recalibration | None
    budget: Budget | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "sparsity": self.sparsity,
            "zeros": self.zeros,
            "entries": self.entries,
            "stages": [stage.to_dict() for stage in self.stages],
            "epochs": [epoch.record() for epoch in self.history.epochs],
            "recalibration": None if self.recalibration is None else asdict(self.recalibration),
            "budget": None if self.budget is None else asdict(self.budget),
            "spec": self.history.spec,
        }


def finetune(
    model: nn.Module,
    data: Dataset,
    training: Training,
    *,
    masks: Masks,
    parent: nn.Module | None = None,
    teach: bool = False,
    recalibration: bool = False,
    budget: Budget | None = None,
    folder: Path | None = None,
    finish: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune a network at fixed masks, in place, and measure it at each stage.

    The test split is read once per stage and chooses nothing; what is kept of a re-estimation is decided on the
    validation split.

    Args:
        model: pruned to `masks` here if it is not yet.
        data: train to tune on, validation to decide on, test to report.
        training: epochs (0 only measures), rates, labels or not.
        masks: what is kept.
        parent: the dense network; needed to teach and to re-estimate.
        teach: train towards the parent's outputs as well, or alone if `training.labels` is False.
        recalibration: re-estimate batch norm from training inputs after pruning, where that helps.
        budget: the search that chose the masks, for the record.
        folder: where the run can be resumed from.
        finish: called after training, before the last measurement: what makes the network the one that is written,
            such as rounding to the dtype of the file.
        progress: called after every step.

    Raises:
        EspalierError: see `fit` and `recalibrate`.
    """
    masks.apply_(model)
    dense = None if parent is None else collect_logits(parent, data.test)
    stages = [] if dense is None else [_stage("parent", dense, data.test.labels, None)]
    stages.append(_measured("pruned", model, data, dense))
    redone = None
    if recalibration and parent is not None:
        redone = recalibrate(model, data.train, parent=parent, held_out=data.validation)
        if redone.kept:
            stages.append(_measured("re-estimated", model, data, dense))
    history = fit(
        model,
        data,
        training,
        masks=masks,
        parent=parent,
        teacher=copy.deepcopy(parent) if teach else None,
        folder=folder,
        progress=progress,
    )
    if finish is not None:
        finish()
    masks.verify(model)
    if training.epochs:
        stages.append(_measured("fine-tuned", model, data, dense))
    weights = dict(model.named_parameters())
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    return Finetuned(zeros / masks.entries, zeros, masks.entries, tuple(stages), history, redone, budget)


def stages_of(networks: Mapping[str, nn.Module], split: AbstractSplit) -> list[Stage]:
    """Measure networks on a split, each read once; the first is the parent of the others.

    Args:
        networks: name -> network; one alone has no parent.
        split: labelled.
    """
    stages: list[Stage] = []
    dense: Tensor | None = None
    for name, network in networks.items():
        logits = collect_logits(network, split)
        stages.append(_stage(name, logits, split.labels, dense))
        dense = logits if dense is None else dense
    return stages


def _measured(name: str, model: nn.Module, data: Dataset, dense: Tensor | None) -> Stage:
    return _stage(name, collect_logits(model, data.test), data.test.labels, dense)


def _stage(name: str, logits: Tensor, labels: Tensor, dense: Tensor | None) -> Stage:
    """A stage from the logits of the network and of its parent."""
    found = score(logits, labels)
    if dense is None:
        return Stage(name, found, None, None)
    drop = paired_difference(score(dense, labels).correct, found.correct)
    return Stage(name, found, drop, compare_logits(logits, dense))


def search(
    prune_at: Callable[[nn.Module, float], Masks],
    parent: nn.Module,
    data: Dataset,
    *,
    drop: float | None = None,
    agreement: float | None = None,
    training: Training | None = None,
    teach: bool = False,
    recalibration: bool = False,
    resolution: float = 0.01,
    progress: Callable[[str], None] | None = None,
) -> Budget:
    """The largest sparsity inside a budget, decided on the validation split.

    Args:
        prune_at: prunes the network it is given, in place, to a sparsity.
        parent: the dense network; stays as it is.
        data: validation to decide on; train only if something is trained or re-estimated.
        drop: tolerated drop of accuracy, as a fraction; needs labels.
        agreement: or, without labels, the smallest agreement with the parent.
        training: fine-tune at each step of the search; None measures the pruned network as it is.
        teach: fine-tune towards the parent's outputs as well, or alone if `training.labels` is False.
        recalibration: re-estimate batch norm at each step, where that helps.
        resolution: width of the last bracket.
        progress: called after each step with a word on it.

    Raises:
        EspalierError: see `espalier.budget`.
    """

    def candidate(sparsity: float) -> nn.Module:
        model = copy.deepcopy(parent)
        masks = prune_at(model, sparsity)
        if recalibration:
            recalibrate(model, data.train, parent=parent, held_out=data.validation)
        if training is not None and training.epochs:
            fit(model, data, training, masks=masks, teacher=copy.deepcopy(parent) if teach else None)
        return model

    def tell(point: Any) -> None:
        if progress is not None:
            progress(
                f"sparsity {point.sparsity:.3f}: {point.value:.4f} {'inside' if point.inside else 'outside'}"
            )

    if drop is not None:
        return largest_sparsity(
            candidate, parent, data.validation, drop, high=HIGHEST, resolution=resolution, progress=tell
        )
    assert agreement is not None
    return largest_agreeing_sparsity(
        candidate, parent, data.validation, agreement, high=HIGHEST, resolution=resolution, progress=tell
    )


def masks_of(model: nn.Module, names: Sequence[str]) -> Masks:
    """The masks of a network that is pruned already: what is zero in the named parameters stays zero."""
    parameters = dict(model.named_parameters())
    return Masks.from_zeros({name: parameters[name] for name in names})
