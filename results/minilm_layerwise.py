"""all-MiniLM-L6-v2 pruned layer by layer from calibration sentences: Wanda and SparseGPT beside magnitude.

    python -m results.minilm_layerwise

The 36 linear layers of the encoder are pruned in one shot, without labels or training, each to the same sparsity (and
magnitude also in one ranking of them all). Embeddings of the held-out sentences of `results.minilm` are compared with
the dense network's; the calibration sentences are others of the same prose, drawn anew for each seed, one sentence a
pass, so that there is no padding. Each layer sees what the pruned layers before it make.
"""

import copy
from typing import Any

import torch
from torch import nn

from espalier.allocate import AbstractAllocation, Global, Uniform
from espalier.layerwise import NM, AbstractLayerRule, SparseGPT, Wanda, prune_linears
from espalier.pruning import prune
from results._common import HERE, command, environment, once, summary, write_json
from results.minilm import SENTENCES, compare, embed, folder, prose, sentences

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


def calibration(seed: int) -> list[str]:
    """Sentences that are not held out."""
    held = set(sentences())
    rest = [sentence for sentence in prose() if sentence not in held]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    return [rest[i] for i in order[:CALIBRATION].tolist()]


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
        batches = [
            dict(tokenizer(sentence, truncation=True, max_length=64, return_tensors="pt"))
            for sentence in calibration(seed)
        ]
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
