"""How fast and how small `inspect` is, against the published procedure, one norm, and reading the files."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._measure import Goal, Part, interleaved, ratio, spread, table
from espalier.amount import Utopia
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint
from espalier.curve import exact_curve
from espalier.histogram import Histogram
from espalier.inspection import inspect
from espalier.profiling import profile
from espalier.selection import select

RESNET18 = 11_678_912
"""Entries of the 21 weight tensors of a ResNet-18 with 1000 classes."""


def resnet18_sized(wide: int = 64) -> nn.Module:
    """Convolutions of the sizes of a ResNet-18, as one list: the published procedure only walks over modules."""
    layers: list[nn.Module] = [nn.Conv2d(3, wide, 7, bias=False)]
    layers += [nn.Conv2d(wide, wide, 3, bias=False) for _ in range(4)]
    for width in (2 * wide, 4 * wide, 8 * wide):
        layers += [nn.Conv2d(width // 2, width, 3, bias=False), nn.Conv2d(width // 2, width, 1, bias=False)]
        layers += [nn.Conv2d(width, width, 3, bias=False) for _ in range(3)]
    torch.manual_seed(0)
    return nn.ModuleList([*layers, nn.Linear(8 * wide, 1000, bias=False)])


def curve(quick: bool = False) -> Part:
    """The whole curve of a ResNet-18-sized checkpoint against the published 101 prunings.

    Of those only one is run a round, at sparsities in turn, and scaled up.
    """
    from tests.reference.good_prune import cosine, pruned_vector

    model = resnet18_sized(4 if quick else 64)
    checkpoint = open_checkpoint(model)
    selection = select(checkpoint)
    assert quick or selection.entries == RESNET18, selection.entries
    flat = torch.cat([checkpoint[name].flatten() for name in selection.names])
    rounds = 2 if quick else 5
    parent, _ = pruned_vector(model, 0.0)
    sparsities = iter(np.linspace(0.05, 0.95, rounds + 1))

    def one_pruning() -> None:
        cosine(parent, pruned_vector(model, float(next(sparsities)))[0])

    def streaming_curve() -> None:
        histogram = Histogram()
        histogram.add(flat)
        histogram.curve()

    published = "one of the published 101 prunings"
    times = interleaved(
        {
            published: one_pruning,
            "streaming curve": streaming_curve,
            "exact curve, every k": lambda: exact_curve(flat),
            "exact profile, network and every tensor": lambda: profile(checkpoint, selection),
            "inspect, everything": lambda: inspect(checkpoint, selection),
        },
        rounds,
    )
    whole = [101 * seconds for seconds in times.pop(published)]
    faster = {name: ratio(whole, ours) for name, ours in times.items()}
    return Part(
        [
            Goal(f"times faster than the published procedure: {name}", 1000, *faster[name], at_most=False)
            for name in ("streaming curve", "exact curve, every k")
        ],
        {
            "entries": selection.entries,
            "seconds": {"published 101 prunings": spread(whole), **table(times)},
            "times faster": {name: found[0] for name, found in faster.items()},
        },
    )


def histogram(quick: bool = False) -> Part:
    """The streaming histogram against one float64 norm over the same float32 numbers."""
    entries = 200_000 if quick else RESNET18
    values = torch.randn(entries, generator=torch.Generator().manual_seed(0)) * 0.05
    array = values.numpy()
    bins = Histogram()
    times = interleaved(
        {
            "histogram": lambda: bins.add(values),
            "numpy norm": lambda: np.sqrt(np.square(array, dtype=np.float64).sum()),
            "torch norm": lambda: torch.linalg.vector_norm(values, dtype=torch.float64),
        },
        3 if quick else 20,
    )
    return Part(
        [
            Goal(f"histogram over one float64 {key}", 4, *ratio(times["histogram"], times[key]))
            for key in ("numpy norm", "torch norm")
        ],
        {"entries": entries, "seconds": table(times)},
    )


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


def gaussian(quick: bool = False) -> Part:
    """2e8 float32 Gaussian numbers, where float32 sums go wrong: utopia 0.800784, cosine 0.805314."""
    checkpoint = Drawn(1_000_000 if quick else 200_000_000)
    start = time.perf_counter()
    found = profile(checkpoint, select(checkpoint, "all"), streaming=True)
    seconds = time.perf_counter() - start
    amount = Utopia().choose(found)
    gaps = {
        "sparsity": (amount.sparsity, abs(amount.sparsity - 0.800784)),
        "cosine": (amount.cosine, abs(amount.cosine - 0.805314)),
    }
    return Part(
        [
            Goal(f"Gaussian: utopia {what} off by", 2e-4, gap, gap, gap, at_most=True)
            for what, (_, gap) in gaps.items()
        ],
        {
            "entries": found.entries,
            **{what: value for what, (value, _) in gaps.items()},
            "error bound of the cosine": found.curve.error,
            "kurtosis": found.kurtosis,
            "seconds, drawing included": seconds,
            "peak MiB, with what ran before": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    )


_CHILD = """
import json, sys, time
import torch
torch.set_num_threads(1)
from espalier.checkpoint import open_checkpoint
from espalier.inspection import inspect
from espalier.profiling import _PIECE
from espalier.selection import select
start, used = time.perf_counter(), time.process_time()
checkpoint = open_checkpoint(sys.argv[1])
if sys.argv[2] == "read":
    for name in checkpoint:
        for piece in checkpoint.chunks(name, _PIECE):
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


def _child(folder: Path, task: str, cold: bool) -> dict[str, float]:
    if cold:
        evict(folder)
    command = [sys.executable, "-c", _CHILD, str(folder), task]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(out.stdout)
    return found


def _read_against_inspect(folder: Path, states: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """State of the page cache -> runs of both tasks, in turn, each in a process of its own."""
    return {
        state: [
            {task: _child(folder, task, state == "cold") for task in ("read", "inspect")}
            for _ in range(rounds)
        ]
        for state in states
    }


def sharded(quick: bool = False) -> Part:
    """A sharded checkpoint inspected in bounded memory, against only reading it.

    float32 in full, from the disk (the goal) and from the page cache; bfloat16 at a quarter of the size.
    """
    sizes = {torch.float32: 2**-7} if quick else {torch.float32: 4.0, torch.bfloat16: 1.0}
    states = ("cached",) if quick else ("cold", "cached")
    goals, measured = [], {}
    for dtype, gib in sizes.items():
        name = str(dtype).removeprefix("torch.")
        with sharded_checkpoint(dtype, gib) as folder:
            print(f"sharded: {gib:g} GiB of {name} written, now read", file=sys.stderr, flush=True)
            runs = _read_against_inspect(folder, states, 1 if quick else 2)
        for state, rounds in runs.items():
            read, whole = ([r[task]["seconds"] for r in rounds] for task in ("read", "inspect"))
            what = f"speed of reading kept, {gib:.3g} GiB {name}, {state}"
            goals.append(Goal(what, 0.5, *ratio(read, whole), at_most=False))
        peaks = [r["inspect"]["peak_mib"] for rounds in runs.values() for r in rounds]
        goals.append(Goal(f"peak MiB, {gib:.3g} GiB {name}", 1024, max(peaks), min(peaks), max(peaks)))
        measured[name] = {"gib": gib, **runs}
    return Part(goals, measured)
