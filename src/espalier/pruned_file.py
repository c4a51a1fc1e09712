"""From a checkpoint file to a pruned one, tensor by tensor, with a record of what was achieved."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import espalier
from espalier.allocate import AbstractAllocation, Global
from espalier.amount import Amount
from espalier.checkpoint import AbstractCheckpoint, rewrite
from espalier.inspection import dominating
from espalier.masks import Masks, indivisible
from espalier.pruning import prune_checkpoint, selected_scores
from espalier.scores import AbstractScore, Magnitude
from espalier.selection import Selection


@dataclass(frozen=True)
class PrunedTensor:
    """One selected tensor of a pruned file.

    Args:
        name: its parameter name.
        shape: its shape.
        entries: its number of entries.
        kept: entries that are not zero.
        cosine: between the tensor before and after; 0.0 when nothing is left, 1.0 when it was all zero before.
    """

    name: str
    shape: tuple[int, ...]
    entries: int
    kept: int
    cosine: float


@dataclass(frozen=True)
class PrunedFile:
    """What was written, recounted from what was written.

    Args:
        path: the file or folder.
        source: what was pruned; None for what lived in memory.
        how: amount rule, score and allocation.
        asked: sparsity asked for, zeros / selected entries; None for an N:M pattern.
        zeros: zeros among the selected entries.
        entries: selected entries.
        parameters: all floating non-buffer entries of the checkpoint.
        cosine: between all selected entries before and after.
        bytes_before: size of the source on disk, 0 for what lived in memory.
        bytes_after: size of what was written.
        tensors: one record per selected tensor.
        left_out: tensors that are no ordinary weights -> what they are; carried through untouched.
        notes: sentences worth reading: more zeros than asked, tensors left dense, tensors wiped out.
    """

    path: str
    source: str | None
    how: str
    asked: float | None
    zeros: int
    entries: int
    parameters: int
    cosine: float
    bytes_before: int
    bytes_after: int
    tensors: tuple[PrunedTensor, ...]
    notes: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Zeros / selected entries."""
        return self.zeros / self.entries

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self) | {"sparsity": self.sparsity}


