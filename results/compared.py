"""The outcomes of a study so far, reduced to one file: what the pages of the comparison are written from.

    python -m results.compared lenet5 [resnet20 ...]

Trains nothing and reads no data. Counted are the runs whose specification is the study's today; everything that is said
of them comes from `espalier.compare`. A run that has not been done is in the file with n = 0.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from espalier.cli.study_words import gather
from espalier.compare import Cell, Outcome, Row, compare, estimate
from espalier.compare.running import RESULT
from espalier.compare.summary import Key
from espalier.recipe import YamlFile
from espalier.study import StudyRecipe
from results._common import HERE, environment, write_json


def outcomes(name: str, cells: Iterable[Cell]) -> list[Outcome]:
    """What lies in the folder of a study for these cells."""
    paths = [HERE / "compared" / name / cell.digest / RESULT for cell in cells]
    return [Outcome.load(path) for path in paths if path.exists()]


def key(spec: dict[str, Any]) -> Key:
    return Key(spec["network"], spec["teacher"], spec["label"], spec["sparsity"])


def reduced(cells: Sequence[Cell], found: Sequence[Outcome]) -> dict[str, Any]:
    """Rows in the order of the study, those without a run included, and the curves."""
    result = compare(found, missing=len(cells) - len(found))
    planned: dict[Key, int] = {}
    for cell in cells:
        planned[key(cell.spec)] = planned.get(key(cell.spec), 0) + 1
    rows = {row.key: row for row in result.rows}
    runs: dict[Key, list[Outcome]] = {}
    for outcome in found:
        runs.setdefault(key(outcome.spec), []).append(outcome)
    return {
        "runs": len(found),
        "missing": result.missing,
        "rows": [row_of(k, n, rows.get(k), runs.get(k, [])) for k, n in planned.items()],
        "curves": [asdict(curve) for curve in result.curves],
    }


def row_of(k: Key, planned: int, row: Row | None, runs: Sequence[Outcome]) -> dict[str, Any]:
    """A row of the comparison with what the comparison does not keep: seconds, and the epochs of the first run."""
    found: dict[str, Any] = {**k._asdict(), "planned": planned, "n": 0}
    if row is None:
        return found
    values = asdict(row)
    done = [run for run in runs if run.failure is None]
    accuracy = values.pop("accuracy")
    if accuracy is not None:
        found |= {**accuracy, "seconds": estimate([run.seconds for run in done]).mean}
        uncut = estimate([run.accuracy for run in done])  # the row's interval ends at 0 and 1
        found["half"] = None if uncut.interval is None else uncut.interval[1] - uncut.mean
        known = [run.validation for run in done if run.validation is not None]
        found["validation"] = estimate(known).mean if known else None
        found["by_seed"] = {str(run.seed): run.accuracy for run in done}
        epochs = done[0].epochs
        found["by_epoch"] = {
            "sparsity": [e["sparsity"] for e in epochs],
            "churn": [(e["turnover"] or {}).get("churn") for e in epochs],
            "train_loss": [e["train_loss"] for e in epochs],
        }
    return {**values, **found}


def main() -> None:
    """Reduce the studies asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="+", help="name of a file in results/studies, without .yaml")
    for name in parser.parse_args().study:
        file = YamlFile(HERE / "studies" / f"{name}.yaml", StudyRecipe)
        study, _ = gather(file, None)
        cells = list(study.cells())
        found = outcomes(name, cells)
        asked = file.value.model_dump(mode="json", include={"title", "sparsities", "seeds", "published"})
        payload = {
            "command": f"espalier compare results/studies/{name}.yaml -o results/compared/{name}",
            "environment": environment(),
            "training": study.training.spec(),
            **asked,
            **reduced(cells, found),
        }
        write_json(HERE / f"compared-{name}.json", payload)
        there = {path.parent.name for path in (HERE / "compared" / name).glob(f"*/{RESULT}")}
        others = len(there - {cell.digest for cell in cells})
        print(f"{name}: {len(found)} of {len(cells)} runs; {others} of other specifications lie beside them")


if __name__ == "__main__":
    main()
