"""The density of all eigenvalues of curvature, by stochastic Lanczos quadrature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.data import seeded
from espalier.landscape.lanczos import Lanczos
from espalier.landscape.operators import AbstractOperator
from espalier.landscape.records import Records


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
        return mean_and_error(each)

    @property
    def trace(self) -> tuple[float, float]:
        """Estimated trace, and its standard error over probes."""
        each = [self.dimension * float((x * w).sum()) for x, w in zip(self.nodes, self.weights, strict=True)]
        return mean_and_error(each)

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
            run = Lanczos(operator, start)
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


def mean_and_error(each: Sequence[float]) -> tuple[float, float]:
    """The mean of independent estimates, and its standard error."""
    values = torch.tensor(each, dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(len(each)))
