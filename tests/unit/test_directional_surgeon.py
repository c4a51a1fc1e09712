"""OBS and OBD against their definitions, and what directional pruning has to do with them."""

import pytest
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.directional import brain_damage, brain_surgeon, by_cutoff, scores
from tests.unit.test_directional import exact, loss, quadratic


def positive(d: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    return root @ root.T + torch.eye(d).double(), torch.randn(d, generator=g, dtype=torch.float64)


def best_without(matrix: Tensor, w: Tensor, gone: list[int]) -> tuple[Tensor, float]:
    """The least loss with some weights at zero, by solving for the others."""
    kept = [j for j in range(len(w)) if j not in gone]
    found = torch.zeros_like(w)
    found[kept] = torch.linalg.solve(matrix[kept][:, kept], matrix[kept] @ w)
    return found, loss(matrix, found, w)


def test_one_removal_is_the_best_there_is() -> None:
    matrix, w = positive()
    surgery = brain_surgeon(w, matrix, 1, damping=0.0)
    costs = [best_without(matrix, w, [q])[1] for q in range(8)]
    q = int(torch.tensor(costs).argmin())
    assert surgery.order.tolist() == [q]
    assert torch.allclose(surgery.weights, best_without(matrix, w, [q])[0], atol=1e-10)
    assert float(surgery.saliency[0]) == pytest.approx(costs[q])


def test_every_removal_leaves_the_others_at_their_best() -> None:
    matrix, w = positive()
    for zeros in range(9):
        surgery = brain_surgeon(w, matrix, zeros, damping=0.0)
        truth, cost = best_without(matrix, w, surgery.order.tolist())
        assert (
            int((surgery.weights == 0).sum()) == zeros
            and not torch.signbit(surgery.weights[surgery.weights == 0]).any()
        )
        assert torch.allclose(surgery.weights, truth, atol=1e-9)
        assert float(surgery.saliency.sum()) == pytest.approx(cost, abs=1e-10)


def test_existing_zeros_are_taken_first_and_the_hessian_can_be_renewed() -> None:
    matrix, w = positive()
    w[3] = 0
    asked = []

    def hessian(weights: Tensor) -> Tensor:
        asked.append(int((weights == 0).sum()))
        return matrix

    surgery = brain_surgeon(w, hessian, 5, damping=0.0, refresh=2)
    assert surgery.order[0] == 3 and asked == [1, 3]
    assert torch.allclose(surgery.weights, brain_surgeon(w, matrix, 5, damping=0.0).weights, atol=1e-9)


def test_damage_is_by_the_diagonal_alone() -> None:
    w = torch.tensor([1.0, -2.0, 3.0, 0.0])
    surgery = brain_damage(w, torch.tensor([8.0, 1.0, 0.1, 9.0]), 2)
    assert surgery.order.tolist() == [3, 2] and surgery.weights.tolist() == [1.0, -2.0, 0.0, 0.0]
    assert surgery.saliency.tolist() == pytest.approx([0, 0.45])


def test_no_inverse_no_surgery() -> None:
    with pytest.raises(EspalierError, match=r"not positive definite \(least eigenvalue -1 .*Gauss-Newton"):
        brain_surgeon(torch.ones(2), torch.diag(torch.tensor([1.0, -1.0])), 1)
    with pytest.raises(EspalierError, match="2 weights cannot have 3 zeros"):
        brain_surgeon(torch.ones(2), torch.eye(2), 3)
    with pytest.raises(EspalierError, match="2 weights cannot have 3 zeros"):
        brain_damage(torch.ones(2), torch.ones(2), 3)


def test_directional_pruning_adds_up_flat_limits_of_surgery() -> None:
    """H + eps Pi0, eps -> 0: the update that removes q becomes -w_q Pi0 e_q / (Pi0)_qq, at no cost; the direction
    of directional pruning is the sum of these, each with weight (Pi0)_qq / |w_q|."""
    matrix, w = quadratic(12, 5)
    flat = by_cutoff(exact(matrix), 1e-6)
    p = torch.stack([flat.project(e) for e in torch.eye(12).double()])
    eps = 1e-9
    inverse = torch.linalg.inv(matrix + eps * p)
    total = torch.zeros(12).double()
    for q in range(12):
        update = -w[q] / inverse[q, q] * inverse[:, q]
        limit = -w[q] * p[:, q] / p[q, q]
        assert torch.allclose(update, limit, atol=1e-6)
        assert float(w[q] ** 2 / (2 * inverse[q, q])) == pytest.approx(
            eps * float(w[q] ** 2 / (2 * p[q, q])), rel=1e-4
        )
        total += float(p[q, q] / w[q].abs()) * limit
    assert torch.allclose(total, -flat.project(w.sign()), atol=1e-10)


def test_a_score_is_a_diagonal_part_and_interactions() -> None:
    matrix, w = quadratic(12, 5)
    flat = by_cutoff(exact(matrix), 1e-6)
    p = torch.stack([flat.project(e) for e in torch.eye(12).double()])
    signs = w.sign()
    crossed = p * signs * signs[:, None]
    assert torch.allclose(scores(w, flat), p.diagonal() + (crossed.sum(1) - crossed.diagonal()), atol=1e-10)


def test_with_a_diagonal_hessian_the_flat_set_is_that_of_zero_saliency() -> None:
    diagonal = torch.tensor([2.0, 0.0, 1.0, 0.0, 0.0]).double()
    w = torch.tensor([0.1, 3.0, 0.2, -4.0, 5.0]).double()
    s = scores(w, by_cutoff(exact(torch.diag(diagonal)), 1e-9))
    damage = brain_damage(w, diagonal, 3)
    assert (
        set(damage.order.tolist()) == set((s > 0.5).nonzero().flatten().tolist())
        and damage.saliency.sum() == 0
    )
