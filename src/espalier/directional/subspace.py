r"""Which directions count as flat: P0 of the paper, said precisely.

The paper takes the null space of the Hessian, which in a network is nobody's to know: eigenvalues fall to zero
without a step. Three rules draw the line: a cut-off on the eigenvalue, a share of the energy, or the soft filter
that gRDA applies by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape.spectrum import Eigenpairs

Removal = Callable[[Tensor], Tensor]
"""Eigenvalues (k,) -> how much of each eigenvector is taken out, in [0, 1]."""

_FAR = 60.0  # of curvature times time


@dataclass(frozen=True, eq=False)
class FlatSubspace:
    r"""Directions that curvature leaves free, known by those it does not.

    .. math:: \Pi v = v - U\, \mathrm{diag}(r)\, U^\top v

    with the stiff eigenvectors U (d, k) and how much of each is removed, r. With r = 1 this is the orthogonal
    projection onto what is left.

    Args:
        vectors: U, (d, k), orthonormal columns, float64.
        eigenvalues: (k,), float64.
        removed: r, (k,), in [0, 1].
        hidden: no direction outside U has a curvature above this, if the eigenpairs are right: the largest
            eigenvalue left out, or the smallest of those found if none was.
        rule: in words.
    """

    vectors: Tensor = field(repr=False)
    eigenvalues: Tensor = field(repr=False)
    removed: Tensor = field(repr=False)
    hidden: float
    rule: str
    _removal: Removal = field(repr=False, default=torch.ones_like)

    @property
    def dimension(self) -> float:
        """Trace of the projection: d - k where directions are removed whole."""
        return len(self.vectors) - float(self.removed.sum())

    @property
    def gap(self) -> float:
        """Smallest |eigenvalue| removed, minus `hidden`; 0 where the line was drawn because we stopped looking."""
        if not len(self.eigenvalues):
            return 0.0
        return float(self.eigenvalues.abs().min()) - self.hidden

    def project(self, v: Tensor) -> Tensor:
        """The part of a vector (d,) that is flat."""
        v = v.to(self.vectors.dtype)
        return v - self.vectors @ (self.removed * (self.vectors.T @ v))

    def model_loss(self, step: Tensor) -> float:
        r"""What the known curvature says a step (d,) costs: :math:`\frac12 \sum_i \lambda_i (u_i^\top \delta)^2`."""
        inside = self.vectors.T @ step.to(self.vectors.dtype)
        return float(0.5 * (self.eigenvalues * inside**2).sum())

    def hidden_loss(self, step: Tensor) -> float:
        r"""What truncation can hide of a step's cost, at most: :math:`\frac12 h \|\delta - UU^\top\delta\|^2`.

        For a loss that is quadratic along the step; `hidden` is h.
        """
        step = step.to(self.vectors.dtype)
        outside = step - self.vectors @ (self.vectors.T @ step)
        return 0.5 * self.hidden * float(outside @ outside)

    def restricted(self, active: Tensor) -> "FlatSubspace":
        r"""The flat subspace of some coordinates alone, the others held still.

        The eigenvectors of :math:`P U \Lambda U^\top P`, where P keeps the active coordinates; the same rule
        draws the line anew. Costs O(d k^2) and no product with the network's curvature.

        Args:
            active: bool (d,).
        """
        kept = self.vectors * active.to(self.vectors)[:, None]
        basis, corner = torch.linalg.qr(kept)
        values, inner = torch.linalg.eigh(corner @ torch.diag(self.eigenvalues) @ corner.T)
        # Fewer active coordinates than directions: what is left of some of them is rounding.
        floor = 1e-12 * float(self.eigenvalues.abs().max()) if len(self.eigenvalues) else 0.0
        order = values.abs().argsort(descending=True)
        order = order[values[order].abs() > floor]
        removed = self._removal(values[order])
        order, removed = order[removed > 0], removed[removed > 0]
        return replace(self, vectors=basis @ inner[:, order], eigenvalues=values[order], removed=removed)

    def relaxed(self) -> "FlatSubspace":
        """Without the least curved of the stiff directions: it counts as flat from now on."""
        order = self.eigenvalues.abs().argsort(descending=True)[:-1]
        edge = float(self.eigenvalues.abs().min())
        return replace(
            self,
            vectors=self.vectors[:, order],
            eigenvalues=self.eigenvalues[order],
            removed=self.removed[order],
            hidden=max(edge, self.hidden),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the vectors, for JSON."""
        return {
            "rule": self.rule,
            "dimension": self.dimension,
            "stiff": len(self.eigenvalues),
            "gap": self.gap,
            "hidden": self.hidden,
            "eigenvalues": self.eigenvalues.tolist(),
        }


