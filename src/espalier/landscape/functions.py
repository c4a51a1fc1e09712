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
from espalier.landscape.points import check_initialized
from espalier.likeness import Similarity, compare_logits

_TRIED = 8  # inputs on which a network is asked twice whether it answers the same


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
        EspalierError: fewer than two networks, no labels, different classes; a network is lazily initialized,
            gives logits that are not finite, or answers differently the second time it is asked.
    """
    if len(networks) < 2:
        raise EspalierError(f"comparing functions needs at least 2 networks, got {len(networks)}")
    logits: dict[str, Tensor] = {}
    grams: dict[str, dict[str, Tensor]] = {}
    for done, (name, network) in enumerate(networks.items(), 1):
        logits[name] = _logits(name, network, split, batch_size)
        _check_classes(logits, name)
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


def _logits(name: str, network: nn.Module, split: AbstractSplit, batch_size: int) -> Tensor:
    """Logits of a network that can be compared."""
    check_initialized(network, name)
    found = collect_logits(network, split, batch_size=batch_size)
    if bad := int((~found.isfinite().all(1)).sum()):
        raise EspalierError(
            f"{name} gives logits that are not finite for {bad} of {len(found)} inputs: its weights diverged, or the "
            "inputs are not scaled as it was trained with; take an earlier checkpoint"
        )
    some = found[:_TRIED]
    spread = float((collect_logits(network, split.take(_TRIED), batch_size=_TRIED) - some).abs().max())
    if spread > 1e-3 * max(1.0, float(some.abs().max())):
        raise EspalierError(
            f"{name} gives different answers to the same inputs in eval mode (logits differ by {spread:.2g}): "
            "something random is left on, such as F.dropout without training=self.training"
        )
    return found


def _check_classes(logits: Mapping[str, Tensor], name: str) -> None:
    first = next(iter(logits))
    if logits[name].shape[1] != logits[first].shape[1]:
        raise EspalierError(
            f"{name} has {logits[name].shape[1]} classes and {first} {logits[first].shape[1]}: answers to "
            "different questions do not compare"
        )


def _cka(grams: Mapping[str, Mapping[str, Tensor]], a: str, b: str, biased: bool) -> dict[str, float]:
    if a not in grams:
        return {}
    return {
        layer: grams_cka(k, grams[b][layer], biased=biased)
        for layer, k in grams[a].items()
        if layer in grams[b]
    }
