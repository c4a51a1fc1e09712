"""Movement pruning against a slow transcription of its formulas, and how its masks move."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import EspalierError
from espalier.data import Dataset, Options, digits
from espalier.methods import MovementPruning, Plan
from espalier.scores import Evidence, Movement, ranked
from espalier.train import Training, fit

TRAINING = Training(
    epochs=2, batch_size=40, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, augment=False
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=200))


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def slow(model: nn.Module, data: Dataset, sparsities: dict[int, float]) -> tuple[Tensor, Tensor]:
    """Plain SGD with constant rates on w * m; the score collects -w dL/d(wm). Returns the scores and the last mask."""
    weight, bias = (p.detach().clone() for p in model.parameters())
    score, mask, step, total = torch.zeros_like(weight), torch.ones_like(weight), 0, 10
    for epoch in (1, 2):
        for x, y in data.train.batches(40, seed=0, epoch=epoch):
            step += 1
            lr = 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - 1) / total)).item())
            effective = (weight * mask).requires_grad_()
            offset = bias.clone().requires_grad_()
            F.cross_entropy(F.linear(x.flatten(1), effective, offset), y).backward()
            assert effective.grad is not None and offset.grad is not None
            score -= weight * effective.grad
            weight -= lr * effective.grad * mask
            bias -= lr * offset.grad
            if step in sparsities:
                kept = weight.numel() - round(sparsities[step] * weight.numel())
                order = score.flatten().argsort(descending=True, stable=True)
                mask = torch.zeros_like(weight)
                mask.view(-1)[order[:kept]] = 1.0
    return score, mask


def test_it_is_the_formula_step_by_step(data: Dataset) -> None:
    model = net()
    # Cubic ramp over steps 0 to 10 with five changes.
    ramp = {2 * k: 0.7 * (1 - (1 - k / 5) ** 3) for k in (1, 2, 3, 4, 5)}
    _, mask = slow(model, data, ramp)
    method = MovementPruning(begin=0.0, end=1.0, updates=5)
    fit(model, data, TRAINING, method=method, sparsity=0.7, names=["1.weight"])
    assert torch.equal(model.get_parameter("1.weight") != 0, mask.bool())


def test_weights_come_back_until_the_ramp_ends(data: Dataset) -> None:
    history = fit(
        net(), data, TRAINING, method=MovementPruning(begin=0.0, end=1.0), sparsity=0.5, names=["1.weight"]
    )
    turnovers = [epoch.turnover for epoch in history.epochs[1:]]
    assert any(turnover is not None and turnover.regrown > 0 for turnover in turnovers)
    still = fit(
        net(), data, TRAINING, method=MovementPruning(begin=0.0, end=0.5), sparsity=0.5, names=["1.weight"]
    )
    assert still.last.turnover is not None and still.last.turnover.churn == 0.0


def test_the_score_hands_out_copies() -> None:
    moved = {"w": torch.tensor([-1.0, 2.0, 3.0])}
    evidence = Evidence({"w": torch.tensor([1.0, 0.0, 1.0])}, movement=moved)
    before = copy.deepcopy(moved)
    assert ranked(Movement(), evidence)["w"].tolist() == [-1.0, -torch.inf, 3.0]
    Movement().scores(evidence)["w"].fill_(0.0)
    assert torch.equal(moved["w"], before["w"])


def test_a_run_without_steps_is_refused() -> None:
    with pytest.raises(EspalierError, match="movement is seen over training steps, and this run has none"):
        MovementPruning().rule(net(), Plan(0.5, ("1.weight",), 0, TRAINING))
    with pytest.raises(EspalierError, match=r"0 <= begin < end <= 1, got 0\.5 and 0\.5"):
        MovementPruning(begin=0.5, end=0.5)
