"""The leading eigenpairs of curvature, each with how wrong it may be."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.data import seeded
from espalier.landscape.lanczos import Lanczos
from espalier.landscape.operators import AbstractOperator

Which = Literal["algebraic", "magnitude"]
_SMALL = 64  # dimension up to which the whole matrix costs no more than an iteration


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Leading eigenpairs of a symmetric operator.

    Args:
        values: float64 (k,), the largest first.
        vectors: (d, k), orthonormal columns on the operator's device.
        residuals: float64 (k,), ||A u - value u||: some eigenvalue lies within that distance. What rounding adds to
            them is measured, by one product.
        tolerance: residual over the largest |value| up to which a pair counts as converged.
        products: matrix-vector products it took.
        dimension: d.
        which: "algebraic" or "magnitude".
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor = field(repr=False)
    tolerance: float
    products: int
    dimension: int
    which: Which = "algebraic"

    @property
    def converged(self) -> tuple[bool, ...]:
        """Which pairs are within the tolerance."""
        scale = float(self.values.abs().max()) if len(self.values) else 0.0
        return tuple(bool(r <= self.tolerance * scale) for r in self.residuals)

    def take(self, count: int) -> "Eigenpairs":
        """The first `count` pairs."""
        return Eigenpairs(
            self.values[:count],
            self.vectors[:, :count],
            self.residuals[:count],
            self.tolerance,
            self.products,
            self.dimension,
            self.which,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the vectors, for JSON."""
        return {
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": list(self.converged),
            "tolerance": self.tolerance,
            "products": self.products,
            "dimension": self.dimension,
            "which": self.which,
        }


def leading(
    operator: AbstractOperator,
    k: int = 10,
    *,
    tolerance: float = 1e-3,
    products: int | None = None,
    which: Which = "algebraic",
    seed: int = 0,
    strict: bool = True,
) -> Eigenpairs:
    """The k leading eigenpairs, by a Lanczos iteration that ends as soon as they have converged.

    No restarts: a product costs as much as some gradients over all data, and a restart throws half of them away
    (which is why this is not SciPy's `eigsh`; the tests compare with it). One vector is kept for each product.
    An eigenvalue is closer to the truth than its residual: within residual^2 / gap for one that stands alone.
    The iteration's own residuals know nothing of rounding, or of an operator that is not the same at every product:
    a last product, with the sum of the vectors found, shows how far they are off, and that is added to each.

    Args:
        operator: symmetric; up to dimension 64 it is made dense, d products.
        k: pairs, between 1 and d.
        tolerance: residual allowed, relative to the largest |eigenvalue| found; float32 gets to about 1e-5.
        products: matrix-vector products allowed; None allows 30 k, at least 300.
        which: the largest by "algebraic" value or by "magnitude".
        seed: of the start vector.
        strict: raise where a pair has not converged; False returns it, with `converged` saying so.

    Raises:
        EspalierError: k out of range, fewer products than pairs, or not converged (and `strict`).

    References:
        Parlett, "The Symmetric Eigenvalue Problem" (1980), chapter 13: residuals from the last components.
    """
    d = operator.dimension
    if not 1 <= k <= d:
        raise EspalierError(f"k must be between 1 and the {d:,} weights, got {k}")
    allowed = max(300, 30 * k) if products is None else products
    if allowed <= k < d:
        raise EspalierError(f"{k} eigenpairs need more than {allowed} products; allow {6 * k}")
    before = operator.products
    if d <= _SMALL:
        values, vectors, residuals = _dense(operator, k, which)
    else:
        values, vectors, residuals = _iterate(operator, k, tolerance, min(allowed - 1, d), which, seed)
    pairs = Eigenpairs(values, vectors, residuals, tolerance, operator.products - before, d, which)
    reached = sum(pairs.converged)
    if strict and reached < k:
        worst = float(pairs.residuals.max() / pairs.values.abs().max())
        raise EspalierError(
            f"only {reached} of {k} eigenpairs converged in {pairs.products} products (worst relative residual "
            f"{worst:.2g}, needed {tolerance:g}): allow more products, ask for fewer pairs or a larger tolerance, "
            "compute in float64 if rounding is in the way, or give strict=False to get them with their residuals"
        )
    return pairs


Triple = tuple[Tensor, Tensor, Tensor]  # values, vectors, residuals


def _first(values: Tensor, k: int, which: Which) -> Tensor:
    return (values.abs() if which == "magnitude" else values).argsort(descending=True)[:k]


def _dense(operator: AbstractOperator, k: int, which: Which) -> Triple:
    matrix = operator.dense().double()
    values, vectors = torch.linalg.eigh(matrix)
    order = _first(values, k, which)
    values, vectors = values[order], vectors[:, order]
    return values.cpu(), vectors.to(operator.dtype), (matrix @ vectors - vectors * values).norm(dim=0).cpu()


def _iterate(
    operator: AbstractOperator, k: int, tolerance: float, allowed: int, which: Which, seed: int
) -> Triple:
    generator = seeded("eigenpairs", seed)
    run = Lanczos(operator, torch.randn(operator.dimension, generator=generator, dtype=torch.float64))
    while True:
        closed = run.step()
        m = run.steps
        last = m >= allowed
        if m >= k and (last or closed or m % 3 == 0):
            values, inner = run.ritz()
            order = _first(values, k, which)
            residuals = run.next_size * inner[-1, order].abs()
            if last or bool((residuals <= tolerance * values.abs().max()).all()):
                return _checked(operator, run, values[order], inner[:, order], residuals)
        if closed:  # an invariant space: look for what is outside it
            run.begin(torch.randn(operator.dimension, generator=generator, dtype=torch.float64))


def _checked(
    operator: AbstractOperator, run: "Lanczos", values: Tensor, inner: Tensor, residuals: Tensor
) -> Triple:
    """The pairs, their residuals with what a product with the sum of their vectors says beside what it should say."""
    vectors = run.vectors(inner)
    mix = torch.full_like(values, len(values) ** -0.5)
    there = vectors.to(torch.float64)
    expected = there @ (values * mix).to(there.device)
    expected += run.next_size * float(inner[-1] @ mix) * run.next
    found = operator @ (there @ mix.to(there.device))
    off = float((found.double() - expected).norm())
    return values, vectors, torch.hypot(residuals, torch.full_like(residuals, off))
