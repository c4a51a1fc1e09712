"""What the mask did since the last look."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorMask:
    """Counts of one thresholded parameter.

    Args:
        entries: all of them.
        zeros: weights that are zero now.
        pruned: weights that became zero since the last report.
        regrown: weights that stopped being zero since the last report.
    """

    entries: int
    zeros: int
    pruned: int
    regrown: int

    @property
    def kept(self) -> int:
        """Weights that are not zero now."""
        return self.entries - self.zeros


@dataclass(frozen=True)
class MaskReport:
    """Mask statistics over the thresholded parameters, from one report to the next.

    Args:
        tensors: counts per parameter name, in the optimizer's order.
        first: whether there was no earlier report; pruned and regrown then compare with no zeros at all.
        frozen: whether every thresholded parameter now has a fixed mask.
    """

    tensors: dict[str, TensorMask]
    first: bool
    frozen: bool

    @property
    def entries(self) -> int:
        """Thresholded entries."""
        return sum(tensor.entries for tensor in self.tensors.values())

    @property
    def zeros(self) -> int:
        """Thresholded entries that are zero."""
        return sum(tensor.zeros for tensor in self.tensors.values())

    @property
    def pruned(self) -> int:
        """Entries that became zero since the last report."""
        return sum(tensor.pruned for tensor in self.tensors.values())

    @property
    def regrown(self) -> int:
        """Entries that stopped being zero since the last report."""
        return sum(tensor.regrown for tensor in self.tensors.values())

    @property
    def sparsity(self) -> float:
        """Zeros / thresholded entries."""
        return self.zeros / self.entries if self.entries else 0.0

    @property
    def churn(self) -> float:
        """(pruned + regrown) / thresholded entries: the Hamming distance of the two masks, in [0, 1]."""
        return (self.pruned + self.regrown) / self.entries if self.entries else 0.0

    @property
    def overlap(self) -> float:
        """Jaccard index of the kept sets of the two reports, in [0, 1]; 1 when both are empty."""
        kept = self.entries - self.zeros
        union = kept + self.pruned
        return (kept - self.regrown) / union if union else 1.0
