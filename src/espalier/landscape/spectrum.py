"""Eigenvalues of curvature: the leading ones with their errors, the density of all, and the trace."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.data import seeded
from espalier.landscape.operators import AbstractOperator
from espalier.landscape.records import Records

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
    run = _Lanczos(operator, torch.randn(operator.dimension, generator=generator, dtype=torch.float64))
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
    operator: AbstractOperator, run: "_Lanczos", values: Tensor, inner: Tensor, residuals: Tensor
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


class _Lanczos:
    """A Lanczos iteration; every new vector is made orthogonal to all earlier ones, twice.

    Without that, rounding brings converged eigenvalues back as ghosts.

    Attributes:
        next: vector (d,) that the next product is with.
        next_size: its length before it was made a unit vector, the last entry beside the diagonal.
    """

    next: Tensor

    def __init__(self, operator: AbstractOperator, start: Tensor) -> None:
        self._operator = operator
        self._basis = torch.empty(0, operator.dimension, dtype=operator.dtype, device=operator.device)
        self.diagonal: list[float] = []
        self.off: list[float] = []
        self.next_size = 0.0
        self.begin(start)

    @property
    def steps(self) -> int:
        """Products so far."""
        return len(self.diagonal)

    def step(self) -> bool:
        """One product; True if the vectors now span an invariant space."""
        m = self.steps
        if m:
            self.off.append(self.next_size)
        if m == len(self._basis):
            grown = self._basis.new_empty(m + 24, self._operator.dimension)
            grown[:m] = self._basis
            self._basis = grown
        self._basis[m] = self.next
        w = self._operator @ self.next
        self.diagonal.append(float(w.double() @ self.next.double()))
        w = self._orthogonal(w)
        self.next_size = float(w.double().norm())
        scale = max(map(abs, [*self.diagonal, *self.off]))
        if self.next_size <= 10 * torch.finfo(w.dtype).eps * max(scale, torch.finfo(w.dtype).tiny):
            self.next_size = 0.0
            return True
        self.next = w / self.next_size
        return False

    def begin(self, start: Tensor) -> None:
        """Go on from a vector outside an invariant space."""
        self.next = self._orthogonal(start.to(self._operator.device, self._operator.dtype))
        self.next /= float(self.next.double().norm())

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,) and eigenvectors (m, m) of the tridiagonal matrix, float64, on the CPU."""
        off = torch.tensor(self.off, dtype=torch.float64)
        diagonal = torch.tensor(self.diagonal, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
        return values, vectors

    def vectors(self, inner: Tensor) -> Tensor:
        """Vectors (d, k) with these coordinates (m, k)."""
        return self._basis[: self.steps].T @ inner.to(self._basis.device, self._basis.dtype)

    def _orthogonal(self, w: Tensor) -> Tensor:
        known = self._basis[: self.steps]
        for _ in range(2):
            w = w - known.T @ (known @ w)
        return w


@dataclass(frozen=True, eq=False)
class Density:
    """Where the eigenvalues lie, by stochastic Lanczos quadrature.

    Args:
        grid: float64 (m,), eigenvalues.
        density: float64 (m,), smoothed density of the eigenvalues, integrates to one; the mean over probes.
        error: float64 (m,), its standard error over probes.
        nodes: per probe, the eigenvalues of its tridiagonal matrix.
        weights: per probe, the share of all eigenvalues each node stands for.
        width: standard deviation of the Gaussian that smooths.
        dimension: d.
        products: matrix-vector products it took.
    """

    grid: Tensor = field(repr=False)
    density: Tensor = field(repr=False)
    error: Tensor = field(repr=False)
    nodes: tuple[Tensor, ...] = field(repr=False)
    weights: tuple[Tensor, ...] = field(repr=False)
    width: float
    dimension: int
    products: int

    def above(self, cutoff: float) -> tuple[float, float]:
        """Estimated number of eigenvalues above a cut-off, and its standard error over probes.

        To be trusted where the cut-off stands clear of the bulk. Some twenty nodes a probe cannot resolve what lies
        near zero beside eigenvalues many times as large (of either sign): a node there stands for most of all
        eigenvalues, and which side of the cut-off it falls on is chance. The error over probes is then of the size of
        the number itself; more `steps` help.
        """
        each = [
            self.dimension * float(w[x > cutoff].sum()) for x, w in zip(self.nodes, self.weights, strict=True)
        ]
        return _mean_and_error(each)

    @property
    def trace(self) -> tuple[float, float]:
        """Estimated trace, and its standard error over probes."""
        each = [self.dimension * float((x * w).sum()) for x, w in zip(self.nodes, self.weights, strict=True)]
        return _mean_and_error(each)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "grid": self.grid.tolist(),
            "density": self.density.tolist(),
            "error": self.error.tolist(),
            "probes": [
                {"nodes": x.tolist(), "weights": w.tolist()}
                for x, w in zip(self.nodes, self.weights, strict=True)
            ],
            "width": self.width,
            "dimension": self.dimension,
            "products": self.products,
            "trace": list(self.trace),
        }


