"""Eigenvalues, density and trace against dense truth."""

import math

import pytest
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape import Curvature, Matrix, Risk, density, leading, project, trace
from tests.unit.test_landscape_risk import network, split


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    matrix: Tensor = q @ torch.diag(values) @ q.T
    return matrix


BULK = torch.cat([torch.tensor([50.0, 30.0, 20.0, -8.0]), torch.linspace(0, 1, 196)]).double()


def test_leading_pairs_are_those_of_the_matrix() -> None:
    pairs = leading(Matrix(symmetric(BULK)), 3, tolerance=1e-6)
    assert torch.allclose(pairs.values, torch.tensor([50.0, 30.0, 20.0]).double(), atol=1e-8)
    assert torch.allclose(pairs.vectors.T @ pairs.vectors, torch.eye(3).double(), atol=1e-8)
    assert pairs.converged == (True, True, True) and (pairs.residuals < 1e-4).all()
    assert pairs.products <= 60
    assert leading(Matrix(symmetric(BULK)), 4, which="magnitude").values[-1] < -7.9


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
def test_eigenvalues_of_a_network_are_within_1e_4_of_the_truth(kind: str) -> None:
    risk = Risk(network(), split())
    curvature = Curvature(risk, kind=kind)  # type: ignore[arg-type]
    truth = torch.linalg.eigvalsh(Curvature(Risk(network(), split(), dtype=torch.float64), kind=kind).dense())  # type: ignore[arg-type]
    pairs = leading(curvature, 5)
    assert torch.allclose(pairs.values, truth.flip(0)[:5], atol=1e-4)


def test_iterations_agree_with_the_dense_way_in_float32() -> None:
    matrix = symmetric(BULK).float()
    pairs = leading(Matrix(matrix), 3)
    assert torch.allclose(pairs.values, torch.tensor([50.0, 30.0, 20.0]).double(), atol=1e-3)
    assert pairs.take(2).values.tolist() == pairs.values[:2].tolist()


def test_what_has_not_converged_is_said() -> None:
    flat = Matrix(symmetric(torch.linspace(0, 1, 400).double()))
    with pytest.raises(EspalierError, match=r"of 5 eigenpairs converged in \d+ products .* strict=False"):
        leading(flat, 5, tolerance=1e-9, products=20)
    pairs = leading(flat, 5, tolerance=1e-9, products=20, strict=False)
    assert not any(pairs.converged) and len(pairs.values) == 5
    assert pairs.to_dict()["products"] == 20 and pairs.residuals.min() > 1e-9


def test_too_many_pairs_and_too_few_products_are_refused() -> None:
    with pytest.raises(EspalierError, match="k must be between 1 and the 200 weights, got 201"):
        leading(Matrix(symmetric(BULK)), 201)
    with pytest.raises(EspalierError, match="10 eigenpairs need more than 10 products"):
        leading(Matrix(symmetric(BULK)), 10, products=10)


def test_the_start_vector_is_seeded() -> None:
    one, other = (leading(Matrix(symmetric(BULK)), 2) for _ in range(2))
    assert torch.equal(one.vectors, other.vectors)


def test_products_run_to_the_end_give_every_eigenvalue_once() -> None:
    values = torch.arange(1.0, 101.0, dtype=torch.float64)
    pairs = leading(Matrix(symmetric(values)), 100)
    assert torch.allclose(pairs.values, values.flip(0), atol=1e-8) and pairs.products == 101


def test_equal_eigenvalues_are_found_as_often_as_they_are_there() -> None:
    values = torch.tensor([3.0, 3.0, 2.0, *[0.0] * 97]).double()
    assert leading(Matrix(symmetric(values)), 4).values.tolist() == pytest.approx([3, 3, 2, 0], abs=1e-8)
    assert leading(Matrix(torch.eye(80).double()), 2).values.tolist() == pytest.approx([1, 1])


def test_residuals_are_what_a_product_says() -> None:
    matrix = symmetric(BULK)
    pairs = leading(Matrix(matrix), 3, tolerance=1e-2)
    measured = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert torch.allclose(measured, pairs.residuals, atol=1e-10) and measured.max() > 1e-8


def test_residuals_hold_in_float32_too() -> None:
    matrix = symmetric(BULK).float()
    pairs = leading(Matrix(matrix), 3)
    measured = (matrix.double() @ pairs.vectors.double() - pairs.vectors.double() * pairs.values).norm(dim=0)
    assert (measured <= 3 * pairs.residuals).all() and pairs.residuals.max() < 1e-4 * 50


