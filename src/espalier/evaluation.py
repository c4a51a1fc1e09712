"""Accuracy with an interval, and the paired difference of two networks on the same examples."""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import torch.nn.functional as F
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import collect_logits
from espalier.data import AbstractSplit

Interval = tuple[float, float]
LEVEL = 0.95


@dataclass(frozen=True)
class Evaluation:
    """A network on a split, in eval mode.

    Args:
        accuracy: fraction right, in [0, 1].
        interval: 95 % Wilson interval of the accuracy.
        loss: mean cross-entropy over the examples, in nats.
        n: number of examples.
        correct: bool (n,), in the order of the split, for paired comparisons.
    """

    accuracy: float
    interval: Interval
    loss: float
    n: int
    correct: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a minus accuracy of b on the same examples.

    Args:
        difference: in [-1, 1].
        interval: 95 % interval.
        n: number of examples.
        only_a: examples only a has right.
        only_b: examples only b has right.
    """

    difference: float
    interval: Interval
    n: int
    only_a: int
    only_b: int


def evaluate(model: nn.Module, split: AbstractSplit, *, batch_size: int = 100) -> Evaluation:
    """Evaluate a classifier.

    Eval mode and no gradient; the mode of every submodule is restored. Means are over examples, not over
    batches.

    Args:
        model: returns logits (B, classes), or an object with `.logits`; stays on its device.
        split: with labels.
        batch_size: examples per forward pass; does not change the result beyond rounding.

    Raises:
        EspalierError: the split is empty or has no labels, or the model returns no logits.
    """
    return score(collect_logits(model, split, batch_size=batch_size), split.labels)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate logits (n, classes) that are at hand against labels int64 (n,).

    Raises:
        EspalierError: no examples, a label is -1 (unlabelled), or outside the classes.
    """
    labels = labels.to(logits.device)
    if not len(labels):
        raise EspalierError("no examples to evaluate on")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise EspalierError("accuracy needs labels, and some examples have none (label -1)")
    if high >= logits.shape[1]:
        raise EspalierError(
            f"label {high} found, but the model has {logits.shape[1]} classes: wrong model or data set"
        )
    correct = logits.argmax(1) == labels
    right, n = int(correct.sum()), len(labels)
    loss = F.cross_entropy(logits.double(), labels, reduction="sum").item() / n
    return Evaluation(right / n, wilson(right, n), loss, n, correct.cpu())


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    r"""Wilson's score interval of a proportion.

    .. math:: \frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        successes: between 0 and n.
        n: at least 1.
        level: confidence, in (0, 1).

    References:
        Wilson, E. B. (1927), JASA 22, 209-212.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    center, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding must not cross it.
    low = 0.0 if successes == 0 else (center - spread) / (1 + z * z / n)
    high = 1.0 if successes == n else (center + spread) / (1 + z * z / n)
    return low, high


def paired_difference(a: Tensor, b: Tensor, level: float = LEVEL) -> PairedDifference:
    """Difference of two accuracies measured on the same examples, with Newcombe's hybrid score interval.

    The interval combines the Wilson intervals of the two accuracies and the correlation of the two answers
    (his method 10), so it stays inside [-1, 1] and is sound where the networks hardly differ, unlike the
    normal approximation.

    Args:
        a: bool (n,), which examples the first network has right.
        b: the same for the second.
        level: confidence, in (0, 1).

    Raises:
        EspalierError: no examples, or different numbers of them.

    References:
        Newcombe, R. G. (1998), "Improved confidence intervals for the difference between binomial proportions
        based on paired data", Statistics in Medicine 17, 2635-2650.
    """
    if len(a) != len(b) or not len(a):
        raise EspalierError(f"a paired difference needs the same examples twice, got {len(a)} and {len(b)}")
    a, b = a.bool(), b.bool()
    n = len(a)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    neither = n - both - only_a - only_b
    low_a, high_a = wilson(both + only_a, n, level)
    low_b, high_b = wilson(both + only_b, n, level)
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    phi = _correlation(both, only_a, only_b, neither)
    below = _hybrid(p_a - low_a, high_b - p_b, phi)
    above = _hybrid(high_a - p_a, p_b - low_b, phi)
    d = (only_a - only_b) / n
    return PairedDifference(d, (max(-1.0, d - below), min(1.0, d + above)), n, only_a, only_b)


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Phi of the fourfold table, with Newcombe's continuity correction where it is positive."""
    n = both + only_a + only_b + neither
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not product:
        return 0.0
    cross = float(both * neither - only_a * only_b)
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(product)


def _hybrid(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))
