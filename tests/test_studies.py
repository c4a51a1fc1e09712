"""The studies of the results, each method of them once on a network and data that take seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Run

STUDIES = Path(__file__).parents[1] / "results" / "studies"


def small(study: dict[str, Any]) -> dict[str, Any]:
    """The same methods, one seed and one sparsity of 100 digits."""
    methods = [{k: v for k, v in method.items() if k != "only"} for method in study["methods"]]
    once = {method.get("label", method["name"]): method for method in methods}
    return {
        "title": study["title"],
        "networks": [{"model": "digits_cnn", "data": {"name": "digits", "limit": 100}}],
        "training": {**study["training"], "epochs": 2, "batch_size": 32, "warmup": 0, "precision": "fp32"},
        "methods": list(once.values()),
        "sparsities": [0.75],  # so many rounds of a lottery as there are steps
    }


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_of_a_study_runs(path: Path, run: Run, tmp_path: Path) -> None:
    asked = small(yaml.safe_load(path.read_text()))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(asked))
    code, out, err = run("compare", "study.yaml", "-o", "out", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert not [row["failures"] for row in rows if row["failures"]]
    assert len(rows) == len(asked["methods"])
    dense = {"name": "dense"} in asked["methods"]
    assert {row["sparsity"] for row in rows} == ({None, 0.75} if dense else {0.75})
