"""The proximal maps are what their docstrings say, for any finite input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from espalier.optim import elastic_net, hard_threshold, soft_threshold

relaxed = settings(deadline=None, max_examples=60)
entries = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
vectors = st.lists(entries, min_size=1, max_size=20).map(lambda x: torch.tensor(x, dtype=torch.float64))
levels = st.floats(0, 1e6, width=32) | st.sampled_from([0.0, 1.0])


@relaxed
@given(vectors, levels)
def test_soft_keeps_signs_and_makes_positive_zeros(v: Tensor, g: float) -> None:
    w = soft_threshold(v, g)
    assert torch.isfinite(w).all()
    assert (w.sign() * v.sign() >= 0).all()
    assert torch.equal(w == 0, v.abs() <= g)
    assert not torch.signbit(w[(w == 0) & (g > 0)]).any()
    torch.testing.assert_close(w.abs(), (v.abs() - g).clamp(min=0))


@relaxed
@given(vectors)
def test_level_zero_is_the_identity(v: Tensor) -> None:
    assert torch.equal(soft_threshold(v, 0.0), v)
    assert torch.equal(soft_threshold(v, torch.zeros(())), v)
    assert torch.equal(elastic_net(v, 0.0, 0.0), v)
    assert torch.equal(hard_threshold(v, 0.0), v)


@relaxed
@given(vectors, levels, st.floats(0, 10))
def test_non_expansive(v: Tensor, g: float, k: float) -> None:
    u = v.flip(0)
    for prox in (lambda x: soft_threshold(x, g), lambda x: elastic_net(x, g, k)):
        assert ((prox(v) - prox(u)).abs() <= (v - u).abs() * (1 + 1e-12) + 1e-9).all()


@relaxed
@given(vectors, levels)
def test_number_and_tensor_thresholds_and_out_agree(v: Tensor, g: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x = v.to(dtype)
        expected = soft_threshold(x, g)
        assert torch.equal(soft_threshold(x, torch.tensor(g, dtype=dtype)), expected)
        assert torch.equal(soft_threshold(x, g, out=torch.empty_like(x)), expected)
        half = torch.empty_like(x, dtype=torch.bfloat16)
        assert torch.equal(soft_threshold(x, g, out=half), expected.bfloat16())


@relaxed
@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 2))
def test_minimizers_by_brute_force(v: float, g: float, k: float) -> None:
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    point = torch.tensor([v], dtype=torch.float64)

    def l1(w: Tensor) -> Tensor:
        return 0.5 * (w - v) ** 2 + g * w.abs()

    def net(w: Tensor) -> Tensor:
        return l1(w) + 0.5 * k * w**2

    def l0(w: Tensor) -> Tensor:
        return 0.5 * (w - v) ** 2 + 0.5 * g**2 * (w != 0).double()

    grid = torch.cat([grid, point, torch.zeros(1, dtype=torch.float64)])
    assert l1(soft_threshold(point, g)) <= l1(grid).min() + 1e-12
    assert net(elastic_net(point, g, k)) <= net(grid).min() + 1e-12
    assert l0(hard_threshold(point, g)) <= l0(grid).min() + 1e-12


def test_nan_is_never_a_zero() -> None:
    x = torch.tensor([float("nan"), 0.5])
    for threshold in (1.0, torch.tensor(1.0)):
        assert torch.isnan(soft_threshold(x, threshold)).tolist() == [True, False]
