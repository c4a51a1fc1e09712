"""That the optimizer is the paper's algorithm, and what follows from it on quadratics."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import hyp1f1
from torch import Tensor
from torch.nn import Parameter

from espalier.optim import (
    GRDA,
    RDA,
    DualAveraging,
    Lasso,
    LinearLaw,
    PowerLaw,
    ProxSGD,
    TimePowerLaw,
    soft_threshold,
)
from tests.reference import grda

DROPS = [0.1] * 100 + [0.01] * 100 + [0.001] * 100


def noisy_quadratic(dim: int, seed: int = 0):
    """Gradients A w - b + noise(n): the same numbers whoever asks."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    a, b = root @ root.T / dim, rng.normal(size=dim)
    noise = rng.normal(size=(1000, dim))
    return lambda n, w: list(a @ np.asarray(w, dtype=np.float64) - b + noise[n])


def run(optimizer, w: Parameter, gradient, rates) -> list[Tensor]:
    path = []
    for n, rate in enumerate(rates, start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        w.grad = torch.tensor(gradient(n, w.detach().double().flatten().numpy()), dtype=w.dtype).view_as(w)
        optimizer.step()
        path.append(w.detach().double().flatten().clone())
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("c", "mu"), [(0.05, 0.51), (0.2, 0.7), (0.01, 0.4)])
def test_300_steps_with_rate_drops_equal_algorithm_2(dtype, tolerance, c, mu) -> None:
    noise = np.random.default_rng(1).normal(size=(301, 12))
    start = torch.randn(3, 4, dtype=torch.float64)
    start = start.float().double()  # both dtypes start from the same numbers
    given = lambda n, w: list(noise[n].astype(np.float32).astype(np.float64))  # noqa: E731
    expected = grda.algorithm_2(start.flatten().tolist(), given, DROPS, c, mu)
    w = Parameter(start.to(dtype))
    found = run(GRDA([w], 0.1, c, mu), w, given, DROPS)
    difference = max(
        float((f - torch.tensor(e, dtype=torch.float64)).abs().max()) for f, e in zip(found, expected)
    )
    assert difference <= tolerance * max(1.0, float(w.detach().abs().max()))
    assert any((f == 0).any() for f in found)


