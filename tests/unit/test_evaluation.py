import math

import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier._forward import collect_logits
from espalier.data import TensorSplit
from espalier.evaluation import evaluate, paired_difference, score, wilson


def split_of(x: Tensor, y: list[int]) -> TensorSplit:
    return TensorSplit("validation", x, torch.tensor(y, dtype=torch.int64), torch.arange(len(y)), 1.0)


class Echo(nn.Module):
    """The first pixels are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.norm = nn.BatchNorm2d(1).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x)).flatten(1)  # type: ignore[no-any-return]


def test_accuracy_and_mean_loss_over_examples():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = score(logits, torch.tensor([0, 1, 1]))
    assert found.accuracy == pytest.approx(2 / 3) and found.n == 3
    assert found.correct.tolist() == [True, True, False]
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    assert found.loss == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_eval_mode_during_and_every_mode_restored():
    model = Echo().train()
    model.norm.eval()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    found = [evaluate(model, split_of(x, [0, 1, 0]), batch_size=size) for size in (1, 2, 3)]
    assert found[0].accuracy == pytest.approx(2 / 3)
    assert found[0].loss == pytest.approx(found[1].loss) == pytest.approx(found[2].loss)
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)
    assert model.norm.num_batches_tracked == 0


def test_modes_are_restored_when_the_model_fails():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="no"):
        collect_logits(model, split_of(torch.zeros(1, 1, 1, 2), [0]))
    assert model.training


def test_what_cannot_be_evaluated():
    empty = split_of(torch.zeros(0, 1, 1, 2), [])
    with pytest.raises(EspalierError, match="the validation split is empty"):
        evaluate(Echo(), empty)
    with pytest.raises(EspalierError, match="no examples"):
        score(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(EspalierError, match="needs labels"):
        evaluate(Echo(), split_of(torch.zeros(2, 1, 1, 2), [0, -1]))
    with pytest.raises(EspalierError, match="label 2 found, but the model has 2 classes"):
        evaluate(Echo(), split_of(torch.zeros(2, 1, 1, 2), [0, 2]))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # table I of Newcombe (1998), "Two-sided confidence intervals for the single proportion", method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([both, only_a, only_b, neither])
    a = torch.tensor([True, True, False, False]).repeat_interleave(counts)
    b = torch.tensor([True, False, True, False]).repeat_interleave(counts)
    return a, b


@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        # worked step by step: Wilson limits (0.5014, 0.7586) and (0.3116, 0.5769),
        # phi = (20 * 16 - 12 * 2 - 25) / sqrt(32 * 18 * 22 * 28) = 0.4550
        ((20, 12, 2, 16), 0.20, 0.0562, 0.3292),
        ((50, 0, 0, 0), 0.0, -0.0713, 0.0713),
    ],
)
def test_paired_difference(cells: tuple[int, int, int, int], difference: float, low: float, high: float):
    found = paired_difference(*answers(*cells))
    assert found.difference == pytest.approx(difference)
    assert found.interval == pytest.approx((low, high), abs=5e-5)
    assert (found.n, found.only_a, found.only_b) == (50, cells[1], cells[2])


def test_pairing_narrows_the_interval():
    same = paired_difference(*answers(800, 10, 5, 185)).interval
    a, b = answers(800, 10, 5, 185)
    shuffled = paired_difference(a, b.roll(500)).interval
    assert same[1] - same[0] < 0.4 * (shuffled[1] - shuffled[0])


def test_swapping_the_networks_changes_the_sign():
    a, b = answers(60, 9, 4, 27)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]))


def test_pairs_must_match():
    with pytest.raises(EspalierError, match="same examples twice, got 2 and 3"):
        paired_difference(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_come_in_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).to(dtype)
    model[1].weight.data = torch.eye(2, dtype=dtype)
    found = collect_logits(model, split_of(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]]), [0, 1]))
    assert found.dtype is torch.float32 and found.tolist() == [[1.0, 0.0], [0.0, 2.0]]
