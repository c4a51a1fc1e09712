"""The Lanczos iteration, orthogonalized in full: what leading eigenpairs and the density have in common."""

import torch
from torch import Tensor

from espalier.landscape.operators import AbstractOperator


class Lanczos:
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
