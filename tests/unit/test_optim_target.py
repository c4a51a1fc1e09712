"""Target sparsity: exact at the end, near the schedule before, whatever the latents."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from espalier.optim import (
    CUBIC,
    GRDA,
    ConstantLaw,
    DualAveraging,
    MaskReport,
    PowerLaw,
    TargetSparsity,
    TensorMask,
    soft_threshold,
)
from espalier.optim import _quantile as quantile


def zeros(parameters) -> int:
    return sum(int((p == 0).sum()) for p in parameters)


def train(optimizer, parameters, steps, still=False) -> None:
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.zeros_like(p) if still else torch.randn_like(p)
        optimizer.step()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.lists(st.sampled_from([-2.0, -1.0, 1.0, 1.5, 3.0]), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 0.99),
)
def test_exact_zeros_with_ties(rows, sparsity) -> None:
    """Weights of few values and no gradient: the cut goes through ties, and is by (parameter order, index)."""
    parameters = [Parameter(torch.tensor([row])) for row in rows]
    start = [p.detach().clone() for p in parameters]
    optimizer = DualAveraging(parameters, 0.1, law=TargetSparsity(sparsity, 3))
    train(optimizer, parameters, 3, still=True)
    flat = torch.cat(start, 1)[0]
    expected = torch.ones_like(flat, dtype=torch.bool)
    expected[flat.abs().argsort(stable=True)[: round(sparsity * flat.numel())]] = False
    assert torch.equal(torch.cat([p.detach() for p in parameters], 1)[0] != 0, expected)
    train(optimizer, parameters, 2)
    assert zeros(parameters) == round(sparsity * flat.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"betas": (0.9, 0.99)}, {"weight_decay": 0.1, "decay": "prox"}]
)
def test_follows_the_schedule_and_ends_exact(dtype, options) -> None:
    parameters = [Parameter(torch.randn(shape, dtype=dtype)) for shape in ((60, 50), (40, 7, 3, 3), (9,))]
    law = TargetSparsity(0.93, 60, warmup=10)
    optimizer = DualAveraging(parameters, 0.003, law=law, **options)
    total = 60 * 50 + 40 * 63
    train(optimizer, parameters, 10)
    assert zeros(parameters) <= 5
    for step in range(11, 60):
        train(optimizer, parameters, 1)
        assert zeros(parameters) / total == pytest.approx(0.93 * CUBIC.fraction((step - 10) / 50), abs=0.02)
    train(optimizer, parameters, 1)
    assert zeros(parameters) == round(0.93 * total)
    assert optimizer.frozen
    masks = [p == 0 for p in parameters]
    train(optimizer, parameters, 5)
    assert all(torch.equal(p == 0, mask) for p, mask in zip(parameters, masks))


def test_an_allocation_gives_every_tensor_its_count() -> None:
    a, b = Parameter(torch.randn(20, 10)), Parameter(torch.randn(30, 10) * 5)
    law = TargetSparsity(0.8, 20, kept={"a": 10, "b": 90})
    optimizer = DualAveraging([("a", a), ("b", b)], 0.01, law=law)
    train(optimizer, [a, b], 20)
    assert [zeros([p]) for p in (a, b)] == [190, 210]


def test_no_tensor_collapses_below_its_floor() -> None:
    small, large = Parameter(torch.randn(10, 10) * 1e-3), Parameter(torch.randn(100, 10))
    optimizer = DualAveraging([small, large], 1e-5, law=TargetSparsity(0.9, 50), min_kept=0.05)
    for _ in range(50):
        train(optimizer, [small, large], 1)
        assert zeros([small]) <= 96  # the ramp's search is approximate
    assert [zeros([p]) for p in (small, large)] == [95, 895]


def test_a_floor_is_the_decimal_that_was_written() -> None:
    """0.07 * 100 is 7.000000000000001 in floats; seven entries are enough."""
    w = Parameter(torch.randn(10, 10))
    optimizer = DualAveraging([w], 1e-5, law=TargetSparsity(0.93, 3), min_kept=0.07)
    train(optimizer, [w], 3)
    assert zeros([w]) == 93


def test_the_guard_holds_for_a_law_of_the_clock() -> None:
    w = Parameter(torch.randn(100, 30))
    optimizer = GRDA([w], 1e-3, c=1e4, mu=0.5, min_kept=0.2)
    train(optimizer, [w], 40)
    assert zeros([w]) == pytest.approx(2400, abs=30)


def test_groups_with_one_target_are_one_pool() -> None:
    a, b = Parameter(torch.randn(20, 10)), Parameter(torch.randn(20, 10) * 10)
    optimizer = DualAveraging(
        [{"params": [a]}, {"params": [b], "lr": 1e-4}], 1e-3, law=TargetSparsity(0.5, 10)
    )
    train(optimizer, [a, b], 10)
    assert zeros([a, b]) == 200
    assert zeros([a]) > 160


def test_a_parameter_without_gradients_counts_at_the_end() -> None:
    a, b = Parameter(torch.randn(20, 10)), Parameter(torch.randn(20, 10))
    fixed = Parameter(torch.randn(20, 10), requires_grad=False)
    optimizer = DualAveraging([a, b, fixed], 1e-3, law=TargetSparsity(0.5, 10))
    train(optimizer, [a], 10)
    assert zeros([a, b]) == 200
    assert zeros([b]) > 50
    assert zeros([fixed]) == 0


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"momentum": 0.9}, {"betas": (0.9, 0.99)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rescaled_units_keep_their_norm(options, dtype) -> None:
    """Every step writes alpha_i S_g(v_ij); the scale that a unit has when the mask is fixed stays in its weights."""
    shapes = ((40, 30), (20, 6, 3, 3), (300, 400))
    weights = [Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = DualAveraging(weights, 0.01, law=TargetSparsity(0.9, 30, warmup=5, rescale=True), **options)
    for step in range(1, 30):
        train(optimizer, weights, 1)
        for w in weights:
            latent, cut = optimizer.state[w]["latent"], optimizer.state[w].get("threshold", 0.0)
            left = latent.abs().where(latent.abs() > cut, 0.0).flatten(1).sum(1)
            share = left / latent.abs().flatten(1).sum(1)
            alpha = (1.01 / (share + 0.01)).view(-1, *[1] * (w.ndim - 1)) if step > 5 else 1.0
            expected = alpha * soft_threshold(latent, cut)
            torch.testing.assert_close(
                w.detach().float(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
            )
    unscaled = [
        soft_threshold(optimizer.state[w]["latent"], optimizer.state[w]["threshold"]) for w in weights
    ]
    train(optimizer, weights, 1)
    assert zeros(weights) == round(0.9 * sum(w.numel() for w in weights))
    for w, small in zip(weights, unscaled, strict=True):
        assert w.detach().abs().sum() > 1.5 * small.abs().sum()
    train(optimizer, weights, 3)
    assert zeros(weights) == round(0.9 * sum(w.numel() for w in weights))


def test_weights_without_a_gradient_are_not_rescaled_again() -> None:
    still, moving = Parameter(torch.randn(30, 40)), Parameter(torch.randn(30, 40))
    optimizer = DualAveraging([still, moving], 0.01, law=TargetSparsity(0.9, 50, rescale=True))
    train(optimizer, [still, moving], 20)
    before, still.grad = still.detach().clone(), None
    train(optimizer, [moving], 5)
    assert torch.equal(still, before)


def test_mask_report_counts_churn() -> None:
    w = Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = DualAveraging([("w", w)], 1.0, law=PowerLaw(0.0, 0.5), freeze_below=0.3)
    train(optimizer, [w], 1, still=True)
    assert optimizer.mask_report() == MaskReport({"w": TensorMask(4, 0, 0, 0)}, first=True, frozen=False)
    optimizer.state[w]["latent"].copy_(torch.tensor([[0.0, 0.0, 3.0, 4.0]]))
    train(optimizer, [w], 1, still=True)
    report = optimizer.mask_report()
    assert (report.zeros, report.pruned, report.regrown, report.churn, report.overlap) == (2, 2, 0, 0.5, 0.5)
    optimizer.state[w]["latent"].copy_(torch.tensor([[1.0, 0.0, 3.0, 4.0]]))
    train(optimizer, [w], 1, still=True)
    report = optimizer.mask_report()
    assert (report.sparsity, report.pruned, report.regrown, report.frozen) == (0.25, 0, 1, True)
    assert optimizer.frozen
    assert report.overlap == pytest.approx(2 / 3)
    train(optimizer, [w], 3)
    assert zeros([w]) == 1


def test_coarse_weights_frozen_before_their_first_step_still_take_small_steps() -> None:
    w = Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = GRDA([w], 1.0, 0.0, 0.5)
    optimizer.freeze()
    for _ in range(10):  # each is less than half the spacing of bfloat16 below 1
        w.grad = torch.full_like(w, 0.001)
        optimizer.step()
    assert (w.float() - 0.99).abs().max() < 0.003


def test_a_law_given_later_takes_over_from_a_target() -> None:
    w = Parameter(torch.arange(1.0, 11.0).view(2, 5))
    optimizer = DualAveraging([w], 0.1, law=TargetSparsity(0.5, 2))
    train(optimizer, [w], 1, still=True)
    assert zeros([w]) > 0
    optimizer.param_groups[0]["law"] = ConstantLaw(0.5)
    train(optimizer, [w], 1, still=True)
    assert torch.equal(w.detach(), torch.arange(1.0, 11.0).view(2, 5) - 0.5)


def test_restart_begins_again_at_the_weights() -> None:
    w = Parameter(torch.ones(2, 2))
    optimizer = GRDA([w], 0.1, c=1.0, mu=0.5)
    train(optimizer, [w], 5)
    with torch.no_grad():
        w.fill_(7.0)
    optimizer.restart()
    train(optimizer, [w], 1, still=True)
    assert optimizer.param_groups[0]["steps"] == 1
    torch.testing.assert_close(optimizer.state[w]["latent"], torch.full((2, 2), 7.0))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50), st.booleans(), st.data())
def test_exact_selection_is_a_stable_sort(entries, double, data) -> None:
    value = torch.tensor(entries, dtype=torch.float64 if double else torch.float32)
    count = data.draw(st.integers(0, len(entries)))
    ((chosen, _),) = quantile.exact_selection([value], torch.tensor([count]), [value])
    expected = torch.zeros(len(entries), dtype=torch.bool)
    expected[value.abs().argsort(stable=True)[:count]] = True
    assert torch.equal(chosen, expected)


def test_coarse_quantile_is_close() -> None:
    values = torch.randn(100_000)
    cumulative = quantile.coarse_counts([values], [1], [values]).cumsum(1)
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        found = quantile.quantile(cumulative, torch.tensor([share * 100_000], dtype=torch.float64))
        assert (values.abs() <= found).float().mean().item() == pytest.approx(share, abs=2e-3)
