"""The honest table: the ways a pruned network can be deployed, timed in turn, and what to deploy."""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier.data import AbstractSplit
from espalier.evaluation import Evaluation, paired_difference, score
from espalier.export import Example
from espalier.likeness import Similarity, compare_logits
from espalier.runtime.clock import Clock, Timing, doubts, interleave, resolution
from espalier.runtime.plan import LayerPlan, Machine, Plan
from espalier.runtime.tracing import disagreement, tensors_of
from espalier.runtime.ways import WAYS, AbstractWay, Dense, Ours, why_not

AGAIN = "dense fp32, again"
"""The control: the first row measured a second time."""


@dataclass(frozen=True)
class Row:
    """One way.

    Args:
        name: of the way.
        timings: batch size -> timing of one call; empty if the way does not run.
        reasons: batch size -> why it was not run.
        bytes: of the file to ship.
        memory: bytes of the weights in memory, and by which one call at the largest batch raised the peak of the
            process; None if unknown.
        difference: largest difference of outputs to dense fp32 over the largest output, at the first batch.
        evaluation: on the data given.
        similarity: to dense fp32 on the data given.
        lost_zeros: zeros of the network that are none in this way's weights; None where they cannot be seen.
        note: what one should know.
    """

    name: str
    timings: Mapping[int, Timing] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)
    bytes: int | None = None
    memory: int | None = None
    difference: float | None = None
    evaluation: Evaluation | None = None
    similarity: Similarity | None = None
    lost_zeros: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """The table and what follows from it.

    Args:
        machine: where it was measured.
        batches: sizes.
        rows: in the order of the table.
        layers: what remains of each layer, at the first batch.
        doubts: batch size -> reasons why its latencies allow no conclusion.
        sparsity: zeros over entries of the layers.
        plans: batch size -> plan of our row.
        verdict: one sentence.
    """

    machine: Machine
    batches: tuple[int, ...]
    rows: tuple[Row, ...]
    layers: tuple[LayerPlan, ...]
    doubts: Mapping[int, tuple[str, ...]]
    sparsity: float
    plans: Mapping[int, Plan]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "machine": vars(self.machine),
            "batches": list(self.batches),
            "sparsity": self.sparsity,
            "rows": [_row_dict(row) for row in self.rows],
            "layers": [
                {"name": x.name, "shape": list(x.shape), "nonzeros": x.nonzeros, "macs": x.macs,
                 "dense_macs": x.dense_macs, "decision": x.reason}
                for x in self.layers
            ],
            "doubts": {str(batch): list(found) for batch, found in self.doubts.items()},
            "verdict": self.verdict,
        }  # fmt: skip


