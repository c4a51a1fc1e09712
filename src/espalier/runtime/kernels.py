"""Products of a sparse weight with dense activations: two methods a kernel, so that a native one fits in later.

Activations are feature-major: (columns of the weight, positions). That is how a convolution's image lies in
memory anyway, and it makes the positions the axis of the vector instructions: one nonzero weight multiplies a
run of consecutive numbers.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


class AbstractKernel(ABC):
    """One way to multiply; stateless, known in a plan by its name."""

    name: ClassVar[str]

    @abstractmethod
    def pack(self, weight: Tensor) -> Any:
        """Prepare a weight, once.

        Args:
            weight: float32 (rows, columns) on the CPU, dense with zeros.

        Returns:
            Whatever `matmul` wants. It survives `copy.deepcopy` and pickling.
        """

    @abstractmethod
    def matmul(self, packed: Any, activations: Tensor) -> Tensor:
        """Weight times activations.

        Args:
            packed: from `pack`.
            activations: float32 (columns, n), contiguous, n >= 1.

        Returns:
            A new float32 (rows, n), contiguous.
        """

    @abstractmethod
    def nbytes(self, packed: Any) -> int:
        """Bytes that the packed weight takes in memory."""


class Bag(AbstractKernel):
    """The weighted sum of rows that `torch.nn.functional.embedding_bag` computes is a product of this kind.

    Row r of the result is the sum over the nonzeros of weight row r of value times activation row. On x86 it is
    done by FBGEMM, which generates machine code for the very number of positions, with the sums in registers;
    measured against CSR over MKL it is about twice as fast from 32 positions on, and slower below 8.
    """

    name: ClassVar[str] = "bag"

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Column of each nonzero, where each row begins, and the values; int32, because half the bytes."""
        return _compressed(weight)

    def matmul(self, packed: tuple[Tensor, Tensor, Tensor], activations: Tensor) -> Tensor:  # noqa: D102
        columns, offsets, values = packed
        # Called without the checks of torch.nn.functional: scale_grad_by_freq, mode 0 is the sum, sparse gradient,
        # weights, offsets with the end.
        found: Tensor = torch.embedding_bag(activations, columns, offsets, False, 0, False, values, True)[0]
        return found

    def nbytes(self, packed: tuple[Tensor, Tensor, Tensor]) -> int:  # noqa: D102
        return sum(tensor.nbytes for tensor in packed)


class Csr(AbstractKernel):
    """torch CSR with int32 indices: MKL where torch was built with it. The best for a single position."""

    name: ClassVar[str] = "csr"

    def pack(self, weight: Tensor) -> "CsrMatrix":
        """A CSR tensor; with int64 indices every product would convert them."""
        columns, offsets, values = _compressed(weight)
        return CsrMatrix(offsets, columns, values, (weight.shape[0], weight.shape[1]))

    def matmul(self, packed: "CsrMatrix", activations: Tensor) -> Tensor:  # noqa: D102
        if activations.shape[1] == 1:
            return (packed.tensor @ activations[:, 0]).unsqueeze(1)
        return packed.tensor @ activations

    def nbytes(self, packed: "CsrMatrix") -> int:  # noqa: D102
        return sum(tensor.nbytes for tensor in (packed.offsets, packed.columns, packed.values))


class CsrMatrix:
    """A torch CSR tensor beside its parts, because torch cannot deep-copy the whole.

    Args:
        offsets: where each row begins among the nonzeros, int32 (rows + 1,).
        columns: column of each nonzero, int32.
        values: the nonzeros.
        shape: (rows, columns).
    """

    def __init__(self, offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.offsets, self.columns, self.values, self.shape = offsets, columns, values, shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            self.tensor = torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)

    def __reduce__(self) -> tuple[type["CsrMatrix"], tuple[Any, ...]]:
        return CsrMatrix, (self.offsets, self.columns, self.values, self.shape)


def _compressed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, row offsets (both int32) and values of the nonzeros, row by row."""
    rows, columns = weight.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=weight.shape[0])
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int32)
    torch.cumsum(counts, 0, dtype=torch.int32, out=offsets[1:])
    return columns.int(), offsets, weight[rows, columns]


KERNELS: tuple[AbstractKernel, ...] = (Bag(), Csr())
"""What is tried when nothing else is asked for."""
