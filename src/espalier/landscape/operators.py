"""Symmetric matrices known by their products with vectors: the Hessian, Gauss-Newton, and plain ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier._types import Tensors
from espalier.landscape.risk import Kind, Risk

DENSE_LIMIT = 6000
"""Largest dimension of which `dense` makes a matrix."""


class AbstractOperator(ABC):
    """A symmetric (d, d) matrix through `operator @ x`, x (d,) or (d, k).

    Has what the estimators of curvlinops ask for (`shape`, `dtype`, `device`, `@`), and counts its products.

    Attributes:
        dimension: d.
        dtype: of the vectors it takes and gives.
        device: of the vectors.
        products: matrix-vector products so far.
        progress: called after each product.
    """

    dimension: int
    dtype: torch.dtype
    device: torch.device
    products: int
    progress: Callable[[], None] | None

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """The product with one vector (d,)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d, d)."""
        return self.dimension, self.dimension

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.ndim not in (1, 2) or len(x) != self.dimension:
            raise EspalierError(
                f"a vector ({self.dimension},) or matrix ({self.dimension}, k) was needed, got {tuple(x.shape)}"
            )
        x = x.to(self.device, self.dtype)
        if x.ndim == 2:
            out = torch.empty_like(x)
            for column in range(x.shape[1]):
                out[:, column] = self @ x[:, column].contiguous()
            return out
        found = self._product(x).to(self.dtype)
        self.products += 1
        if self.progress is not None:
            self.progress()
        return found

    def dense(self) -> Tensor:
        """The whole matrix (d, d), by d products, made symmetric.

        Raises:
            EspalierError: d is above `DENSE_LIMIT`.
        """
        if self.dimension > DENSE_LIMIT:
            raise EspalierError(
                f"a dense matrix of {self.dimension:,} weights is too large (at most {DENSE_LIMIT:,}); "
                "select fewer tensors, or use the leading eigenpairs"
            )
        matrix = self @ torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        return (matrix + matrix.T) / 2

    def to_scipy(self) -> Any:
        """The same as a `scipy.sparse.linalg.LinearOperator` on NumPy vectors."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(x: Any) -> Any:
            return (self @ torch.from_numpy(x.reshape(-1))).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=dtype)


class Curvature(AbstractOperator):
    """The Hessian or Gauss-Newton matrix of a risk at some weights.

    Both are exact up to rounding: nothing is damped or sampled. One product of the Hessian is a forward pass with
    its derivative along the vector, and one backward pass through both; one of Gauss-Newton takes a second
    forward pass instead, and goes back through that alone. Counted in convolutions of a network of them, where a
    gradient costs 3 (one forward, two back), these are 8 and 6: 2.7 and 2 gradients, and somewhat more in
    elementwise work. What was tried instead for the Hessian is in `benchmarks/curvature.py`.

    Args:
        risk: whose curvature.
        at: weights, flat or by name; None: where the model is.
        kind: "hessian" or "gauss-newton".
        progress: called after each product.
    """

    def __init__(
        self,
        risk: Risk,
        at: Tensor | Tensors | None = None,
        kind: Kind = "hessian",
        progress: Callable[[], None] | None = None,
    ) -> None:
        self.risk, self.kind = risk, kind
        self._at = risk._vector(at)
        self.dimension, self.dtype, self.device = risk.dimension, risk.dtype, risk.device
        self.products, self.progress = 0, progress

    def product(self, tensors: Tensors) -> dict[str, Tensor]:
        """The product with a vector given by name, by name."""
        return self.risk.named(self @ self.risk.flat(tensors))

    def _product(self, v: Tensor) -> Tensor:
        return self.risk.product(self._at, v, self.kind)


class Matrix(AbstractOperator):
    """A matrix that is at hand, for quadratics and tests.

    Args:
        matrix: symmetric (d, d).
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.dimension, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.products, self.progress = 0, None

    def _product(self, v: Tensor) -> Tensor:
        return self._matrix @ v


class Restricted(AbstractOperator):
    """Rows and columns of an operator that are set to zero but for some coordinates: P A P.

    Args:
        operator: A.
        active: bool (d,), True where P keeps a coordinate.
    """

    def __init__(self, operator: AbstractOperator, active: Tensor) -> None:
        self._operator, self._active = operator, active.to(operator.device, operator.dtype)
        self.dimension, self.dtype, self.device = operator.dimension, operator.dtype, operator.device
        self.products, self.progress = 0, None

    def _product(self, v: Tensor) -> Tensor:
        return (self._operator @ (v * self._active)) * self._active