def bench(
    model: nn.Module,
    example: Example,
    *,
    sparse_bytes: int,
    batches: Sequence[int] = (1, 8, 32),
    ways: Sequence[type[AbstractWay]] = WAYS,
    split: AbstractSplit | None = None,
    rounds: int = 20,
    seconds: float = 10.0,
    clock: Clock = time.perf_counter,
    progress: Callable[[str], object] | None = None,
) -> Bench:
    """Time the ways to deploy a pruned network in turn, in one process, with the threads torch is set to.

    Args:
        model: pruned, float32, on the CPU; put in eval mode.
        example: inputs; its rows are repeated to make the batches.
        sparse_bytes: size of the sparse file.
        batches: sizes, the first one also for outputs and layers.
        ways: the rows; dense fp32 is always among them.
        split: for accuracy and similarity of classifiers.
        rounds: samples of each row, at most.
        seconds: for the rounds of one batch size; at least five rounds are made.
        clock: in seconds.
        progress: called with what is being done.

    Raises:
        EspalierError: no batch size, or the network itself does not run.
    """
    if not batches or min(batches) < 1:
        raise EspalierError("the bench needs batch sizes of 1 or more")
    model = model.eval().requires_grad_(False)
    tell = progress or (lambda what: None)
    if Dense not in ways:
        ways = (Dense, *ways)
    with TemporaryDirectory() as folder:
        made = [way(model, Path(folder)) for way in ways]
        rows = {way.name: Row(way.name) for way in made}
        doubtful: dict[int, tuple[str, ...]] = {}
        for batch in batches:
            given = example.with_rows(batch)
            modules: dict[str, nn.Module] = {}
            for way in made:
                tell(f"{way.name}, batch {batch}")
                rows[way.name], module = _prepared(rows[way.name], way, given, sparse_bytes, batch)
                if module is not None:
                    modules[way.name] = module
            if Dense.name not in modules:
                raise EspalierError(
                    f"the network does not run on inputs of shape {given.shapes}: {rows[Dense.name].reasons[batch]}; "
                    "give the shape of its inputs (--input-shape), or in Python all that it takes"
                )
            tell(f"timing, batch {batch}")
            timings = _timed(modules, given, rounds, seconds, clock)
            doubtful[batch] = doubts(timings, step=resolution(clock), twins=(Dense.name, AGAIN))
            for name in modules:
                rows[name] = replace(rows[name], timings={**rows[name].timings, batch: timings[name]})
            if batch == batches[0]:
                rows = _compared(rows, made, modules, given, model)
            if batch == max(batches):
                for way in made:
                    if way.name in modules:
                        memory = _memory(way, modules[way.name], given)
                        rows[way.name] = replace(rows[way.name], memory=memory)
                if split is not None:
                    rows = _evaluated(rows, modules, split, batch, tell)
        rows = {way.name: replace(rows[way.name], note=way.note) for way in made}
        plans = next((way.plans for way in made if isinstance(way, Ours)), {})
    layers = plans[batches[0]].layers if batches[0] in plans else ()
    entries = sum(_product(layer.shape) for layer in layers)
    sparsity = 1 - sum(layer.nonzeros for layer in layers) / entries if entries else 0.0
    table = tuple(rows.values())
    says = verdict(table, tuple(batches), doubtful)
    return Bench(Machine.here(), tuple(batches), table, layers, doubtful, sparsity, plans, says)


def verdict(rows: Sequence[Row], batches: Sequence[int], doubtful: Mapping[int, Sequence[str]]) -> str:
    """What to deploy, in one sentence: the fastest way that loses no accuracy, ours or not.

    A way is out of question if its accuracy on the data is lower than that of dense fp32 beyond the 95 % interval
    of the paired difference. Ways within 3 % of the fastest count as equal, and the smallest file wins.
    """
    dense = next(row for row in rows if row.name == Dense.name)
    sure = [batch for batch in batches if not doubtful.get(batch)]
    if not sure:
        reasons = dict.fromkeys(reason for batch in batches for reason in doubtful[batch])
        return f"No conclusion about speed: {'; '.join(reasons)}. Repeat on a quiet machine."
    worse = {row.name for row in rows if _loses(row, dense)}
    parts: dict[str, list[str]] = {}
    for batch in sure:
        running = [row for row in rows if batch in row.timings and row.name not in worse]
        best = min(row.timings[batch].minimum for row in running)
        equal = [row for row in running if row.timings[batch].minimum <= 1.03 * best]
        chosen = min(equal, key=lambda row: (row.bytes is None, row.bytes or 0))
        factor = dense.timings[batch].minimum / chosen.timings[batch].minimum
        parts.setdefault(chosen.name, []).append(f"{factor:.2f} times dense fp32 at batch {batch}")
    text = "Deploy " + "; or ".join(f"{name} ({', '.join(found)})" for name, found in parts.items())
    ours = next((row for row in rows if row.name == Ours.name), None)
    if ours is not None and ours.timings and set(parts) != {Ours.name}:
        own = [
            f"{dense.timings[b].minimum / ours.timings[b].minimum:.2f} at batch {b}"
            for b in sure
            if b in ours.timings
        ]
        text += f"; the sparse file with espalier gives {', '.join(own)}"
    if worse:
        text += f"; less accurate than dense fp32 and so left out: {', '.join(sorted(worse))}"
    unsure = [str(batch) for batch in batches if doubtful.get(batch)]
    if unsure:
        text += f"; no conclusion at batch {', '.join(unsure)}, the machine was too noisy"
    if dense.evaluation is None:
        text += "; accuracy was not measured (give data)"
    return text + "."


