"""Many networks as points by what they predict: real distances, and a t-SNE picture of them."""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier.checkpoint import save_checkpoint
from espalier.data import AbstractSplit
from espalier.landscape.records import Records
from espalier.pruning import prune
from espalier.scores import Magnitude, Random
from espalier.train.state import tensors_digest


@dataclass(frozen=True, eq=False)
class Embedding:
    """Networks on a plane, and how far apart they really are.

    Args:
        names: of the networks.
        groups: of each: "network", "L1" or "random".
        sparsities: of each member of a pruned family; nan for the others.
        accuracies: of each, on the same inputs.
        distances: float64 (m, m): root mean square over inputs of the Euclidean distance of the two
            probability vectors; 0 to sqrt 2.
        positions: float64 (m, 2), of t-SNE; its distances mean little, see `faithfulness`.
        perplexity: of t-SNE.
        faithfulness: Spearman correlation of the distances in the picture with the real ones, in [-1, 1].
        n: inputs.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sparsities: tuple[float, ...]
    accuracies: tuple[float, ...]
    distances: NDArray[np.float64]
    positions: NDArray[np.float64]
    perplexity: float
    faithfulness: float
    n: int


def embed(
    predictions: Mapping[str, Tensor],
    labels: Tensor,
    *,
    groups: Mapping[str, str] | None = None,
    sparsities: Mapping[str, float] | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """Embed networks by their predictions, all jointly ("What Makes a Good Prune?", Figure 3).

    One vector a network: its softmax on the same inputs, flattened. t-SNE is scikit-learn's, from the real
    distances, with random start.

    Args:
        predictions: name -> logits (n, classes).
        labels: int64 (n,), for the accuracies.
        groups: name -> group.
        sparsities: name -> sparsity.
        perplexity: lowered to a third of the other networks where there are few.
        seed: of the start.

    Raises:
        EspalierError: fewer than 4 networks, different inputs or classes, or scikit-learn is missing.
    """
    names = list(predictions)
    if len(names) < 4:
        raise EspalierError(f"an embedding needs at least 4 networks, got {len(names)}")
    shapes = {tuple(p.shape) for p in predictions.values()}
    if len(shapes) > 1:
        raise EspalierError(f"the predictions are of different inputs or classes: {sorted(shapes)}")
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise EspalierError("t-SNE needs scikit-learn: pip install 'espalier[train]'") from None
    n = len(labels)
    distances = prediction_distances(list(predictions.values()))
    used = min(perplexity, (len(names) - 1) / 3)
    # The exact gradient: the approximate one gains nothing below thousands of points, and the threads it starts
    # wait for each other a thousand times, minutes on a busy machine.
    picture = TSNE(
        metric="precomputed", method="exact", init="random", perplexity=used, random_state=seed, n_jobs=1
    )
    positions = np.asarray(picture.fit_transform(distances), dtype=np.float64)
    given, at = groups or {}, sparsities or {}
    return Embedding(
        tuple(names),
        tuple(given.get(name, "network") for name in names),
        tuple(at.get(name, math.nan) for name in names),
        tuple(float((p.argmax(1) == labels).double().mean()) for p in predictions.values()),
        distances,
        positions,
        used,
        _faithfulness(distances, positions),
        n,
    )


def prediction_distances(logits: Sequence[Tensor]) -> NDArray[np.float64]:
    """Root mean square over inputs of the distance of probability vectors, for every two of m networks, (m, m)."""
    vectors = torch.stack([one.double().softmax(1).flatten() for one in logits])
    return (
        torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(len(logits[0]))
    ).numpy()


def family(
    network: nn.Module,
    split: AbstractSplit,
    sparsities: Sequence[float],
    *,
    seed: int = 0,
    folder: Path | None = None,
    batch_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[str, float, Tensor]]:
    """A network pruned one-shot to many sparsities, by magnitude ("L1") and at random, and what each predicts.

    Batch norm keeps the statistics of the dense network, as in the paper.

    Args:
        network: dense; not changed.
        split: inputs.
        sparsities: fractions in [0, 1).
        seed: of the random scores.
        folder: keeps the logits of each, to go on after a kill.
        batch_size: inputs per forward pass.
        progress: called after each network.

    Returns:
        Name -> (group, sparsity, logits (n, classes)).

    Raises:
        EspalierError: a sparsity outside [0, 1), or the folder holds another family.
    """
    scores = {"L1": Magnitude(), "random": Random(seed)}
    weights = tensors_digest(network.state_dict())
    spec = {"network": weights, "data": split.digest, "sparsities": list(sparsities), "seed": seed}
    Records(folder, spec)  # refuses the folder of another family
    found: dict[str, tuple[str, float, Tensor]] = {}
    for group, rule in scores.items():
        for sparsity in sparsities:
            name = f"{group} {100 * sparsity:g} %"
            file = None if folder is None else folder / f"{_short(name)}.safetensors"
            if file is not None and file.exists():
                logits = load_file(file)["logits"]
            else:
                pruned = copy.deepcopy(network)
                prune(pruned, sparsity, score=rule)
                logits = collect_logits(pruned, split, batch_size=batch_size)
                if file is not None:
                    save_checkpoint(file, {"logits": logits}, {"name": name})
            found[name] = (group, sparsity, logits)
            if progress is not None:
                progress(len(found), len(scores) * len(sparsities))
    return found


def _short(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


def _faithfulness(distances: NDArray[np.float64], positions: NDArray[np.float64]) -> float:
    """Spearman correlation over all pairs; nan where all distances are equal."""
    pairs = np.triu_indices(len(distances), 1)
    shown = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(-1))
    a, b = (_ranks(values[pairs]) for values in (distances, shown))
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
