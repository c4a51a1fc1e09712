"""How small a sparse file is, and what packing and unpacking cost beside a dense file."""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._measure import Goal, Part, Times, interleaved, ratio, table
from espalier.checkpoint import open_checkpoint, rewrite, save_checkpoint
from espalier.checkpoint.sparse import load_sparse

ZEROS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


def entropy(share: float) -> float:
    """Bits an entry of a mask of independent zeros needs at least."""
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def network(share: float, rows: int) -> dict[str, Tensor]:
    """Four Gaussian matrices of float32, each with so many zeros at random places."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for i in range(4):
        weight = torch.randn(rows, 1024, generator=generator) * 0.02
        drop = torch.randperm(weight.numel(), generator=generator)[: round(share * weight.numel())]
        weight.view(-1)[drop] = 0.0
        found[f"layers.{i}.weight"] = weight
    return found


def measure(tensors: dict[str, Tensor], folder: Path, rounds: int) -> tuple[Times, dict[str, int]]:
    """Times of writing and reading both files, and their bytes."""
    source = open_checkpoint(tensors)
    dense, small = folder / "dense.safetensors", folder / "small.safetensors"
    times = interleaved(
        {
            "write dense": lambda: save_checkpoint(dense, tensors),
            "encode, write": lambda: rewrite(source, small, lambda _, tensor: tensor, sparse=True),
            "read dense": lambda: open_checkpoint(dense).state_dict(),
            "read, decode": lambda: load_sparse(small),
        },
        rounds,
    )
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_sparse(small).items())
    return times, {"dense": dense.stat().st_size, "sparse": small.stat().st_size}


def sparse_file(quick: bool = False) -> Part:
    """Size against values + mask entropy, and times against writing and reading the dense file.

    Reading is from the page cache; writing ends with the file on the disk, for both.
    """
    goals, measured = [], {}
    for share in ZEROS:
        tensors = network(share, 64 if quick else 2048)
        with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
            times, sizes = measure(tensors, Path(folder), 2 if quick else 5)
        entries = sum(tensor.numel() for tensor in tensors.values())
        least = 4 * entries * (1 - share) + entries * entropy(share) / 8
        over = sizes["sparse"] / least
        label = f"{100 * share:g} % zeros"
        goals.append(Goal(f"bytes of the sparse file over values + entropy, {label}", 1.05, over, over, over))
        for ours, base in (("encode, write", "write dense"), ("read, decode", "read dense")):
            goals.append(Goal(f"{ours} over {base}, {label}", 3.0, *ratio(times[ours], times[base])))
        measured[label] = {"entries": entries, "bytes": sizes, "least bytes": least, "seconds": table(times)}
    return Part(goals, measured)
