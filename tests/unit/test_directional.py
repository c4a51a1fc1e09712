"""Directional pruning on quadratics and small networks, against brute force and dense linear algebra."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.directional import (
    FlatSubspace,
    by_cutoff,
    by_energy,
    by_filter,
    closed_form,
    follow,
    kappa,
    objective,
    one_shot,
    refit,
    regress,
    scores,
    strength_for,
)
from espalier.landscape import Eigenpairs, Matrix, leading
from espalier.optim import GRDA


def exact(matrix: Tensor, count: int | None = None) -> Eigenpairs:
    """Eigenpairs of a dense matrix, by magnitude."""
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)[: count or len(values)]
    return Eigenpairs(values[order], vectors[:, order], 0 * values[order], 1e-3, 0, len(matrix), "magnitude")


def quadratic(d: int = 60, stiff: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A Hessian with d - stiff flat directions, and a minimum."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    values = torch.zeros(d, dtype=torch.float64)
    values[:stiff] = 1 + 7 * torch.rand(stiff, generator=g, dtype=torch.float64)
    return q @ torch.diag(values) @ q.T, torch.randn(d, generator=g, dtype=torch.float64)


def loss(matrix: Tensor, w: Tensor, minimum: Tensor) -> float:
    return float(0.5 * (w - minimum) @ matrix @ (w - minimum))


def test_the_projection_is_that_of_dense_linear_algebra() -> None:
    matrix, w = quadratic()
    flat = by_cutoff(exact(matrix), 1e-6)
    values, vectors = torch.linalg.eigh(matrix)
    null = vectors[:, values.abs() < 1e-6]
    assert torch.allclose(flat.project(w), null @ (null.T @ w), atol=1e-10)
    assert flat.dimension == pytest.approx(40) and flat.gap > 0.9 and flat.hidden < 1e-12
    signs = w.sign()
    assert torch.allclose(scores(w, flat), signs * (null @ (null.T @ signs)), atol=1e-10)


def test_the_closed_form_beats_every_point_of_a_grid() -> None:
    start = torch.tensor([1.5, -0.4, 0.3, -2.0]).double()
    s = torch.tensor([0.8, 1.2, -0.7, -0.1]).double()
    found = closed_form(start, s, 0.5)
    assert found.tolist() == pytest.approx([1.1, 0.0, 0.65, -2.05])
    grid = torch.linspace(-3, 3, 6001).double()
    for j in range(4):  # separable: one coordinate at a time
        values = objective(grid[:, None], start[j : j + 1], s[j : j + 1], 0.5)
        assert (
            float(objective(found[j : j + 1], start[j : j + 1], s[j : j + 1], 0.5))
            <= float(values.min()) + 1e-12
        )


def test_a_weight_at_zero_stays_there() -> None:
    assert closed_form(torch.zeros(1), -torch.ones(1), 1.0).tolist() == [0.0]
    with pytest.raises(EspalierError, match="strength of directional pruning must be 0 or more, got -1"):
        closed_form(torch.zeros(1), torch.ones(1), -1.0)


def test_special_subspaces() -> None:
    w = torch.tensor([1.0, -2.0, 3.0]).double()
    everything = by_cutoff(exact(torch.zeros(3, 3).double()))
    assert scores(w, everything).tolist() == pytest.approx([1, 1, 1])  # the soft threshold
    nothing = by_cutoff(exact(torch.eye(3).double()))
    assert scores(w, nothing).abs().max() < 1e-12
    assert torch.allclose(closed_form(w, scores(w, nothing), 5.0), w)
    diagonal = by_cutoff(exact(torch.diag(torch.tensor([2.0, 0.0, 0.0]).double())), 1e-9)
    assert scores(w, diagonal).tolist() == pytest.approx([0, 1, 1])  # OBD's set of zero saliency


def test_until_the_first_zero_the_loss_stays_and_the_l1_norm_falls() -> None:
    matrix, w = quadratic()
    flat = by_cutoff(exact(matrix), 1e-6)
    s = scores(w, flat)
    free = flat.project(w.sign())
    assert float(s.sum()) == pytest.approx(float(free @ free), rel=1e-12)
    strength = 0.999 * strength_for(w, s, 1)
    moved = closed_form(w, s, strength)
    assert torch.allclose(moved - w, -strength * free, atol=1e-12)
    assert loss(matrix, moved, w) < 1e-24
    assert float(w.abs().sum() - moved.abs().sum()) == pytest.approx(strength * float(free @ free))


def test_the_published_simulation() -> None:
    """60 weights, 40 flat directions: our notes have 30 % zeros at loss 1e-5 by the path, 40 % at 2.4 one-shot."""
    matrix, w = quadratic(seed=1)
    flat = by_cutoff(exact(matrix), 1e-6)
    path = follow(w, flat, strength=0.9, relax=False)
    shot = closed_form(w, scores(w, flat), 0.9)
    soft = closed_form(w, torch.ones(60).double(), 0.9)
    assert loss(matrix, path.weights, w) < 1e-12 and 0.2 < path.zeros / 60 < 0.4
    assert loss(matrix, shot, w) > 0.5 and int((shot == 0).sum()) > path.zeros
    assert loss(matrix, soft, w) > 5 * loss(matrix, shot, w) and int((soft == 0).sum()) > 30


def test_the_path_goes_on_until_as_many_weights_as_stiff_directions_are_left() -> None:
    matrix, w = quadratic()
    path = follow(w, by_cutoff(exact(matrix), 1e-6), zeros=60, relax=False)
    assert path.reason == "no flat direction shrinks the weights any more"
    assert 35 <= path.zeros <= 40 and loss(matrix, path.weights, w) < 1e-12
    l1 = [step.l1 for step in path.steps]
    assert all(b < a for a, b in pairwise(l1))


def test_the_path_is_the_dense_one_step_by_step() -> None:
    matrix, w = quadratic(12, 4)
    path = follow(w, by_cutoff(exact(matrix), 1e-6), zeros=5)
    here, active = w.clone(), torch.ones(12, dtype=torch.bool)
    for _ in range(5):
        inner = matrix[active][:, active]
        null = torch.linalg.eigh(inner)
        basis = null.eigenvectors[:, null.eigenvalues.abs() < 1e-9]
        down = torch.zeros_like(here)
        down[active] = basis @ (basis.T @ here[active].sign())
        s = here.sign() * down
        times = torch.where(s > 0, here.abs() / s, torch.inf)
        q = int(times.argmin())
        here = here - times[q] * down
        active[q] = False
        here[q] = 0
    assert torch.allclose(path.weights, here, atol=1e-9)
    assert ((path.weights == 0) == ~active).all()


@pytest.mark.parametrize("batch", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("zeros", [0, 1, 30, 55, 60])
def test_exactly_so_many_zeros(zeros: int, batch: float) -> None:
    matrix, w = quadratic()
    w[:2] = w[2:4]  # ties
    path = follow(w, by_cutoff(exact(matrix), 1e-6), zeros=zeros, batch=batch)
    assert int((path.weights == 0).sum()) == zeros == path.zeros
    assert not torch.signbit(path.weights[path.weights == 0]).any()
    if zeros <= 30:
        assert loss(matrix, path.weights, w) < 1e-12 and path.relaxed == 0


def test_several_at_once_are_made_up_for() -> None:
    matrix, w = quadratic()
    flat = by_cutoff(exact(matrix), 1e-6)
    together = follow(w, flat, zeros=20, batch=0.2)
    assert len(together.steps) < 6 and loss(matrix, together.weights, w) < 1e-12


def test_weights_at_zero_stay_zero_on_the_path() -> None:
    matrix, w = quadratic()
    w[5:10] = 0
    path = follow(w, by_cutoff(exact(matrix), 1e-6), zeros=20)
    assert path.zeros == 20 and (path.weights[5:10] == 0).all()
    assert loss(matrix, path.weights, w) < 1e-12


def test_curvature_is_asked_for_again() -> None:
    matrix, w = quadratic()
    asked = []

    def flat(weights: Tensor, active: Tensor) -> FlatSubspace:
        asked.append(int(active.sum()))
        return by_cutoff(exact(matrix * active * active[:, None]), 1e-6)

    path = follow(w, flat, zeros=30, refresh=0.25)
    assert asked == [60, 45] and path.curvatures == 2
    assert loss(matrix, path.weights, w) < 1e-12


def test_refit_is_the_dense_solution_for_the_model() -> None:
    matrix, w = quadratic()
    known = exact(matrix + 0.5 * torch.eye(60).double(), 20)
    flat = by_cutoff(known)
    active = torch.arange(60) % 3 > 0
    model = flat.vectors @ torch.diag(flat.eigenvalues - flat.hidden) @ flat.vectors.T
    model = model + flat.hidden * torch.eye(60).double()
    found = refit(w, active, flat)
    truth = torch.zeros(60).double()
    truth[active] = torch.linalg.solve(model[active][:, active], model[active] @ w)
    assert torch.allclose(found, truth, atol=1e-10) and int((found == 0).sum()) == 20
    none = by_cutoff(exact(torch.zeros(60, 60).double()), 1.0)
    assert torch.equal(refit(w, active, none), torch.where(active, w, 0.0))


def test_a_path_without_an_end_is_refused() -> None:
    matrix, w = quadratic()
    with pytest.raises(EspalierError, match="a path needs an end"):
        follow(w, by_cutoff(exact(matrix)))
    with pytest.raises(EspalierError, match="60 weights cannot have 61 zeros"):
        follow(w, by_cutoff(exact(matrix)), zeros=61)


@pytest.mark.parametrize("zeros", [0, 7, 20])
def test_one_shot_has_exactly_so_many_zeros(zeros: int) -> None:
    matrix, w = quadratic()
    w[:2] = w[2:4]
    found = one_shot(w, by_cutoff(exact(matrix), 1e-6), zeros)
    assert int((found == 0).sum()) == zeros
    with pytest.raises(EspalierError, match=r"can zero at most .* use the path"):
        one_shot(w, by_cutoff(exact(matrix), 1e-6), 60)


def test_rules_draw_the_line_where_they_say() -> None:
    pairs = leading(Matrix(torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0])).double()), 4)
    assert by_cutoff(pairs, 2.0).dimension == 2 and by_cutoff(pairs, 2.0).hidden == 1.0
    assert by_cutoff(pairs, 2.0).gap == pytest.approx(2)
    assert len(by_energy(pairs, 0.6).eigenvalues) == 1
    assert len(by_energy(pairs, 0.61).eigenvalues) == 2
    assert len(by_energy(pairs, 1.0).eigenvalues) == 3
    with pytest.raises(EspalierError, match=r"eigenpairs hold 0.5 of the trace and 0.9 was asked"):
        by_energy(pairs, 0.9, total=20.0)
    with pytest.raises(EspalierError, match=r"a share of the trace is in \(0, 1\], got 1.5"):
        by_energy(pairs, 1.5)
    with pytest.raises(EspalierError, match="cut-off must be 0 or more, got -1"):
        by_cutoff(pairs, -1)
    with pytest.raises(EspalierError, match="filter needs positive mu and time"):
        by_filter(pairs, 0.5, 0)


def test_what_truncation_hides_is_bounded() -> None:
    matrix, _ = quadratic()
    full = torch.linalg.eigvalsh(matrix)
    few = by_cutoff(exact(matrix, 10))
    assert few.hidden >= float(full.flip(0)[10]) and few.gap == 0
    step = few.project(torch.randn(60).double())
    assert float(0.5 * step @ matrix @ step) <= few.hidden_loss(step) + 1e-12
    known = by_cutoff(exact(matrix))
    assert known.model_loss(step) == pytest.approx(float(0.5 * step @ matrix @ step))
    assert set(known.to_dict()) == {"rule", "dimension", "stiff", "gap", "hidden", "eigenvalues"}


@pytest.mark.parametrize(("curvature", "truth"), [(0.02, 0.56), (0.1, 0.13), (0.5, 0.024), (8.0, 0.002)])
def test_kappa_is_what_our_notes_have(curvature: float, truth: float) -> None:
    """At mu = .6, t = 50."""
    assert float(kappa(torch.tensor([curvature]), 0.6, 50.0)) == pytest.approx(truth, rel=0.35, abs=5e-4)


@pytest.mark.parametrize("mu", [0.4, 0.51, 1.0, 1.7])
def test_kappa_is_its_integral(mu: float) -> None:
    from scipy.integrate import quad

    time = 3.0
    for h in (0.0, 0.1, 2.0, 50.0, 160.0, 180.0, 900.0):
        # s = t u^(1/mu) takes the singularity away
        value = quad(
            lambda u, h=h: math.exp(-h * time * (1 - u ** (1 / mu))), 0, 1, limit=500, points=[0.99]
        )[0]
        assert float(kappa(torch.tensor([h]).double(), mu, time)) == pytest.approx(value, rel=1e-5)
    assert float(kappa(torch.tensor([-1.0]), mu, time)) == 1.0


def test_the_soft_filter_weighs_each_direction() -> None:
    values = torch.tensor([8.0, 0.5, 0.02, 0.0]).double()
    flat = by_filter(exact(torch.diag(values)), 0.6, 50.0)
    assert torch.allclose(flat.project(torch.ones(4)), kappa(values, 0.6, 50.0), atol=1e-12)
    assert flat.dimension == pytest.approx(float(kappa(values, 0.6, 50.0).sum()))


def _run(matrix: Tensor, start: Tensor, noise: Tensor, lr: float, c: float, mu: float) -> Tensor:
    """Where gRDA (c = 0: SGD) ends on a quadratic with given gradient noise (n, d)."""
    p = nn.Parameter(start.clone())
    optimizer = GRDA([p], lr=lr, c=c, mu=mu, scope="paper")  # vectors too
    for kick in noise:
        p.grad = matrix @ (p.detach() - start) + kick
        optimizer.step()
    return p.detach()


def _signed(d: int) -> Tensor:
    """Weights far from zero, of both signs."""
    return torch.linspace(5, 9, d).double() * torch.tensor([1.0, -1.0]).repeat(d)[:d]


@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_grda_minus_sgd_is_the_exact_identity_on_a_quadratic(lr: float) -> None:
    """w_n^gRDA - w_n^SGD = - sum_k (I - lr H)^(n-k) (g_k - g_(k-1)) sign(w), nothing truncated."""
    matrix, _ = quadratic(8, 5)
    n, c, mu = 200, 0.01, 0.6
    noise = 0.3 * torch.randn(n, 8, dtype=torch.float64)
    start = _signed(8)
    grda, sgd = (_run(matrix, start, noise, lr, constant, mu) for constant in (c, 0.0))
    signs = start.sign()
    assert torch.equal(grda.sign(), signs)  # what the identity asks for
    law = c * lr ** (mu + 0.5) * torch.arange(n + 1).double() ** mu
    expected = torch.zeros(8).double()
    for k in range(1, n + 1):
        expected = expected - lr * (matrix @ expected) - (law[k] - law[k - 1]) * signs
    assert torch.allclose(grda - sgd, expected, atol=1e-10)
    null = by_cutoff(exact(matrix), 1e-9)
    assert torch.allclose(null.project(grda - sgd), -law[n] * null.project(signs), atol=1e-10)


def test_grda_draws_the_line_by_kappa() -> None:
    """Constant curvature: the displacement along each axis is -lambda kappa_h sign, first order in the step."""
    values = torch.tensor([0.0, 0.02, 0.1, 0.5, 2.0]).double()
    lr, n, c, mu = 0.01, 5000, 0.05, 0.6
    start, noise = _signed(5), torch.zeros(n, 5).double()
    grda, sgd = (_run(torch.diag(values), start, noise, lr, constant, mu) for constant in (c, 0.0))
    measured = -(grda - sgd) * start.sign() / (c * math.sqrt(lr) * (lr * n) ** mu)
    assert torch.allclose(measured, kappa(values, mu, lr * n), atol=2e-4)


def test_the_penalty_outgrows_the_noise_only_for_mu_above_a_half() -> None:
    """In a flat direction: penalty over standard deviation of SGD grows as t^(mu - 1/2)."""
    d, lr = 2000, 0.01
    for mu in (0.4, 0.6):
        found = []
        for n in (100, 400):
            g = torch.Generator().manual_seed(0)
            p = [nn.Parameter(torch.full((d,), 100.0, dtype=torch.float64)) for _ in range(2)]
            optimizers = [GRDA([p[0]], lr=lr, c=0.5, mu=mu, scope="paper"), torch.optim.SGD([p[1]], lr=lr)]
            for _ in range(n):
                kick = torch.randn(d, generator=g, dtype=torch.float64)
                for parameter, optimizer in zip(p, optimizers, strict=True):
                    parameter.grad = kick.clone()
                    optimizer.step()
            found.append(float((p[1] - p[0]).detach().mean()) / float(p[1].detach().std()))
        assert found[1] / found[0] == pytest.approx(4 ** (mu - 0.5), rel=0.08)


def test_regression_finds_the_strength() -> None:
    matrix, w = quadratic()
    s = scores(w, by_cutoff(exact(matrix), 1e-6))
    moved = closed_form(w, s, 0.3)
    pieces = [t.split([20, 40]) for t in (moved, w, s)]
    grda, sgd, split_scores = ({"a": p[0], "b": p[1]} for p in pieces)
    fits = regress(grda, sgd, split_scores)
    assert [fit.name for fit in fits] == ["a", "b", "all"]
    for fit in fits:
        assert fit.slope == pytest.approx(0.3) and fit.correlation == pytest.approx(1)
        assert fit.intercept == pytest.approx(0, abs=1e-12) and fit.error < 1e-7
    assert fits[2].n == int((moved != 0).sum())
    assert regress(grda, sgd, split_scores, alive=False)[2].n == 60
    assert regress(grda, sgd, split_scores, alive=False)[2].slope < 0.3
    assert set(fits[0].to_dict()) >= {"name", "n", "slope"}


def test_regression_refuses_other_networks() -> None:
    one = {"a": torch.ones(3)}
    with pytest.raises(EspalierError, match="the gRDA network has no 'a'"):
        regress({"b": torch.ones(3)}, one, one)
    with pytest.raises(EspalierError, match=r"shape \(2,\) in the SGD network and \(3,\) in the scores"):
        regress(one, {"a": torch.ones(2)}, one)
    assert math.isnan(regress(one, one, one)[0].slope)  # scores that do not vary