class Drifting(Matrix):
    """Another matrix at every product."""

    def _product(self, v: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(self.products)
        return super()._product(v) + 0.1 * torch.randn(len(v), generator=g, dtype=v.dtype)


def test_an_operator_that_changes_is_seen_in_the_residuals() -> None:
    with pytest.raises(EspalierError, match="0 of 2 eigenpairs converged"):
        leading(Drifting(symmetric(BULK)), 2)


def test_the_pairs_are_those_of_scipy() -> None:
    from scipy.sparse.linalg import eigsh

    operator = Matrix(symmetric(BULK))
    theirs = eigsh(operator.to_scipy(), 3, which="LA", v0=torch.ones(200).double().numpy())
    spent = operator.products
    pairs = leading(operator, 3, tolerance=1e-8)
    assert torch.allclose(pairs.values, torch.from_numpy(theirs[0]).flip(0), atol=1e-8)
    assert pairs.products <= spent


def test_density_integrates_to_one_and_counts_eigenvalues() -> None:
    found = density(Matrix(symmetric(BULK)), probes=10, steps=40)
    assert found.products == 400
    assert abs(float(torch.trapezoid(found.density, found.grid)) - 1) < 1e-3
    assert (found.error >= 0).all()
    for cutoff, truth in ((10.0, 3), (-4.0, 199)):
        value, error = found.above(cutoff)
        assert abs(value - truth) < 4 * error + 1e-6
    value, error = found.trace
    assert abs(value - float(BULK.sum())) < 4 * error
    assert set(found.to_dict()) >= {"grid", "density", "error", "probes", "trace"}


def test_error_bars_need_two_probes() -> None:
    with pytest.raises(EspalierError, match="error bars need at least 2 probes"):
        density(Matrix(symmetric(BULK)), probes=1)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_trace_is_within_its_error(method: str) -> None:
    state = torch.get_rng_state()
    found = trace(Matrix(symmetric(BULK)), method=method, products=30, repeats=8)  # type: ignore[arg-type]
    assert found.products == 240 and found.repeats == 8
    assert abs(found.value - float(BULK.sum())) < 4 * found.error
    assert torch.equal(state, torch.get_rng_state())


def test_bad_numbers_for_the_trace_are_refused() -> None:
    matrix = Matrix(symmetric(BULK))
    with pytest.raises(EspalierError, match="products in threes"):
        trace(matrix, products=10)
    with pytest.raises(EspalierError, match="give no estimate in 200 dimensions"):
        trace(matrix, products=300)
    with pytest.raises(EspalierError, match="trace method 'exact' is unknown"):
        trace(matrix, method="exact")  # type: ignore[arg-type]


def test_projection_of_known_vectors() -> None:
    matrix = torch.diag(torch.tensor([5.0, 4.0, *[0.1] * 98])).double()
    pairs = leading(Matrix(matrix), 2)
    inside, half = torch.zeros(100).double(), torch.zeros(100).double()
    inside[1], half[0], half[50] = 3.0, 1.0, 1.0
    first, second = project(pairs, {"inside": inside, "half": half})
    assert first.share == pytest.approx(1) and first.norm == 3 and first.curvature == pytest.approx(4)
    assert second.share == pytest.approx(math.sqrt(0.5)) and second.along[0] == pytest.approx(math.sqrt(0.5))
    assert second.baseline == pytest.approx(math.sqrt(2 / 100)) and second.ratio == pytest.approx(5)
    assert second.to_dict()["name"] == "half"


def test_the_baseline_is_that_of_random_directions() -> None:
    pairs = leading(Matrix(torch.diag(torch.linspace(1, 0, 80).double())), 5, tolerance=1e-3)
    g = torch.Generator().manual_seed(0)
    shares = project(pairs, {str(i): torch.randn(80, generator=g).double() for i in range(500)})
    squares = sum(s.share**2 for s in shares) / 500
    assert math.sqrt(squares) == pytest.approx(shares[0].baseline, rel=0.05)
    low, high = shares[0].interval
    assert 0.92 < sum(low < s.share < high for s in shares) / 500 < 0.98


def test_vectors_without_direction_are_refused() -> None:
    pairs = leading(Matrix(torch.diag(torch.linspace(1, 0, 80).double())), 2)
    with pytest.raises(EspalierError, match="zero everywhere, so it has no direction"):
        project(pairs, {"A - B": torch.zeros(80)})
    with pytest.raises(EspalierError, match=r"a vector \(80,\) was needed"):
        project(pairs, {"A - B": torch.zeros(8)})
