"""Outcomes -> rows with intervals, and which method may be called best."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from espalier._errors import EspalierError
from espalier.compare.cell import EQUAL
from espalier.compare.running import Outcome
from espalier.compare.statistics import (
    Crossing,
    Difference,
    Estimate,
    area,
    crossing,
    difference,
    estimate,
)
from espalier.train.state import differences, digest_of


class Key(NamedTuple):
    """What the runs of a row have in common; all but the seed."""

    network: str
    teacher: bool
    label: str
    sparsity: float | None


Groups = dict[Key, dict[int, Outcome]]
"""The runs of each row by their seeds."""


@dataclass(frozen=True)
class Row:
    """A method at a sparsity, over seeds.

    Args:
        network: name.
        teacher: whether the dense parent taught.
        label: of the method.
        sparsity: asked for; None for the dense control.
        accuracy: on the test split; None where every run failed.
        reached: mean sparsity recounted.
        bytes: mean size of the sparse file.
        flops: mean of what the training computed, dense.
        scoring: mean of what scores computed on data beside the training; None where no run counted it.
        sparse_flops: mean of what it would compute without products with zero.
        failures: reasons of the failed runs.
        emptied: tensors that a run has pruned completely (layer collapse), "seed 0: linear.weight".
        best: the highest mean at this sparsity of the methods without failed runs, of those with two seeds or more
            where there are any.
        tied: the best, or not surely worse than it; None where that cannot be said: with failed runs, whose accuracy
            is in no mean, or with fewer than two seeds in common with the best.
        behind: the best minus this one, where both have seeds in common; None for the best and the dense control.
    """

    network: str
    teacher: bool
    label: str
    sparsity: float | None
    accuracy: Estimate | None
    reached: float | None
    bytes: float | None
    flops: float | None
    scoring: float | None
    sparse_flops: float | None
    failures: tuple[str, ...]
    emptied: tuple[str, ...] = ()
    best: bool = False
    tied: bool | None = False
    behind: Difference | None = None

    @property
    def key(self) -> Key:
        """Which runs the row is of."""
        return Key(self.network, self.teacher, self.label, self.sparsity)


@dataclass(frozen=True)
class Curve:
    """A method over all sparsities.

    Args:
        network: name.
        teacher: whether the dense parent taught.
        label: of the method.
        sparsities: at which it has run.
        area: under mean accuracy over them, divided by the width; None for one sparsity.
        one_point: where the mean is one point below the dense control; None without a control.
    """

    network: str
    teacher: bool
    label: str
    sparsities: tuple[float, ...]
    area: float | None
    one_point: Crossing | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is known of a study so far.

    Args:
        rows: dense control first, then by sparsity, the best mean first, failures last.
        curves: one a network, teacher and method, those over most sparsities first, of these the largest area.
        missing: cells that have not run.
    """

    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    missing: int


def compare(outcomes: Iterable[Outcome], missing: int = 0) -> Comparison:
    """Summarize the outcomes of a study, or of several together.

    Failed runs are in no mean and are listed. A run with the specification of another is counted once.

    Raises:
        EspalierError: two runs with one name differ in more than their seed, or two of one network in what must be
            equal for all methods.
    """
    groups: Groups = {}
    alike: dict[tuple[str, bool], Outcome] = {}
    for outcome in outcomes:
        spec = outcome.spec
        key = Key(spec["network"], spec["teacher"], spec["label"], spec["sparsity"])
        runs = groups.setdefault(key, {})
        known = next(iter(runs.values()), outcome)  # which all others are like
        if other := differences(_seedless(known.spec), _seedless(spec)):
            raise EspalierError(
                f"two runs are called {key.network}, {key.label} at {key.sparsity}, but differ ({'; '.join(other)}): "
                f"give one of their studies another label or name, or remove {_where(known)} or {_where(outcome)}"
            )
        first = alike.setdefault((key.network, key.teacher), outcome)
        if other := differences(_conditions(first.spec), _conditions(spec)):
            raise EspalierError(
                f"{_called(first)} and {_called(outcome)} were run at unequal conditions ({'; '.join(other)}), so they "
                "cannot be compared: give the network another name in one of their studies, or leave one study out"
            )
        runs.setdefault(outcome.seed, outcome)
    rows = [_row(key, list(runs.values())) for key, runs in groups.items()]
    rows = [_judged(row, rows, groups) for row in rows]
    rows.sort(key=lambda r: (r.network, r.teacher, r.sparsity or 0.0, -_mean(r), not r.best, r.label))
    return Comparison(tuple(rows), tuple(_curves(rows)), missing)


