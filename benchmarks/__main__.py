"""Run the benchmarks and write down what they found, each goal beside what was measured.

ESPALIER_DATA=... python -m benchmarks   # everything: 10 minutes, then most of an hour for the last; 5 GB of disk
python -m benchmarks --only sharded      # one part; the others in the file stay
python -m benchmarks --quick             # small sizes, in seconds: shows that it works, says nothing of speed
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from results._common import environment, write_json

from benchmarks._measure import Goal, Part
from benchmarks.comparing import comparing
from benchmarks.curvature import curvature, eigenpairs, eigenpairs_10000
from benchmarks.hessian_ways import hessian_ways
from benchmarks.inspect_speed import curve, gaussian, histogram, sharded
from benchmarks.optim_step import optimizer_step
from benchmarks.sparse_file import sparse_file
from benchmarks.sparsegpt_layer import sparsegpt
from benchmarks.training_step import training_step

OUT = Path(__file__).parents[1] / "results" / "benchmarks.json"

PARTS: dict[str, Callable[[bool], Part]] = {
    "curve": curve,
    "histogram": histogram,
    "gaussian": gaussian,
    "sparse_file": sparse_file,
    "optimizer_step": optimizer_step,
    "curvature": curvature,
    "hessian_ways": hessian_ways,
    "training_step": training_step,
    "sharded": sharded,
    "sparsegpt": sparsegpt,
    "comparing": comparing,
    "eigenpairs": eigenpairs,  # last: they ask for data
    "eigenpairs_10000": eigenpairs_10000,
}


def run(name: str, quick: bool) -> dict[str, Any]:
    """One part, with the machine it ran on and how busy that was."""
    load = os.getloadavg()[0]
    part = PARTS[name](quick)
    about = PARTS[name].__doc__ or name
    return {
        "about": about.partition("\n")[0],
        "goals": [goal.to_dict() for goal in part.goals],
        "measured": part.measured,
        "environment": environment()
        | {"cores": os.cpu_count(), "load before": load, "load after": os.getloadavg()[0]},
        "quick": quick,
    }


def lines(goals: Iterable[Goal]) -> list[str]:
    """The goals as rows of a table."""
    rows = [f"{'':66}{'goal':>10}{'measured':>10}{'spread':>24}"]
    for goal in goals:
        limit = f"{'<=' if goal.at_most else '>='} {goal.limit:.4g}"
        between = f"{goal.low:.4g} to {goal.high:.4g}"
        missed = "" if goal.met else "  missed"
        rows.append(f"{goal.what:66}{limit:>10}{goal.measured:>10.4g}{between:>24}{missed}")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, print the table, write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=list(PARTS), action="append", help="run this part (may be repeated)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; writes a file only with --output")
    parser.add_argument(
        "--output", type=Path, help="JSON file to write or to renew (results/benchmarks.json)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = options.output or (None if options.quick else OUT)
    parts = json.loads(out.read_text())["parts"] if out and out.exists() else {}
    for name in options.only or PARTS:
        parts[name] = run(name, options.quick)
        goals = [
            Goal(**{key: value for key, value in goal.items() if key != "met"})
            for goal in parts[name]["goals"]
        ]
        print("\n".join([f"{name}: {parts[name]['about']}", *lines(goals), ""]), flush=True)
        if out:  # after each part: one can be run anew without the others
            write_json(out, {"command": "python -m benchmarks", "parts": parts})


if __name__ == "__main__":
    main()