def prune_file(
    checkpoint: AbstractCheckpoint,
    selection: Selection,
    sparsity: float,
    out: str | Path,
    *,
    score: AbstractScore | None = None,
    allocation: AbstractAllocation | None = None,
    nm: tuple[int, int] | None = None,
    sparse: bool = False,
    amount: Amount | None = None,
    progress: Callable[[str], None] | None = None,
) -> PrunedFile:
    """Write a pruned copy of a checkpoint.

    Memory holds one tensor (and its score) at a time. The file appears whole or not at all; its metadata says, under
    `espalier.prune`, what was asked and what was achieved.

    Args:
        checkpoint: the source.
        selection: which of its tensors to prune.
        sparsity: zeros / selected entries, in [0, 1); ignored with `nm`.
        out: file or folder to write, not the source.
        score: default `Magnitude()`.
        allocation: default `Global()`.
        nm: (n, m): keep n of each m consecutive entries along the input axis instead.
        sparse: write the sparse format of `docs/sparse-format.md`.
        amount: the answer of the rule that chose the sparsity, for the record.
        progress: called with the name of each tensor when it is written.

    Raises:
        EspalierError: see `espalier.pruning.prune_checkpoint` and `espalier.checkpoint.rewrite`.
    """
    masks, notes = _masks(checkpoint, selection, sparsity, score or Magnitude(), allocation or Global(), nm)
    records: dict[str, PrunedTensor] = {}
    energies: dict[str, tuple[float, float]] = {}

    def change(name: str, tensor: Tensor) -> Tensor:
        if progress is not None:
            progress(name)
        if name not in selection.shapes:
            return tensor
        masked = masks.masked(name, tensor)
        before, after = (
            float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in (tensor, masked)
        )
        energies[name] = (before, after)
        kept = int(torch.count_nonzero(masked))
        cosine = math.sqrt(after / before) if before > 0 else 1.0
        records[name] = PrunedTensor(name, tuple(tensor.shape), tensor.numel(), kept, cosine)
        return masked

    achieved = {
        "version": espalier.__version__,
        "asked": f"{nm[0]}:{nm[1]}" if nm else sparsity,
        "rule": None if amount is None else amount.rule,
        "score": repr(score or Magnitude()),
        "allocation": f"{nm[0]}:{nm[1]}" if nm else repr(allocation or Global()),
        "scope": selection.scope,
        "zeros": selection.entries - masks.kept,
        "entries": selection.entries,
    }
    written = rewrite(checkpoint, Path(out), change, {"espalier.prune": json.dumps(achieved)}, sparse=sparse)
    tensors = tuple(records[name] for name in selection.names)
    zeros = sum(t.entries - t.kept for t in tensors)
    before, after = (math.fsum(pair[i] for pair in energies.values()) for i in (0, 1))
    cosine = math.sqrt(after / before) if before > 0 else 1.0
    return PrunedFile(
        path=str(out),
        source=None if checkpoint.path is None else str(checkpoint.path),
        how=", ".join(str(achieved[key]) for key in ("rule", "score", "allocation") if achieved[key]),
        asked=None if nm else sparsity,
        zeros=zeros,
        entries=selection.entries,
        parameters=selection.parameters,
        cosine=cosine,
        bytes_before=checkpoint.bytes_on_disk,
        bytes_after=written.bytes,
        tensors=tensors,
        left_out=selection.left_out,
        notes=(
            *checkpoint.notes,
            *written.notes,
            *([selection.left_out_sentence] if selection.left_out else []),
            *notes,
            *dominating(
                {t.name: t.entries for t in tensors}, {name: pair[0] for name, pair in energies.items()}
            ),
            *_remarks(tensors, zeros, selection.entries, None if nm else sparsity),
            *_promise(amount, cosine),
        ),
    )


def _masks(
    checkpoint: AbstractCheckpoint,
    selection: Selection,
    sparsity: float,
    score: AbstractScore,
    allocation: AbstractAllocation,
    nm: tuple[int, int] | None,
) -> tuple[Masks, list[str]]:
    if nm is None:
        return prune_checkpoint(checkpoint, selection, sparsity, score=score, allocation=allocation), []
    dense = indivisible(selection.shapes, nm[1])
    scores = selected_scores(checkpoint, selection, score)
    notes = [f"left dense, their input axis is not divisible by {nm[1]}: {', '.join(dense)}"] if dense else []
    return Masks.from_nm(scores, *nm), notes


def _remarks(tensors: tuple[PrunedTensor, ...], zeros: int, entries: int, asked: float | None) -> list[str]:
    """What a person would want to be told about the result."""
    notes = []
    if asked is not None and zeros > round(asked * entries):
        notes.append(
            f"asked for {asked:.4g} zeros, but {zeros / entries:.4g} of the entries were zero already; they stay zero"
        )
    gone = [t.name for t in tensors if not t.kept]
    faint = [f"{t.name} ({t.kept / t.entries:.2%} kept)" for t in tensors if 0 < t.kept < 0.01 * t.entries]
    if gone:
        notes.append(
            f"nothing is left of {', '.join(gone)}: the network is cut there; use a floor, LAMP, or a smaller amount"
        )
    if faint:
        notes.append(f"nearly wiped out: {', '.join(faint)}")
    return notes


def _promise(amount: Amount | None, cosine: float) -> list[str]:
    """Amount rules read global magnitude pruning; another score or allocation keeps less."""
    if amount is None or abs(amount.cosine - cosine) < 5e-4:
        return []
    return [
        f"the amount ({amount.rule}) was chosen for global magnitude pruning, which keeps a cosine of "
        f"{amount.cosine:.4f}; as asked here {cosine:.4f} is kept"
    ]