def _seedless(spec: dict[str, Any]) -> dict[str, Any]:
    """What all seeds of a method share, as it is read back from a file."""
    shared = {**spec, "training": {k: v for k, v in spec["training"].items() if k != "seed"}}
    return dict(json.loads(json.dumps(shared)))


def _conditions(spec: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a network share, whatever the method."""
    training = {name: spec["training"].get(name, "default") for name in EQUAL if name != "seed"}
    found = {"source": spec.get("source"), "scope": spec.get("scope"), **training}
    return dict(json.loads(json.dumps(found)))


def _where(outcome: Outcome) -> str:
    """The folder of a run; its name, where it was not read from one."""
    return str(outcome.place or digest_of(outcome.spec))


def _called(outcome: Outcome) -> str:
    spec = outcome.spec
    asked = "dense" if spec["sparsity"] is None else spec["sparsity"]
    return f"{spec['network']}, {spec['label']}, {asked} ({_where(outcome)})"


def _mean(row: Row) -> float:
    return -1.0 if row.accuracy is None else row.accuracy.mean


def _row(key: Key, runs: Sequence[Outcome]) -> Row:
    done = [run for run in runs if run.failure is None]
    failures = tuple(f"seed {run.seed}: {run.failure}" for run in runs if run.failure is not None)
    if not done:
        return Row(*key, None, None, None, None, None, None, failures)

    def mean(values: Iterable[Any]) -> float:
        return estimate([float(value) for value in values]).mean

    costs = [run.cost for run in done if run.cost is not None]
    return Row(
        *key,
        accuracy=_accuracy([run.accuracy for run in done]),
        reached=mean(run.sparsity for run in done),
        bytes=mean(run.bytes for run in done),
        flops=mean(c.dense for c in costs) if costs else None,
        scoring=mean(known) if (known := [c.scoring for c in costs if c.scoring is not None]) else None,
        sparse_flops=mean(c.sparse + c.teacher for c in costs) if costs else None,
        failures=failures,
        emptied=tuple(f"seed {run.seed}: {', '.join(run.emptied)}" for run in done if run.emptied),
    )


def _accuracy(values: Sequence[float]) -> Estimate:
    """An estimate whose interval stays inside [0, 1]."""
    found = estimate(values)
    if found.interval is None:
        return found
    return replace(found, interval=(max(0.0, found.interval[0]), min(1.0, found.interval[1])))


def _judged(row: Row, rows: Sequence[Row], groups: Groups) -> Row:
    """The row with its place among the pruned methods at its sparsity."""
    if row.sparsity is None or row.accuracy is None:
        return row
    rivals = [
        r
        for r in rows
        if (r.network, r.teacher, r.sparsity) == (row.network, row.teacher, row.sparsity)
        and r.accuracy
        and not r.failures  # seeds that fail are often the poor ones: the mean of the others is no fair one
    ]
    if not rivals:
        return replace(row, tied=None)
    best = max(rivals, key=lambda r: (r.accuracy is not None and r.accuracy.n > 1, _mean(r)))
    if best is row:
        return replace(row, best=True, tied=True)
    ours, theirs = groups[row.key], groups[best.key]
    seeds = [s for s in ours if s in theirs and ours[s].failure is None and theirs[s].failure is None]
    if not seeds:
        return replace(row, tied=None)
    behind = difference([theirs[s].correct for s in seeds], [ours[s].correct for s in seeds])
    unsaid = behind.seeds is None or row.failures
    return replace(row, tied=None if unsaid else not behind.better, behind=behind)


def _curves(rows: Sequence[Row]) -> Iterable[Curve]:
    for network, teacher in dict.fromkeys((r.network, r.teacher) for r in rows):
        here = [r for r in rows if (r.network, r.teacher) == (network, teacher) and r.accuracy is not None]
        dense = next((_mean(r) for r in here if r.sparsity is None), None)
        points: dict[str, list[tuple[float, float]]] = {}
        for row in here:
            if row.sparsity is not None:
                points.setdefault(row.label, []).append((row.sparsity, _mean(row)))
        curves = [
            Curve(
                network,
                teacher,
                label,
                tuple(sparsity for sparsity, _ in at),
                area(at),
                None if dense is None else crossing(at, dense, 0.01),
            )
            for label, at in points.items()
        ]
        yield from sorted(curves, key=lambda curve: (len(curve.sparsities), curve.area or 0.0), reverse=True)
