"""How much of a vector lies in the leading eigenspace, beside how much of a random one would."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape.spectrum import Eigenpairs


@dataclass(frozen=True)
class Share:
    r"""The part of a vector in the span of k leading eigenvectors.

    Args:
        name: of the vector.
        norm: its length.
        share: :math:`\|U^\top v\| / \|v\|`, in [0, 1]; a ratio of lengths, not of their squares.
        baseline: the same for a random direction, in the mean square: :math:`\sqrt{k/d}`.
        interval: 95 % of random directions have a share between these.
        along: :math:`|u_i^\top v| / \|v\|` for each eigenvector.
        curvature: :math:`v^\top U \Lambda U^\top v / \|v\|^2`, the part of the curvature along v that they explain.
    """

    name: str
    norm: float
    share: float
    baseline: float
    interval: tuple[float, float]
    along: tuple[float, ...] = field(repr=False)
    curvature: float = 0.0

    @property
    def ratio(self) -> float:
        """Share over baseline: 1 is what chance gives."""
        return self.share / self.baseline

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "norm": self.norm,
            "share": self.share,
            "baseline": self.baseline,
            "ratio": self.ratio,
            "interval": list(self.interval),
            "along": list(self.along),
            "curvature": self.curvature,
        }


def project(pairs: Eigenpairs, vectors: Mapping[str, Tensor]) -> tuple[Share, ...]:
    r"""Compare vectors with the leading eigenspace.

    For a random direction the squared share is Beta(k/2, (d - k)/2) distributed, which gives the baseline and
    its interval exactly. The published Figure 6 of "Directional Pruning of Deep Neural Networks" divides by the
    sum of ten copies of the squared norm where one was meant, so its values are too small by
    :math:`\sqrt{10}`; shares here are what the caption says.

    Args:
        pairs: k eigenpairs in d dimensions.
        vectors: name -> flat (d,), such as the difference of two networks.

    Raises:
        EspalierError: SciPy is missing, a vector is zero, or has another length.
    """
    try:
        from scipy.stats import beta
    except ImportError:
        raise EspalierError("the baseline needs scipy: pip install 'espalier[landscape]'") from None
    d, k = pairs.dimension, len(pairs.values)
    if not 0 < k < d:
        raise EspalierError(f"a share needs between 1 and d - 1 eigenvectors, got {k} in {d} dimensions")
    low, high = (math.sqrt(float(q)) for q in beta(k / 2, (d - k) / 2).ppf([0.025, 0.975]))
    found = []
    for name, vector in vectors.items():
        if tuple(vector.shape) != (d,):
            raise EspalierError(f"{name} has shape {tuple(vector.shape)}; a vector ({d},) was needed")
        v = vector.to(pairs.vectors.device, torch.float64)
        norm = float(v.norm())
        if not norm:
            raise EspalierError(
                f"{name} is zero everywhere, so it has no direction: are the networks the same?"
            )
        along = (pairs.vectors.double().T @ v).cpu() / norm
        curvature = float((pairs.values * along**2).sum())
        share = min(1.0, float(along.norm()))
        found.append(
            Share(name, norm, share, math.sqrt(k / d), (low, high), tuple(along.abs().tolist()), curvature)
        )
    return tuple(found)
