"""all-MiniLM-L6-v2 pruned layer by layer from calibration sentences: Wanda and SparseGPT beside magnitude.

    python -m results.minilm_layerwise

The 36 linear layers of the encoder are pruned in one shot, without labels or training, each to the same sparsity (and
magnitude also in one ranking of them all). Embeddings of the held-out sentences of `results.minilm` are compared with
the dense network's; the calibration sentences are of the docstrings of Python's standard library, drawn anew for each
seed, those of one length together, so that there is no padding. Each layer sees what the pruned layers before it make.
"""

import ast
import copy
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.allocate import AbstractAllocation, Global, Uniform
from espalier.layerwise import NM, AbstractLayerRule, SparseGPT, Wanda, prune_linears
from espalier.pruning import prune
from results._common import HERE, command, environment, once, summary, write_json
from results.minilm import SENTENCES, compare, embed, folder, plain_sentences, sentences

SPARSITIES = (0.5, 0.6, 0.7, 0.8)
SEEDS = (0, 1, 2)
CALIBRATION = 128
LAYERS = ["encoder.*"]
RULES: dict[str, AbstractLayerRule] = {
    "SparseGPT": SparseGPT(),
    "Wanda": Wanda(),
    "SparseGPT's masks, weights not updated": SparseGPT(update=False),
}
Found = dict[tuple[str, str], list[Any]]
ALLOCATIONS: dict[str, AbstractAllocation] = {"magnitude, uniform": Uniform(), "magnitude, global": Global()}


@cache
def docstrings() -> tuple[str, ...]:
    """The sentences in them, sorted; of the modules at the top of the library and of its packages, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    folders = [root, *(f for f in root.iterdir() if f.is_dir() and f.name not in ("site-packages", "test"))]
    found: set[str] = set()
    for path in (path for place in folders for path in place.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                paragraphs = (ast.get_docstring(node) or "").split("\n\n")
                found |= {sentence for text in paragraphs for sentence in plain_sentences(text)}
    return tuple(sorted(found - set(sentences())))


def calibration(seed: int) -> list[str]:
    """Sentences that are not held out; others for another seed."""
    known = docstrings()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return [known[i] for i in order[:CALIBRATION].tolist()]


def batched(tokenizer: Any, chosen: list[str]) -> list[dict[str, Any]]:
    """Sentences of one length together, the shortest first."""
    by_length: dict[int, list[str]] = {}
    for sentence in chosen:
        length = len(tokenizer(sentence, truncation=True, max_length=64)["input_ids"])
        by_length.setdefault(length, []).append(sentence)
    return [
        dict(tokenizer(by_length[length], truncation=True, max_length=64, return_tensors="pt"))
        for length in sorted(by_length)
    ]


def main() -> None:
    """One point an artefact, one seed of everything first."""
    from transformers import AutoModel, AutoTokenizer

    where = folder()
    model = AutoModel.from_pretrained(where, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
    tokens = tokenizer(sentences(), padding=True, truncation=True, max_length=64, return_tensors="pt")
    dense = embed(model, tokens)
    targets: list[float | NM] = [*SPARSITIES, NM(2, 4)]
    found: Found = {}

    def keep(way: str, target: float | NM, seed: int, network_of: Any) -> None:
        label = f"{target.n}:{target.m}" if isinstance(target, NM) else str(target)

        def point() -> dict[str, float]:
            network, sparsity = network_of()
            return {"sparsity": sparsity, "seed": seed, **compare(dense, embed(network, tokens))}

        name = "-".join("".join(c if c.isalnum() else " " for c in f"{way} {label}").split())
        path = HERE / "points" / "minilm_layerwise" / f"{name}-{seed}.json"
        found.setdefault((way, label), []).append(once(path, point))
        print(way, label, found[way, label][-1], flush=True)

    for seed in SEEDS:  # kill it anywhere: what is there is not made again
        batches = batched(tokenizer, calibration(seed))
        for target in targets:
            if seed == SEEDS[0] and not isinstance(target, NM):
                for way, allocation in ALLOCATIONS.items():
                    keep(way, target, 0, lambda a=allocation, t=target: by_magnitude(model, a, t))
            for way, rule in RULES.items():
                keep(way, target, seed, lambda r=rule, t=target, b=batches: by_inputs(model, b, r, t))
            save(found)


def save(found: Found) -> None:
    """Means over the seeds so far, one seed of everything before the next; every entry says how many there are."""
    curves: dict[str, list[Any]] = {}
    for (way, label), points in found.items():
        measures = {
            key: summary([point[key] for point in points])
            for key in points[0]
            if key not in ("sparsity", "seed")
        }
        curves.setdefault(way, []).append(
            {"target": label, "sparsity": points[0]["sparsity"], "n": len(points), **measures}
        )
    write_json(
        HERE / "minilm_layerwise.json",
        {
            "command": command(),
            "environment": environment(),
            "sentences": SENTENCES,
            "calibration": CALIBRATION,
            "layers": LAYERS,
            "curves": curves,
        },
    )


def by_inputs(
    model: nn.Module, batches: list[Any], rule: AbstractLayerRule, target: float | NM
) -> tuple[nn.Module, float]:
    """A pruned copy, and its sparsity over the pruned layers."""
    network = copy.deepcopy(model)
    return network, prune_linears(network, batches, rule, target, include=LAYERS).sparsity


def by_magnitude(
    model: nn.Module, allocation: AbstractAllocation, sparsity: float
) -> tuple[nn.Module, float]:
    """Likewise; the encoder's weights with two dimensions are those of its linear layers."""
    network = copy.deepcopy(model)
    return network, prune(network, sparsity, allocation=allocation, include=LAYERS).sparsity


if __name__ == "__main__":
    main()