def density(
    operator: AbstractOperator,
    *,
    probes: int = 5,
    steps: int = 20,
    points: int = 400,
    width: float | None = None,
    seed: int = 0,
    records: Records | None = None,
) -> Density:
    r"""The density of the eigenvalues, with error bars over random probes.

    .. math:: \phi(t) = \frac1d \sum_i g_\sigma(t - \lambda_i)
              \approx \frac1P \sum_p \sum_j \tau_{pj}^2 g_\sigma(t - \theta_{pj})

    where :math:`\theta_p` are the eigenvalues and :math:`\tau_p` the first components of the eigenvectors of the
    tridiagonal matrix of a Lanczos iteration from the p-th random vector (Gaussian, unit length).

    Args:
        operator: symmetric.
        probes: random start vectors, at least 2 (error bars).
        steps: Lanczos steps each, at least 2; also the products each.
        points: of the grid.
        width: standard deviation of the smoothing; None takes one percent of the range.
        seed: of the probes.
        records: keeps each probe as soon as it is done, and gives those of an earlier call.

    Raises:
        EspalierError: fewer than 2 probes or steps.

    References:
        Lin, Saad, Yang, "Approximating spectral densities of large matrices", SIAM Review 58 (2016), section 3.
    """
    if probes < 2 or steps < 2:
        raise EspalierError(f"error bars need at least 2 probes of 2 steps, got {probes} probes of {steps}")
    records, d = Records(None, {}) if records is None else records, operator.dimension
    nodes, weights = [], []
    for p in range(probes):
        record = records.get(p)
        if record is None:
            start = torch.randn(d, generator=seeded("density", seed, p), dtype=torch.float64)
            run = _Lanczos(operator, start)
            while not run.step() and run.steps < min(steps, d):
                pass
            values, vectors = run.ritz()
            record = {"nodes": values.tolist(), "weights": (vectors[0] ** 2).tolist()}
            records.add(p, record)
        nodes.append(torch.tensor(record["nodes"], dtype=torch.float64))
        weights.append(torch.tensor(record["weights"], dtype=torch.float64))
    low = min(float(x.min()) for x in nodes)
    high = max(float(x.max()) for x in nodes)
    width = width or max((high - low) / 100, 1e-12)
    grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    each = torch.stack([_smooth(grid, x, w, width) for x, w in zip(nodes, weights, strict=True)])
    return Density(
        grid,
        each.mean(0),
        each.std(0) / math.sqrt(probes),
        tuple(nodes),
        tuple(weights),
        width,
        d,
        sum(map(len, nodes)),
    )


def _smooth(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    bumps = torch.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return bumps @ weights


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Args:
        value: the mean over independent repeats.
        error: its standard error over them.
        repeats: how many.
        products: matrix-vector products in all.
        method: "hutch++" or "hutchinson".
    """

    value: float
    error: float
    repeats: int
    products: int
    method: str


def trace(
    operator: AbstractOperator,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    products: int = 12,
    repeats: int = 5,
    seed: int = 0,
    records: Records | None = None,
) -> Trace:
    """The trace, by curvlinops, repeated independently so that it has a standard error.

    Args:
        operator: symmetric, of dimension above `products`.
        method: Hutch++ (a subspace exactly, the rest at random) or plain Hutchinson (unit variance probes).
        products: matrix-vector products a repeat; a multiple of 3 for Hutch++.
        repeats: at least 2.
        seed: of the probes.
        records: keeps each repeat as soon as it is done, and gives those of an earlier call.

    Raises:
        EspalierError: curvlinops is missing, or numbers out of range.
    """
    estimators = _curvlinops()
    if method not in estimators:
        raise EspalierError(f"trace method {method!r} is unknown; use one of {', '.join(estimators)}")
    if repeats < 2 or products < 3 or (method == "hutch++" and products % 3):
        raise EspalierError(
            f"a trace needs 2 or more repeats, and products in threes, got {repeats} repeats of {products}"
        )
    if products >= operator.dimension:
        raise EspalierError(
            f"{products} products a repeat give no estimate in {operator.dimension} dimensions: "
            "give fewer, or take the diagonal of `operator.dense()`"
        )
    records, found, used = Records(None, {}) if records is None else records, [], 0
    devices = [operator.device] if operator.device.type == "cuda" else []
    for repeat in range(repeats):
        record = records.get(repeat)
        if record is None:
            before = operator.products
            with torch.random.fork_rng(devices):  # curvlinops draws from the global generator
                torch.manual_seed(seeded("trace", seed, repeat).initial_seed())
                value = float(estimators[method](operator, products))
            record = {"value": value, "products": operator.products - before}
            records.add(repeat, record)
        found.append(float(record["value"]))
        used += int(record["products"])
    value, error = _mean_and_error(found)
    return Trace(value, error, repeats, used, method)


def _curvlinops() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.script, at its import
            from curvlinops import hutchinson_trace, hutchpp_trace
    except ImportError:
        raise EspalierError(
            "the trace needs curvlinops-for-pytorch: pip install 'espalier[landscape]'"
        ) from None
    return {"hutch++": hutchpp_trace, "hutchinson": hutchinson_trace}


def _mean_and_error(each: Sequence[float]) -> tuple[float, float]:
    values = torch.tensor(each, dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(len(each)))
