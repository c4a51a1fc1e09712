"""Scores on small arrays, and the rule for entries that are zero already."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import LazyTensors, Tensors
from espalier.scores import AbstractScore, Evidence, Magnitude, Random, ranked

INF = float("inf")


@dataclass(frozen=True)
class Fixed(AbstractScore):
    """Answers what it is given."""

    answer: Tensors
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def scores(self, evidence: Evidence) -> Tensors:
        return self.answer


@dataclass(frozen=True)
class Hungry(AbstractScore):
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "gradients"})

    def scores(self, evidence: Evidence) -> Tensors:
        raise AssertionError("never called")


def test_magnitude_is_the_absolute_value() -> None:
    scores = Magnitude().scores(Evidence({"w": torch.tensor([[-2.0, 0.5]])}))
    assert scores["w"].tolist() == [[2.0, 0.5]]


def test_zeros_come_last_and_infinite_scores_before_them() -> None:
    weights = {"w": torch.tensor([1.0, 0.0, -0.0, 3.0])}
    answer = {"w": torch.tensor([-INF, 9.0, 9.0, 2.0])}
    lowest = torch.finfo(torch.float32).min
    assert ranked(Fixed(answer), Evidence(weights))["w"].tolist() == [lowest, -INF, -INF, 2.0]
    assert answer["w"].tolist() == [-INF, 9.0, 9.0, 2.0]


def test_random_repeats_with_its_seed_only() -> None:
    evidence = Evidence({"a": torch.ones(50), "b": torch.ones(50)})
    first = Random(3).scores(evidence)
    assert torch.equal(first["a"], Random(3).scores(evidence)["a"])
    assert not torch.equal(first["a"], Random(4).scores(evidence)["a"])
    assert not torch.equal(first["a"], first["b"])
    assert first["a"].min() >= 0 and first["a"].max() < 1


def test_random_is_the_same_on_every_machine() -> None:
    scores = Random(0).scores(Evidence({"fc.weight": torch.ones(3)}))["fc.weight"]
    assert [f"{value:.6f}" for value in scores.tolist()] == ["0.009261", "0.519656", "0.046618"]


def test_a_file_is_read_once_for_score_and_zeros() -> None:
    reads: Counter[str] = Counter()

    def load(name: str) -> Tensor:
        reads[name] += 1
        return torch.ones(4)

    scores = ranked(Magnitude(), Evidence(LazyTensors(["a", "b"], load)))
    for name in scores:
        scores[name]
    assert reads == {"a": 1, "b": 1}


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    scores = ranked(Random(), Evidence({"ok": torch.ones(1), "fc.weight": torch.tensor([bad, 1.0])}))
    with pytest.raises(EspalierError, match=r"'fc.weight' holds 1 entries that are NaN or infinite"):
        scores["fc.weight"]


def test_missing_evidence_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(EspalierError, match="Hungry needs gradients, which nothing has gathered"):
        ranked(Hungry(), Evidence({"w": torch.ones(1)}))


def test_a_score_that_answers_for_other_parameters_is_refused() -> None:
    weights = {"fc.weight": torch.ones(1)}
    with pytest.raises(
        EspalierError, match=r"Fixed has no score for parameter 'fc.weight'. Did you mean 'fc.wait'"
    ):
        ranked(Fixed({"fc.wait": torch.ones(1)}), Evidence(weights))
    with pytest.raises(EspalierError, match="Fixed scored the unknown parameter 'bias'"):
        ranked(Fixed(weights | {"bias": torch.ones(1)}), Evidence(weights))


def test_a_score_of_another_shape_is_refused() -> None:
    scores = ranked(Fixed({"w": torch.ones(2)}), Evidence({"w": torch.ones(2, 1)}))
    with pytest.raises(EspalierError, match=r"gave 'w' scores of shape \(2,\) for weights of shape \(2, 1\)"):
        scores["w"]
