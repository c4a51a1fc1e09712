"""Run a cell once, whatever happens: locked while it runs, resumed where it stopped, failures recorded."""

import base64
import contextlib
import copy
import fcntl
import json
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint, rewrite
from espalier.checkpoint.atomic import atomic, made
from espalier.compare.cell import Cell
from espalier.compare.cost import Cost, cost, multiplications
from espalier.methods import Plan
from espalier.pruned_training import TrainedNetwork, train_pruned
from espalier.selection import select
from espalier.train.loop import Progress

RESULT = "result.json"


@dataclass(frozen=True)
class Outcome:
    """What a cell gave.

    Args:
        spec: of the cell.
        seed: of the cell.
        failure: why there is no result, or None.
        accuracy: on the test split, read once.
        interval: its 95 % Wilson interval over the examples.
        loss: mean cross-entropy on the test split, in nats.
        validation: accuracy on the validation split after the last epoch.
        sparsity: recounted from the weights.
        zeros: the count.
        entries: of the pruned parameters.
        bytes: of the network in the sparse file format.
        cost: floating-point operations.
        seconds: of training, wall clock.
        epochs: records of the log.
        place: the folder it was read from.
        correct: which test examples are right, for paired comparisons.
    """

    spec: dict[str, Any]
    seed: int
    failure: str | None = None
    accuracy: float = float("nan")
    interval: tuple[float, float] = (float("nan"), float("nan"))
    loss: float = float("nan")
    validation: float | None = None
    sparsity: float = float("nan")
    zeros: int = 0
    entries: int = 0
    bytes: int = 0
    cost: Cost | None = None
    seconds: float = 0.0
    epochs: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    place: Path | None = field(default=None, repr=False, compare=False)
    correct: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.bool), repr=False, compare=False
    )

    @property
    def emptied(self) -> tuple[str, ...]:
        """Pruned tensors in which no weight is left."""
        kept = self.epochs[-1].get("kept", {}) if self.epochs else {}
        return tuple(name for name, count in kept.items() if count == 0)

    def save(self, path: Path) -> None:
        """Write as JSON; the examples that are right as packed bits."""
        values = asdict(replace(self, correct=torch.zeros(0)))
        del values["place"]
        bits = np.packbits(self.correct.numpy())
        values["correct"] = {"n": len(self.correct), "bits": base64.b64encode(bits.tobytes()).decode()}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(values) + "\n")

    @staticmethod
    def load(path: Path) -> "Outcome":
        """Read what `save` wrote.

        Raises:
            EspalierError: the file is something else.
        """
        try:
            values = json.loads(path.read_text())
            packed = np.frombuffer(base64.b64decode(values["correct"]["bits"]), dtype=np.uint8)
            bits = np.unpackbits(packed, count=values["correct"]["n"]).astype(bool)
            found = {**values, "correct": torch.from_numpy(bits), "interval": tuple(values["interval"])}
            found["epochs"] = tuple(found["epochs"])
            found["cost"] = None if found["cost"] is None else Cost(**found["cost"])
            return Outcome(**found, place=path.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EspalierError(
                f"{path} is not the result of a run ({error}): remove it to run it again"
            ) from None


def check(cell: Cell) -> str | None:
    """Why a cell cannot be run, found without training; None if nothing speaks against it."""
    try:
        model, _ = networks(cell)
        _plan_check(cell, model)
    except EspalierError as error:
        return str(error)
    return None


def run(cell: Cell, folder: Path, progress: Progress | None = None) -> Outcome | None:
    """The outcome of a cell: read if it is there, else trained now.

    A run that was killed goes on after its last epoch. An error of the run is its outcome and is not tried again
    (remove the folder to do so); Ctrl-C is not an error.

    Args:
        cell: what to run.
        folder: of the study; the cell has a folder of its digest in it.
        progress: called after every step.

    Returns:
        The outcome, or None while another process runs this cell.
    """
    place = made(folder / cell.digest)
    with locked(place / "lock") as ours:
        if not ours:
            return None
        if not (place / RESULT).exists():
            try:
                outcome = _train(cell, place / "run", progress)
            except EspalierError as error:
                outcome = Outcome(cell.spec, cell.seed, failure=str(error))
            except Exception as error:  # whatever it is, the study goes on and shows it
                (place / "traceback.txt").write_text(traceback.format_exc())
                reason = f"{type(error).__name__}: {error} (see traceback.txt in {place.name})"
                outcome = Outcome(cell.spec, cell.seed, failure=reason)
            outcome.save(place / RESULT)
            if outcome.failure is None:  # else the last good state is kept
                shutil.rmtree(place / "run", ignore_errors=True)
    return Outcome.load(place / RESULT)


def _train(cell: Cell, place: Path, progress: Progress | None) -> Outcome:
    model, teacher = networks(cell)
    data = cell.network.data()
    _plan_check(cell, model)
    example = next(data.train.inputs(1))
    each = multiplications(model, example)
    taught = {} if teacher is None else multiplications(teacher, example)
    pruned = not cell.contender.smaller
    result = train_pruned(
        model,
        data,
        cell.training,
        cell.contender.method,
        sparsity=cell.sparsity if pruned else None,
        teacher=teacher,
        scope=cell.scope,
        folder=place,
        progress=progress,
    )
    if pruned:
        _check_count(cell, result)
    names = select(open_checkpoint(model), cell.scope).names
    parameters = dict(model.named_parameters())
    sizes = {name: parameters[name].numel() for name in names}
    test = result.stages[-1].evaluation
    return Outcome(
        spec=cell.spec,
        seed=cell.seed,
        accuracy=test.accuracy,
        interval=test.interval,
        loss=test.loss,
        validation=result.history.last.accuracy,
        sparsity=result.sparsity,
        zeros=result.zeros,
        entries=result.entries,
        bytes=_sparse_bytes(model),
        cost=cost(
            each,
            sizes,
            [e.kept for e in result.history.epochs],
            len(data.train),
            taught,
            result.history.scored,
        ),
        seconds=sum(epoch.seconds for epoch in result.history.epochs),
        epochs=tuple(epoch.record() for epoch in result.history.epochs),
        correct=test.correct,
    )


def networks(cell: Cell) -> tuple[nn.Module, nn.Module | None]:
    """The network to train, and the dense parent where it teaches."""
    teacher = None
    if cell.teacher:
        if cell.network.parent is None:
            raise EspalierError(f"{cell.network.name} starts from scratch: there is no dense parent to teach")
        teacher = copy.deepcopy(cell.network.parent())  # a run moves its teacher to its device
    if cell.contender.smaller:
        if cell.network.smaller is None or cell.sparsity is None:
            raise EspalierError(
                f"no narrower version of {cell.network.name} is known: leave {cell.contender.label} out"
            )
        return cell.network.smaller(cell.seed, cell.sparsity), teacher
    return cell.network.build(cell.seed), teacher


def _plan_check(cell: Cell, model: nn.Module) -> None:
    """Refuse before anything is trained, what the method cannot do too."""
    if not cell.training.labels and not cell.teacher:
        raise EspalierError(
            "training without labels needs a teacher: give the study teachers: [true], or labels"
        )
    if not cell.contender.smaller:
        names = select(open_checkpoint(model), cell.scope).names
        steps = cell.training.epochs * cell.network.data().train.steps(cell.training.batch_size)
        plan = Plan(cell.sparsity, names, steps, cell.training)
        cell.contender.method.check(model, plan)


def _check_count(cell: Cell, result: TrainedNetwork) -> None:
    wanted = 0 if cell.sparsity is None else round(cell.sparsity * result.entries)
    if result.zeros != wanted and cell.sparsity is not None:
        raise EspalierError(
            f"{cell.contender.label} ended with {result.zeros} zeros instead of the {wanted} asked for: a comparison "
            "at unequal sparsity would mislead"
        )


def _sparse_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.safetensors"
        return rewrite(open_checkpoint(model), out, lambda _, tensor: tensor, sparse=True).bytes


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """A lock that ends with the process, however it ends; False if another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