def _loses(row: Row, dense: Row) -> bool:
    if row.evaluation is None or dense.evaluation is None:
        return False
    return paired_difference(row.evaluation.correct, dense.evaluation.correct).interval[1] < 0


def _prepared(
    row: Row, way: AbstractWay, given: Example, sparse_bytes: int, batch: int
) -> tuple[Row, nn.Module | None]:
    """The module of a way, run once, or the reason why there is none."""
    try:
        module = way.module(given)
        positional, named = given.arguments
        with torch.inference_mode():
            module(*positional, **named)
        size = row.bytes if row.bytes is not None else way.file_bytes(sparse_bytes)
    except Exception as error:  # whatever a compiler or an exporter raises is a reason, not a crash
        return replace(row, reasons={**row.reasons, batch: why_not(error)}), None
    return replace(row, bytes=size), module


def _timed(
    modules: Mapping[str, nn.Module], given: Example, rounds: int, seconds: float, clock: Clock
) -> dict[str, Timing]:
    """Rows in turn; the dense one twice a round, for control."""
    functions = {name: _runs(module, given) for name, module in modules.items()}
    functions[AGAIN] = functions[Dense.name]
    with torch.inference_mode():
        return interleave(functions, rounds=rounds, budget=seconds, least=5, clock=clock)


def _runs(module: nn.Module, given: Example) -> Callable[[], object]:
    positional, named = given.arguments
    return lambda: module(*positional, **named)


def _compared(
    rows: Mapping[str, Row],
    made: Sequence[AbstractWay],
    modules: Mapping[str, nn.Module],
    given: Example,
    model: nn.Module,
) -> dict[str, Row]:
    """Differences of outputs, and of zeros."""
    with torch.inference_mode():
        reference = tensors_of(_runs(modules[Dense.name], given)())
        found = dict(rows)
        state = model.state_dict()
        for way in made:
            if way.name not in modules:
                continue
            outputs = tensors_of(_runs(modules[way.name], given)())[: len(reference)]
            weights = {name: w for name, w in way.weights().items() if name in state}
            lost = (
                sum(int(((state[name] == 0) & (w != 0)).sum()) for name, w in weights.items())
                if weights
                else None
            )
            gap = disagreement([x.float() for x in outputs], reference)
            found[way.name] = replace(found[way.name], difference=gap, lost_zeros=lost)
    return found


def _evaluated(
    rows: Mapping[str, Row],
    modules: Mapping[str, nn.Module],
    split: AbstractSplit,
    batch: int,
    tell: Callable[[str], object],
) -> dict[str, Row]:
    """Accuracy of each way, and its likeness to dense fp32."""
    reference: Tensor | None = None
    found = dict(rows)
    for name, module in modules.items():
        tell(f"accuracy, {name}")
        logits = collect_logits(module, split, batch_size=batch)
        reference = logits if reference is None else reference
        likeness = compare_logits(logits, reference)
        found[name] = replace(found[name], evaluation=score(logits, split.labels), similarity=likeness)
    return found


def _memory(way: AbstractWay, module: nn.Module, given: Example) -> int | None:
    """Bytes of the weights, and by which one call raises the peak of the process over what is resident before.

    Linux only.
    """
    try:
        way.settle(module, given)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        with torch.inference_mode():
            _runs(module, given)()
        return way.held(module) + max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "latency": {
            str(batch): {"min": t.minimum, "median": t.median, "spread": t.spread, "n": len(t.samples)}
            for batch, t in row.timings.items()
        },
        "not_run": {str(batch): reason for batch, reason in row.reasons.items()},
        "bytes": row.bytes,
        "memory": row.memory,
        "difference": row.difference,
        "accuracy": None if row.evaluation is None else row.evaluation.accuracy,
        "interval": None if row.evaluation is None else list(row.evaluation.interval),
        "agreement": None if row.similarity is None else row.similarity.agreement,
        "lost_zeros": row.lost_zeros,
        "note": row.note,
    }


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