@pytest.mark.parametrize("mu", [0.4, 0.51, 1.0])
def test_feedback_at_constant_rate_equals_algorithm_1(mu) -> None:
    gradient = noisy_quadratic(12)
    start = torch.randn(12, 1, dtype=torch.float64)
    expected = grda.algorithm_1(start.flatten().tolist(), gradient, 0.05, 300, 0.1, mu)
    w = Parameter(start.clone())
    found = run(GRDA([w], 0.05, 0.1, mu), w, gradient, [0.05] * 300)
    torch.testing.assert_close(
        torch.stack(found), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.01, "momentum": 0.5},
        {"maximize": True, "weight_decay": 0.01},
    ],
)
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_c_zero_is_sgd_bit_for_bit(options, foreach, dtype) -> None:
    shapes = [(257, 300), (5,), (3, 3, 3)]
    ours = [Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    theirs = [Parameter(w.detach().clone()) for w in ours]
    a = GRDA(ours, 0.1, 0.0, 0.51, scope="paper", foreach=foreach, **options)
    b = torch.optim.SGD(theirs, 0.1, **options)
    for n in range(10):
        for group in (*a.param_groups, *b.param_groups):
            group["lr"] = 0.1 if n < 5 else 0.01
        for w, u in zip(ours, theirs):
            w.grad = torch.randn_like(w)
            u.grad = w.grad.clone()
        a.step()
        b.step()
    assert all(torch.equal(w, u) for w, u in zip(ours, theirs))


def test_exact_identity_on_a_quadratic() -> None:
    """w_gRDA - w_SGD = -sum_k (I - gamma H)^(n-k) (g_k - g_(k-1)) sign(w), with common noise, nothing truncated."""
    dim, steps, rate, c, mu = 20, 200, 0.05, 0.01, 0.6
    q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    h = q @ torch.diag(torch.cat([torch.zeros(12), torch.linspace(0.1, 3, 8)]).double()) @ q.T
    center = torch.randn(dim, dtype=torch.float64).sign() * 5
    start = center + 0.1 * torch.randn(dim, dtype=torch.float64)
    w, u = Parameter(start.clone()[:, None]), Parameter(start.clone()[:, None])
    a, b = GRDA([w], rate, c, mu), torch.optim.SGD([u], rate)
    g = [c * rate ** (mu + 0.5) * n**mu for n in range(steps + 1)]
    for _ in range(steps):
        noise = 0.1 * torch.randn(dim, 1, dtype=torch.float64)
        for p in (w, u):
            p.grad = h @ (p.detach() - center[:, None]) + noise
        a.step()
        b.step()
    step = torch.eye(dim, dtype=torch.float64) - rate * h
    move = torch.zeros(dim, dtype=torch.float64)
    for k in range(1, steps + 1):  # Horner's scheme for the sum
        move = step @ move - (g[k] - g[k - 1]) * center.sign()
    torch.testing.assert_close((w - u).detach()[:, 0], move, rtol=0, atol=1e-10)
    flat = q[:, :12] @ q[:, :12].T
    torch.testing.assert_close(
        flat @ (w - u).detach()[:, 0], -g[-1] * flat @ center.sign(), rtol=0, atol=1e-10
    )


def test_filter_of_a_direction_is_kummers_function() -> None:
    """Along curvature h the shrinkage relative to a flat direction is M(1, 1 + mu, -h t) as the rate goes to 0."""
    rate, steps, c, mu = 0.01, 2000, 0.01, 0.6
    h = torch.tensor([0.0, 0.02, 0.1, 0.5, 8.0], dtype=torch.float64)
    center = torch.full((5,), 10.0, dtype=torch.float64)
    w = Parameter(center.clone()[:, None])
    optimizer = GRDA([w], rate, c, mu)
    for _ in range(steps):
        w.grad = h[:, None] * (w.detach() - center[:, None])
        optimizer.step()
    moved = (center - w.detach()[:, 0]).numpy()
    expected = hyp1f1(1, 1 + mu, -h.numpy() * rate * steps)
    np.testing.assert_allclose(moved / moved[0], expected, atol=1e-3)


def test_the_penalty_outgrows_the_noise_only_above_one_half() -> None:
    """Threshold / sd of the noise in a flat direction is (c / sigma) t^(mu - 1/2): falls at mu .4, grows at .6."""
    for mu, grows in ((0.4, False), (0.6, True)):
        ratios = []
        w = Parameter(torch.zeros(2000, 1, dtype=torch.float64))
        optimizer = GRDA([w], 0.1, 0.5, mu)
        for n in range(1, 1001):
            w.grad = torch.randn_like(w)
            optimizer.step()
            if n in (10, 1000):
                spread = float(optimizer.state[w]["latent"].std())
                ratios.append(optimizer.param_groups[0]["threshold"] / spread)
                assert ratios[-1] == pytest.approx(0.5 * (n * 0.1) ** (mu - 0.5), rel=0.08)
        assert (ratios[1] > ratios[0]) is grows


def test_threshold_never_falls_and_still_grows_at_a_thousandth() -> None:
    w = Parameter(torch.ones(2, 2))
    optimizer = GRDA([w], 0.1, 0.005, 0.55)
    levels = []
    for n in range(30_000):
        rate = 0.1 if n < 10_000 else 0.01 if n < 20_000 else 0.001
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()  # no gradient: the clock runs all the same
        levels.append(optimizer.param_groups[0]["threshold"])
    assert all(after > before for before, after in itertools.pairwise(levels))
    expected = 0.005 * 0.001**1.05 * (30_000**0.55 - 20_000**0.55)
    assert levels[-1] - levels[19_999] == pytest.approx(expected, rel=1e-6)


def test_time_law_equals_the_power_law_at_a_constant_rate() -> None:
    w, u = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    a = DualAveraging([w], 0.1, law=PowerLaw(0.1, 0.6))
    b = DualAveraging([u], 0.1, law=TimePowerLaw(0.1, 0.6))
    for _ in range(50):
        a.step()
        b.step()
    assert a.param_groups[0]["threshold"] == pytest.approx(b.param_groups[0]["threshold"], rel=1e-12)
    for _ in range(50):
        for optimizer in (a, b):
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    level = 0.1 * (0.1**0.5 * 5.0**0.6 + 0.01**0.5 * (5.5**0.6 - 5.0**0.6))
    assert b.param_groups[0]["threshold"] == pytest.approx(level, rel=1e-12)


def test_linear_law_is_classical_rda() -> None:
    """Xiao (2010): w = argmin <mean gradient, w> + lambda |w|_1 + |w|^2 / (2 gamma n), from zero."""
    rate, penalty = 0.05, 0.3
    gradient = noisy_quadratic(8)
    w = Parameter(torch.zeros(8, 1, dtype=torch.float64))
    optimizer = RDA([w], rate, penalty)
    total, zeros = torch.zeros(8, dtype=torch.float64), 0
    for n in range(1, 101):
        grad = torch.tensor(gradient(n, w.detach().flatten().numpy()), dtype=torch.float64)
        total += grad
        w.grad = grad[:, None]
        optimizer.step()
        expected = -rate * n * soft_threshold(total / n, penalty)
        torch.testing.assert_close(w.detach()[:, 0], expected, rtol=0, atol=1e-12)
        zeros += int((w == 0).sum())
    assert zeros


def test_momentum_has_the_effective_rate() -> None:
    """A constant gradient moves the latent by lr / (1 - m) a step in the limit; the threshold is that rate's."""
    w = Parameter(torch.ones(2, 2))
    optimizer = GRDA([w], 0.01, 0.1, 0.6, momentum=0.9)
    for _ in range(10):
        optimizer.step()
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(0.1 * 0.1**0.5 * (10 * 0.1) ** 0.6)
    assert optimizer.param_groups[0]["time"] == pytest.approx(1.0)


def test_prox_sgd_reaches_the_lasso_solution() -> None:
    """argmin 1/2 |w - b|^2 + lambda |w|_1 is the soft threshold of b; no latent is kept."""
    b = torch.tensor([[2.0, -0.5, 0.2, -3.0]], dtype=torch.float64)
    w = Parameter(torch.ones_like(b))
    optimizer = ProxSGD([w], 0.1, penalty=0.6)
    for _ in range(400):
        w.grad = w.detach() - b
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([[1.4, 0.0, 0.0, -2.4]], dtype=torch.float64))
    assert "latent" not in optimizer.state[w]


