"""How alike the functions of several networks are: answers, probabilities, logits, layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier.data import AbstractSplit
from espalier.evaluation import Evaluation, score
from espalier.landscape.cka import grams_cka, layer_grams, layer_names
from espalier.likeness import Similarity, compare_logits


@dataclass(frozen=True)
class Pair:
    """Two networks on the same inputs, both in eval mode with their own batch-norm statistics.

    Args:
        a: name.
        b: name.
        similarity: agreement, Jensen-Shannon divergence, logit cosine.
        cka: layer -> linear CKA; empty if it was not asked for.
    """

    a: str
    b: str
    similarity: Similarity
    cka: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Functions:
    """Several networks side by side.

    Args:
        evaluations: name -> accuracy and loss.
        pairs: every two of them.
        logits: name -> (n, classes), float32 on the CPU.
        cka_inputs: inputs CKA was computed on; 0 without.
        biased: which estimator of CKA.
    """

    evaluations: Mapping[str, Evaluation]
    pairs: tuple[Pair, ...]
    logits: Mapping[str, Tensor]
    cka_inputs: int
    biased: bool


def compare_functions(
    networks: Mapping[str, nn.Module],
    split: AbstractSplit,
    *,
    cka: int = 500,
    biased: bool = False,
    batch_size: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> Functions:
    """Compare networks on the same inputs; architectures may differ, the classes may not.

    Args:
        networks: name -> network; modes are restored.
        split: labelled; labels are used for the accuracies only.
        cka: inputs (the first of the split) for CKA, whose memory grows with their square; 0 leaves it out.
        biased: see `espalier.landscape.cka.linear_cka`.
        batch_size: inputs per forward pass.
        progress: called after each network with how many are done, and of how many.

    Raises:
        EspalierError: fewer than two networks, no labels, different classes.
    """
    if len(networks) < 2:
        raise EspalierError(f"comparing functions needs at least 2 networks, got {len(networks)}")
    logits: dict[str, Tensor] = {}
    grams: dict[str, dict[str, Tensor]] = {}
    for done, (name, network) in enumerate(networks.items(), 1):
        logits[name] = collect_logits(network, split, batch_size=batch_size)
        if cka:
            grams[name] = layer_grams(network, layer_names(network), split.take(cka))
        if progress is not None:
            progress(done, len(networks))
    pairs = tuple(
        Pair(a, b, compare_logits(logits[a], logits[b]), _cka(grams, a, b, biased))
        for a, b in combinations(networks, 2)
    )
    evaluations = {name: score(found, split.labels) for name, found in logits.items()}
    return Functions(evaluations, pairs, logits, min(cka, len(split)), biased)


def _cka(grams: Mapping[str, Mapping[str, Tensor]], a: str, b: str, biased: bool) -> dict[str, float]:
    if a not in grams:
        return {}
    return {
        layer: grams_cka(k, grams[b][layer], biased=biased)
        for layer, k in grams[a].items()
        if layer in grams[b]
    }
