"""What every result shares: artefacts that are made once, and a record of how."""

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import espalier
from espalier.checkpoint.write import atomic

HERE = Path(__file__).parent


def environment() -> dict[str, Any]:
    """Versions and hardware, without anything that names the machine."""
    return {
        "espalier": espalier.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_json(path: Path, payload: Any) -> None:
    """Write or replace a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(payload, indent=1) + "\n")


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON artefact, made now if it is not there: kill the script anywhere and start it again."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), 95 % t-interval and n of independent runs."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return {"mean": mean, "n": n}
    from scipy.stats import t

    sd = statistics.stdev(values)
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "n": n}


def command() -> str:
    """The command line that runs this script, with the data folder as a variable."""
    module = Path(sys.argv[0]).stem
    words = ["python", "-m", f"results.{module}", *sys.argv[1:]]
    data = os.environ.get("ESPALIER_DATA")
    return " ".join(word.replace(data, "$ESPALIER_DATA") if data else word for word in words)
