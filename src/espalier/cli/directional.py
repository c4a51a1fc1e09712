"""From a checkpoint to a directionally pruned one; imports torch, so `espalier prune` imports it late."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from espalier.amount import Amount
from espalier.checkpoint import open_checkpoint
from espalier.cli.subject import Subject
from espalier.data import Dataset
from espalier.directional import directional
from espalier.pruned_file import PrunedFile, PrunedTensor
from espalier.selection import select

if TYPE_CHECKING:
    from rich.progress import Progress


def prune_directional_file(
    file: Path,
    output: Path,
    sparsity: float,
    *,
    model: str,
    data: Dataset,
    selecting: dict[str, Any],
    directions: int,
    sparse: bool,
    amount: Amount | None,
    seed: int,
    bar: "Progress",
) -> PrunedFile:
    """Fill the network, prune it along flat directions of its training loss, write it as it came."""
    subject = Subject(file, None, model, len(data.classes), **selecting, data=data)
    selection = select(open_checkpoint(subject.model), **selecting)
    before = _selected(subject, selection.names)
    task = bar.add_task("weights at zero", total=round(sparsity * selection.entries))
    found = directional(
        subject.model,
        data.train,
        sparsity,
        directions=directions,
        seed=seed,
        progress=lambda zeros: bar.update(task, completed=zeros),
        **selecting,
    )
    subject.round_()
    written = subject.write(output, sparse)
    after = _selected(subject, selection.names)
    tensors = tuple(
        PrunedTensor(
            name, tuple(w.shape), w.numel(), int(torch.count_nonzero(w)), _cosine([before[name]], [w])
        )
        for name, w in after.items()
    )
    old, new = found.loss
    notes = (
        f"the loss on {found.examples:,} training examples went from {old:.4g} to {new:.4g}; the weights that "
        f"stayed moved ({found.products:,} curvature products, {found.path.curvatures} times {directions} directions)",
        *found.notes,
    )
    return PrunedFile(
        path=str(output),
        source=str(file),
        how=", ".join([*([amount.rule] if amount else []), "directional pruning"]),
        asked=sparsity,
        zeros=sum(t.entries - t.kept for t in tensors),
        entries=selection.entries,
        parameters=selection.parameters,
        cosine=_cosine(list(before.values()), list(after.values())),
        bytes_before=subject.checkpoint.bytes_on_disk,
        bytes_after=written.bytes,
        tensors=tensors,
        left_out=selection.left_out,
        notes=(
            *subject.checkpoint.notes,
            *written.notes,
            *([selection.left_out_sentence] if selection.left_out else []),
            *notes,
        ),
    )


def _selected(subject: Subject, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Copies of the selected tensors, called as in the file."""
    state = subject.model.state_dict()
    return {subject.filled.places.get(name, name): state[name].detach().clone() for name in names}


def _cosine(before: list[Tensor], after: list[Tensor]) -> float:
    dot = sum(float(a.double().flatten() @ b.double().flatten()) for a, b in zip(before, after, strict=True))
    sizes = [sum(float(t.double().square().sum()) for t in side) for side in (before, after)]
    return float(dot / (sizes[0] * sizes[1]) ** 0.5) if all(sizes) else 0.0