def test_adam_type_step_without_threshold_is_adamw() -> None:
    w = Parameter(torch.randn(4, 5))
    u = Parameter(w.detach().clone())
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    a = GRDA([w], 0.01, 0.0, 0.5, decay="decoupled", **options)
    b = torch.optim.AdamW([u], 0.01, **options)
    for _ in range(20):
        w.grad = torch.randn_like(w)
        u.grad = w.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(w, u, rtol=1e-6, atol=1e-7)


def test_decoupled_decay_shrinks_the_latent_and_prox_decay_the_weight() -> None:
    for decay, latent, weight in (("decoupled", 0.9, 0.8), ("prox", 1.0, 0.9 / 1.1)):
        w = Parameter(torch.ones(1, 1, dtype=torch.float64))
        optimizer = DualAveraging([w], 0.1, law=LinearLaw(1.0), weight_decay=1.0, decay=decay)  # type: ignore[arg-type]
        w.grad = torch.zeros_like(w)
        optimizer.step()
        assert optimizer.state[w]["latent"].item() == pytest.approx(latent)
        assert w.item() == pytest.approx(weight)


def test_prox_decay_is_dual_averaging_of_the_penalized_problem() -> None:
    """w_n = argmin <sum of gamma g, w> + 1/2 |w - w_0|^2 + g_n |w|_1 + wd t_n / 2 |w|^2, checked by its gradient."""
    w = Parameter(torch.randn(30, 1, dtype=torch.float64))
    start, total = w.detach().clone(), torch.zeros(30, 1, dtype=torch.float64)
    optimizer = RDA([w], 0.1, 0.2, weight_decay=0.3, decay="prox")
    for n in range(1, 20):
        w.grad = torch.randn_like(w)
        total += 0.1 * w.grad
        optimizer.step()
        x = w.detach()
        smooth = total + (x - start) + 0.3 * 0.1 * n * x
        level = 0.2 * 0.1 * n
        torch.testing.assert_close(smooth[x != 0], -level * x.sign()[x != 0])
        assert (smooth[x == 0].abs() <= level + 1e-12).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("penalty", [0.0, 0.2])
def test_prox_decay_weighs_the_same_whatever_the_momentum(momentum, penalty) -> None:
    """The minimum of (w - 1)^2 / 2 + w^2 / 2 + penalty |w|, without threshold, under the lasso, and once frozen."""
    options = {"weight_decay": 1.0, "decay": "prox", "momentum": momentum}
    w, dense, fixed = (Parameter(torch.full((1, 1), 0.3, dtype=torch.float64)) for _ in range(3))
    lasso = DualAveraging([w], 0.01, law=Lasso(penalty), **options)
    lasso.add_param_group({"params": [dense], "prune": False})
    frozen = DualAveraging([fixed], 0.01, law=LinearLaw(0.0), **options)
    frozen.freeze()
    for _ in range(2000):
        for p in (w, dense, fixed):
            p.grad = p.detach() - 1
        lasso.step()
        frozen.step()
    assert w.item() == pytest.approx((1 - penalty) / 2, abs=1e-6)
    assert dense.item() == pytest.approx(0.5, abs=1e-6) and fixed.item() == pytest.approx(0.5, abs=1e-6)


def test_threshold_by_hand() -> None:
    w = Parameter(torch.tensor([[0.5, -0.1]]))
    optimizer = GRDA([w], lr=0.25, c=0.8, mu=0.5)
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(0.8 * math.sqrt(0.25) * math.sqrt(0.25))
    torch.testing.assert_close(w.detach(), torch.tensor([[0.05, -0.15]]))
