"""How much faster pruned networks are on a CPU: ours beside dense, bf16 and int8, by batch and threads.

    python -m results.runtime [--networks minilm resnet20 resnet50 vgg16] [--batches 1 8 32] [--threads 1 2]

Resumable: each (network, sparsity, threads, batch) is a file of its own. On a quiet machine of two cores, about 1 minute a
point of MiniLM or ResNet-20 and up to 15 minutes a point of VGG16 at batch 32: some five hours for all, 40 minutes with
`--batches 1`. Points whose twin measurements of the dense network differ carry the doubt; delete and repeat them.

MiniLM: encoder Linear layers, each at the given sparsity, 128 tokens. VGG16 and ResNet-50: random weights of torchvision's
shapes, 224x224 (speed does not depend on the values), each layer at the given sparsity. ResNet-20: the prepared checkpoint,
pruned globally.
"""

import argparse
import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.allocate import Global, Uniform
from espalier.checkpoint import open_checkpoint
from espalier.export import Example, image_example
from espalier.models import CifarResNet, fill, torchvision_model
from espalier.pruning import prune
from espalier.runtime.bench import bench
from espalier.runtime.ways import Dense, Half, Int8, Ours
from results._common import HERE, command, environment, once, write_json

SPARSITIES = {
    "minilm": (0.8, 0.9, 0.95),
    "resnet20": (0.8, 0.9, 0.95),
    "resnet50": (0.8, 0.9, 0.95),
    "vgg16": (0.9, 0.95),
}
GOALS = {("minilm", 0.9, 1): 2.2, ("minilm", 0.95, 1): 3.0, ("minilm", 0.9, 32): 1.5, ("vgg16", 0.95, 1): 1.5}


def network(name: str) -> tuple[nn.Module, Example, dict[str, Any]]:
    """A dense network, a batch for it, and how it is pruned."""
    if name == "minilm":
        from transformers import AutoModel

        from results.minilm import folder

        tokens = torch.randint(1000, 20000, (2, 128), generator=torch.Generator().manual_seed(0))
        example = Example(
            (tokens, torch.ones_like(tokens)), ("input_ids", "attention_mask"), ({0: "batch"},) * 2
        )
        model = AutoModel.from_pretrained(folder(), local_files_only=True)
        return model, example, {"include": ["encoder.*"], "allocation": Uniform()}
    if name == "resnet20":
        path = Path(os.environ["ESPALIER_DATA"]).parent / "checkpoints" / "resnet20-cifar10jpeg.safetensors"
        filled = fill(CifarResNet(20, 10), open_checkpoint(path).state_dict(), str(path))
        return filled.model, image_example((3, 32, 32)), {"allocation": Global()}
    torch.manual_seed(0)
    return torchvision_model(name), image_example((3, 224, 224)), {"allocation": Uniform()}


def point(name: str, sparsity: float, threads: int, batch: int) -> dict[str, Any]:
    """One network at one sparsity, number of threads and batch size."""
    torch.set_num_threads(threads)
    model, example, options = network(name)
    model = copy.deepcopy(model).eval()
    masks = prune(model, sparsity, **options)
    large = name in ("vgg16", "resnet50") and batch > 1
    ways = (Dense, Int8, Ours) if large else (Dense, Half, Int8, Ours)  # emulated bf16 takes minutes there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bench(model, example, sparse_bytes=0, batches=(batch,), ways=ways, rounds=30, seconds=20.0)
    plan = found.plans[batch]
    rows = found.to_dict()["rows"]
    for row in rows:
        del row["bytes"]
    dense, ours = rows[0]["latency"][str(batch)]["min"], rows[-1]["latency"][str(batch)]["min"]
    return {
        "network": name,
        "sparsity": sparsity,
        "zeros": masks.sparsity,
        "threads": threads,
        "batch": batch,
        "speedup": dense / ours,
        "goal": GOALS.get((name, sparsity, batch)) if threads == 1 else None,
        "rows": rows,
        "doubts": found.doubts[batch],
        "plan": plan.to_dict(),
    }


def main() -> None:
    """One point an artefact."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(SPARSITIES), choices=list(SPARSITIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    asked = parser.parse_args()
    points = []
    for name in asked.networks:
        for threads in asked.threads:
            for batch in asked.batches:
                for sparsity in SPARSITIES[name]:
                    path = HERE / "points" / "runtime" / f"{name}-{sparsity}-{threads}-{batch}.json"
                    found = once(path, lambda: point(name, sparsity, threads, batch))  # noqa: B023
                    points.append({key: value for key, value in found.items() if key != "plan"})
                    goal = "" if found["goal"] is None else f", goal {found['goal']:g}"
                    doubt = f"  doubt: {found['doubts'][0]}" if found["doubts"] else ""
                    print(
                        f"{name} {sparsity:g} threads {threads} batch {batch}: {found['speedup']:.2f} times dense"
                        f"{goal}{doubt}",
                        flush=True,
                    )
    write_json(HERE / "runtime.json", {"command": command(), "environment": environment(), "points": points})


if __name__ == "__main__":
    main()
