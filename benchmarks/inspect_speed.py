"""How fast and how small is `inspect`: ratios measured in one run, threads pinned, minimum and spread.

python -m benchmarks.inspect_speed                    # everything: about 10 minutes and 5 GB of disk
python -m benchmarks.inspect_speed --only curve       # one part: curve, histogram, gaussian, sharded
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from espalier.amount import Utopia
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint
from espalier.curve import exact_curve
from espalier.histogram import Histogram
from espalier.inspection import inspect
from espalier.profiling import profile
from espalier.selection import select

RESNET18 = 11_678_912
"""Entries of the 21 weight tensors of a ResNet-18 with 1000 classes."""


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Least and largest wall time, and least processor time (which others on the machine disturb less)."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {"seconds": min(wall), "slowest": max(wall), "cpu_seconds": min(cpu), "repeats": repeats}


def resnet18_sized() -> nn.Module:
    """Convolutions of the sizes of a ResNet-18, as one list: the published procedure only walks over modules."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False)]
    layers += [nn.Conv2d(64, 64, 3, bias=False) for _ in range(4)]
    for width in (128, 256, 512):
        layers += [nn.Conv2d(width // 2, width, 3, bias=False), nn.Conv2d(width // 2, width, 1, bias=False)]
        layers += [nn.Conv2d(width, width, 3, bias=False) for _ in range(3)]
    torch.manual_seed(0)
    return nn.ModuleList([*layers, nn.Linear(512, 1000, bias=False)])


def curve(points: int = 5) -> dict[str, Any]:
    """The whole curve against the published 101 prunings, of which `points` are run and scaled up."""
    from tests.reference.good_prune import cosine, pruned_vector

    model = resnet18_sized()
    checkpoint = open_checkpoint(model)
    selection = select(checkpoint)
    assert selection.entries == RESNET18, selection.entries
    flat = torch.cat([checkpoint[name].flatten() for name in selection.names])

    def streaming_curve() -> None:
        histogram = Histogram()
        histogram.add(flat)
        histogram.curve()

    parent, _ = pruned_vector(model, 0.0)
    sparsities = iter(np.linspace(0.05, 0.95, points))
    published = timed(lambda: cosine(parent, pruned_vector(model, float(next(sparsities)))[0]), points)
    ours = {
        "exact curve, every k": timed(lambda: exact_curve(flat), 7),
        "streaming curve": timed(streaming_curve, 7),
        "exact profile, network and every tensor": timed(lambda: profile(checkpoint, selection), 3),
        "inspect, everything": timed(lambda: inspect(checkpoint, selection), 3),
    }
    whole = {key: 101 * published[key] for key in ("seconds", "cpu_seconds")}
    return {
        "entries": RESNET18,
        "published 101 prunings": whole | {"points measured": points},
        **ours,
        "times faster, wall": {name: whole["seconds"] / found["seconds"] for name, found in ours.items()},
        "times faster, cpu": {
            name: whole["cpu_seconds"] / found["cpu_seconds"] for name, found in ours.items()
        },
    }


def histogram() -> dict[str, Any]:
    """The streaming histogram against one float64 norm over the same float32 numbers; goal: within 4 times."""
    values = torch.randn(RESNET18, generator=torch.Generator().manual_seed(0)) * 0.05
    array = values.numpy()
    bins = Histogram()
    found = timed(lambda: bins.add(values), 15)
    norms = {
        "numpy": timed(lambda: np.sqrt(np.square(array, dtype=np.float64).sum()), 15),
        "torch": timed(lambda: torch.linalg.vector_norm(values, dtype=torch.float64), 15),
    }
    ratios = {f"{key} norm": found["cpu_seconds"] / norm["cpu_seconds"] for key, norm in norms.items()}
    return {"histogram": found, "float64 norm": norms, "histogram over norm, cpu": ratios}


class Drawn(AbstractCheckpoint):
    """A checkpoint of Gaussian numbers that are drawn as they are read."""

    def __init__(self, entries: int) -> None:
        template = open_checkpoint({"w": torch.empty(1, 1).expand(entries // 1000, 1000)})
        self.path, self.layout, self.metadata, self.aliases = None, None, {}, {}
        self.infos = template.infos

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(list(self.chunks(name))).reshape(self.infos[name].shape)

    def chunks(self, name: str, entries: int = 1 << 20) -> Iterator[Tensor]:
        """Pieces of the one sequence, the same at every call."""
        generator, left = torch.Generator().manual_seed(0), self.infos[name].entries
        while left:
            yield torch.randn(min(entries, left), generator=generator)
            left -= min(entries, left)


def gaussian(entries: int = 200_000_000) -> dict[str, Any]:
    """2e8 float32 Gaussian numbers, where float32 sums go wrong: utopia 0.800784, cosine 0.805314."""
    checkpoint = Drawn(entries)
    start = time.perf_counter()
    found = profile(checkpoint, select(checkpoint, "all"), streaming=True)
    seconds = time.perf_counter() - start
    amount = Utopia().choose(found)
    assert abs(amount.sparsity - 0.800784) <= 2e-4 and abs(amount.cosine - 0.805314) <= 2e-4, amount
    return {
        "entries": entries,
        "sparsity": amount.sparsity,
        "cosine": amount.cosine,
        "error bound of the cosine": found.curve.error,
        "kurtosis": found.kurtosis,
        "seconds, drawing included": seconds,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


_CHILD = """
import json, sys, time
import torch
torch.set_num_threads(1)
from espalier.checkpoint import open_checkpoint
from espalier.inspection import inspect
from espalier.selection import select
start, used = time.perf_counter(), time.process_time()
checkpoint = open_checkpoint(sys.argv[1])
if sys.argv[2] == "read":
    for name in checkpoint:
        for piece in checkpoint.chunks(name):
            pass
else:
    inspect(checkpoint, select(checkpoint), streaming=True).to_dict()
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time() - used,
    # Not ru_maxrss: that starts from the resident size of the process that started this one.
    "peak_mib": next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1024,
}))
"""


@contextmanager
def sharded_checkpoint(dtype: torch.dtype, gib: float, shards: int = 4) -> Iterator[Path]:
    """A folder with shards of Gaussian matrices and their index, removed afterwards."""
    from safetensors.torch import save_file

    rows = int(gib * 2**30 / shards / 8 / 4096 / dtype.itemsize)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
        where: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            names = [f"layers.{8 * shard + i}.weight" for i in range(8)]
            save_file(
                {name: (torch.randn(rows, 4096, generator=generator) * 0.02).to(dtype) for name in names},
                Path(folder) / file,
            )
            where |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": where}
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
        yield Path(folder)


def evict(folder: Path) -> None:
    """Drop the files from the page cache, so that the next reading is from the disk."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sharded(gib: float = 4.0) -> dict[str, Any]:
    """A sharded checkpoint inspected in bounded memory, against only reading it; goal: at least half the speed."""
    result: dict[str, Any] = {"gib": gib}
    for dtype in (torch.float32, torch.bfloat16):
        with sharded_checkpoint(dtype, gib) as folder:
            runs: dict[str, Any] = {}
            for state in ("cold", "cached"):
                for task in ("read", "inspect"):
                    if state == "cold":
                        evict(folder)
                    command = [sys.executable, "-c", _CHILD, str(folder), task]
                    out = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs[f"{task}, {state}"] = json.loads(out.stdout)
            for state in ("cold", "cached"):
                read, whole = runs[f"read, {state}"], runs[f"inspect, {state}"]
                runs[f"speed of reading kept, {state}"] = read["seconds"] / whole["seconds"]
            result[str(dtype).removeprefix("torch.")] = runs
    return result


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "curve": curve,
    "histogram": histogram,
    "gaussian": gaussian,
    "sharded": sharded,
}


def main(only: str | None = None) -> dict[str, Any]:
    """Run one part or all, print and return the numbers."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"threads": 1, "cores": os.cpu_count(), "load before": load}
    for name, part in PARTS.items():
        if only in (None, name):
            results[name] = part()
            print(json.dumps({name: results[name]}, indent=2), flush=True)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(PARTS))
    main(parser.parse_args().only)
