import copy
import math

import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier.data import Options, TensorSplit, digits
from espalier.likeness import (
    compare_logits,
    cosine_bound,
    jensen_shannon,
    similarity,
    weight_cosine,
)


def test_literal():
    ours = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    theirs = torch.tensor([[2.0, 0.0], [5.0, 0.0], [3.0, 4.0]])
    found = compare_logits(ours, theirs)
    assert found.agreement == pytest.approx(2 / 3) and found.n == 3
    assert found.logit_cosine == pytest.approx((1 + 0 + 1) / 3)
    assert found.interval[0] < found.agreement < found.interval[1]


def test_divergence_is_ln_2_for_disjoint_answers_and_zero_for_equal_ones():
    sure = torch.tensor([[1e4, 0.0], [3.0, 1.0]])
    other = torch.tensor([[0.0, 1e4], [5.0, 3.0]])
    assert jensen_shannon(sure, other).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-15)


def test_divergence_by_hand():
    p, q = (0.9, 0.1), (0.5, 0.5)
    m = [(a + b) / 2 for a, b in zip(p, q)]
    by_hand = sum(0.5 * a * math.log(a / c) + 0.5 * b * math.log(b / c) for a, b, c in zip(p, q, m))
    found = jensen_shannon(torch.tensor([p], dtype=torch.float64).log(), torch.tensor([q]).log())
    assert found.item() == pytest.approx(by_hand, rel=1e-7)


def test_zero_logits_have_cosine_zero():
    assert compare_logits(torch.zeros(1, 3), torch.ones(1, 3)).logit_cosine == 0.0


def test_labels_are_not_read():
    images = torch.rand(6, 1, 2, 2)
    split = TensorSplit("train", images, torch.full((6,), -1), torch.arange(6), 1.0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    found = similarity(model, copy.deepcopy(model), split)
    assert (found.agreement, found.n) == (1.0, 6) and found.divergence < 1e-12
    assert found.logit_cosine == pytest.approx(1.0)
    assert model[1].training


def test_different_networks_of_classes_are_refused():
    split = digits(Options(limit=4)).validation
    narrow, wide = (nn.Sequential(nn.Flatten(), nn.Linear(64, n)) for n in (10, 11))
    with pytest.raises(EspalierError, match=r"got logits \(4, 10\) and \(4, 11\)"):
        similarity(narrow, wide, split)


def test_weight_cosine_and_its_bound():
    parent: dict[str, Tensor] = {"a": torch.tensor([3.0, 0.1]), "b": torch.tensor([4.0])}
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([False])}
    pruned = {name: w * masks[name] for name, w in parent.items()}
    expected = 3 / math.sqrt(9 + 0.01 + 16)
    assert cosine_bound(parent, masks) == pytest.approx(expected, rel=1e-7)
    assert weight_cosine(pruned, parent, parent) == pytest.approx(expected, rel=1e-7)
    assert weight_cosine(pruned, parent, ["b"]) == 0.0
    assert cosine_bound({"a": torch.zeros(2)}, {"a": masks["a"]}) == 0.0


def test_weight_cosine_sums_in_float64():
    # float32 sums of 2e7 ones and one 1e4 lose the ones' last digits; bf16 inputs must not make it worse
    w = torch.ones(2_000_000, dtype=torch.bfloat16)
    assert weight_cosine({"w": w}, {"w": w.float()}, ["w"]) == pytest.approx(1.0, abs=1e-12)


def test_weight_cosine_whatever_the_memory_layout():
    w = torch.randn(4, 3, 2, 2)
    assert weight_cosine({"w": w.to(memory_format=torch.channels_last)}, {"w": w}, ["w"]) == pytest.approx(
        1.0
    )