def by_cutoff(pairs: Eigenpairs, cutoff: float = 0.0) -> FlatSubspace:
    """Stiff is every eigenvalue whose size is above a cut-off.

    Args:
        pairs: leading eigenpairs. If all of them are above the cut-off there may be more, which `hidden` then
            says: it is the smallest one found, not the cut-off.
        cutoff: at least 0; 0 takes every pair found.
    """
    if not cutoff >= 0:
        raise EspalierError(f"an eigenvalue cut-off must be 0 or more, got {cutoff}")
    return _hard(pairs, lambda values: values.abs() > cutoff, f"|eigenvalue| > {cutoff:g}")


def by_energy(pairs: Eigenpairs, share: float, total: float | None = None) -> FlatSubspace:
    """Stiff are as many leading directions as hold a share of the trace.

    Args:
        pairs: leading eigenpairs of a positive semi-definite operator (negative values count as zero).
        share: in (0, 1].
        total: the trace, such as `trace(operator).value`; None takes the sum of the eigenvalues at hand.

    Raises:
        EspalierError: share out of range, or the pairs at hand hold less than the share.
    """
    if not 0 < share <= 1:
        raise EspalierError(f"a share of the trace is in (0, 1], got {share}")
    sizes = pairs.values.clamp_min(0)
    total = float(sizes.sum()) if total is None else total
    held = sizes.cumsum(0) / max(total, torch.finfo(torch.float64).tiny)
    if float(held[-1]) < share * (1 - 1e-12):
        raise EspalierError(
            f"{len(sizes)} eigenpairs hold {float(held[-1]):.3g} of the trace and {share:g} was asked: "
            "compute more pairs or ask for less"
        )
    count = int((held < share * (1 - 1e-12)).sum()) + 1
    edge = float(sizes[count - 1])
    return _hard(pairs, lambda values: values >= edge * (1 - 1e-9), f"{share:g} of the trace")


def by_filter(pairs: Eigenpairs, mu: float, time: float) -> FlatSubspace:
    r"""The soft line that gRDA draws: a direction of curvature h stays free to the degree :math:`\kappa_h(t)`.

    Args:
        pairs: leading eigenpairs; directions outside them count as entirely flat, so take enough that
            `kappa(hidden)` is near one.
        mu: exponent of gRDA's threshold, positive.
        time: learning rate times steps, positive.
    """
    if not (mu > 0 and time > 0):
        raise EspalierError(f"the filter needs positive mu and time, got {mu} and {time}")

    def removal(values: Tensor) -> Tensor:
        return 1 - kappa(values, mu, time)

    removed = removal(pairs.values).to(pairs.vectors.device)
    hidden = float(pairs.values.abs().min()) if len(pairs.values) < pairs.dimension else 0.0
    return FlatSubspace(
        pairs.vectors.double(),
        pairs.values.to(pairs.vectors.device),
        removed,
        hidden,
        f"kappa with mu = {mu:g} at time {time:g}",
        removal,
    )


def kappa(curvature: Tensor, mu: float, time: float) -> Tensor:
    r"""The share of a direction of curvature h that dual averaging leaves free after time t.

    .. math:: \kappa_h(t) = \mu t^{-\mu} \int_0^t s^{\mu-1} e^{-h(t-s)}\,ds = M(1, 1+\mu, -ht)

    with Kummer's function M: 1 at h = 0, about :math:`\mu / (ht)` for large ht. Curvature below zero counts as
    zero, where the formula (which linearizes) would exceed one.

    Args:
        curvature: (k,), eigenvalues.
        mu: positive.
        time: learning rate times steps.

    Returns:
        float64 (k,), in (0, 1].
    """
    from scipy.special import hyp1f1

    x = time * curvature.double().clamp_min(0).cpu()
    # SciPy's series loses digits far out; there mu/x (1 + (1 - mu)/x (1 + (2 - mu)/x (1 + ...))) has them.
    inverse, far = 1 / x.clamp_min(1), torch.ones_like(x)
    for term in range(7, 0, -1):
        far = 1 + (term - mu) * inverse * far
    far = mu * inverse * far
    near = torch.as_tensor(hyp1f1(1.0, 1.0 + mu, -x.clamp_max(_FAR).numpy()))
    return torch.where(x > _FAR, far, near).clamp(0, 1).to(curvature.device)


def _hard(pairs: Eigenpairs, stiff: Callable[[Tensor], Tensor], rule: str) -> FlatSubspace:
    """Directions removed whole."""
    chosen = stiff(pairs.values)
    rest = pairs.values[~chosen].abs()
    if len(rest):
        hidden = float(rest.max())
    elif len(pairs.values) < pairs.dimension:
        hidden = float(pairs.values.abs().min())
    else:
        hidden = 0.0
    there = chosen.to(pairs.vectors.device)
    values = pairs.values.to(pairs.vectors.device)[there]
    return FlatSubspace(
        pairs.vectors[:, there].double(),
        values,
        torch.ones_like(values),
        hidden,
        rule,
        lambda found: stiff(found).to(found.dtype),
    )
