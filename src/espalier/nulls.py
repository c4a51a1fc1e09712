r"""Null models: what the same rules answer for weights that hold no structure but their scales.

The utopia point is at least 0.6521 for any vector whatever and 0.80 for Gaussian noise, so an answer of 0.84
is mostly arithmetic. The same number for the nulls beside it shows how much of it is the network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.curve import Curve
from espalier.histogram import bends
from espalier.profiling import Profile

_PER_DECADE = 512  # thresholds of the Gaussian curve; linear energy in between is good to 1e-6
_NODES = 1 << 20  # nodes of the balanced curve
_VIRTUAL = 10**9  # entries a null curve pretends to have: the limit of many, yet steps of one stay resolved


@dataclass(frozen=True, eq=False)
class Null:
    """A null model, seen by the amount rules like a profile.

    Args:
        name: short name, a key in the report.
        description: what it is, for a sentence.
        curve: its cosine-sparsity curve.
        absolute: sum of |w|.
        kurtosis_of_kurtoses: the one the safe rule is to use for it.
    """

    name: str
    description: str
    curve: Curve
    absolute: float
    kurtosis_of_kurtoses: float | None


def gaussian_null(profile: Profile) -> Null:
    r"""Independent Gaussian entries, zero mean, with the rms of each tensor: the limit of many entries.

    For tensors of \(n_i\) entries and scale \(\sigma_i\), with \(u = t / \sigma_i\), a threshold t keeps
    \(\sum_i n_i\, \mathrm{erfc}(u/\sqrt 2)\) entries of energy
    \(\sum_i n_i \sigma_i^2 [2 u \varphi(u) + \mathrm{erfc}(u/\sqrt 2)]\).

    The sample kurtoses of such tensors are all 3 in the limit and their kurtosis is undefined, so the
    null borrows that of the network.
    """
    live = [tensor for tensor in profile.tensors.values() if tensor.rms > 0]
    sizes = [tensor.entries * _scale(profile) for tensor in live]
    scales = [tensor.rms for tensor in live]
    return Null(
        name="gaussian",
        description="Gaussian noise of the same per-tensor scale",
        curve=gaussian_curve(sizes, scales, zeros=_dead(profile) * _scale(profile)),
        absolute=math.sqrt(2 / math.pi) * math.fsum(n * s for n, s in zip(sizes, scales)),
        kurtosis_of_kurtoses=profile.kurtosis_of_kurtoses,
    )


def equal_null(profile: Profile) -> Null:
    """All weights equal; also what a random mask gets. Its utopia, 0.652190, is the least any vector has."""
    n = profile.entries * _scale(profile)
    curve = Curve(n, np.asarray([0, n]), np.asarray([0.0, float(n)]), np.asarray([np.inf, 1.0]))
    return Null("equal", "equal weights or a random mask", curve, float(n), profile.kurtosis_of_kurtoses)


def initial_null(profile: Profile) -> Null:
    """The weights the training began with."""
    return Null(
        name="initial",
        description="the initial checkpoint",
        curve=profile.curve,
        absolute=profile.absolute,
        kurtosis_of_kurtoses=profile.kurtosis_of_kurtoses,
    )


def gaussian_curve(sizes: Sequence[int], scales: Sequence[float], zeros: int = 0) -> Curve:
    """Curve of a mixture of zero-mean Gaussians in the limit of many entries.

    Args:
        sizes: entries of each component.
        scales: standard deviation of each, positive.
        zeros: further entries that are zero.
    """
    top, bottom = 9 * max(scales), 1e-3 * min(scales)
    count = 2 + round(_PER_DECADE * math.log10(top / bottom))
    t = np.geomspace(top, bottom, count)
    kept, energy = np.zeros(count), np.zeros(count)
    for n, s in zip(sizes, scales):
        u = t / s
        tail = torch.special.erfc(torch.from_numpy(u / math.sqrt(2))).numpy()
        kept += n * tail
        energy += n * s**2 * (u * math.sqrt(2 / math.pi) * np.exp(-(u**2) / 2) + tail)
    n, total = sum(sizes), math.fsum(n * s**2 for n, s in zip(sizes, scales))
    seen = kept > 1e-5 * n  # above, rounding to whole entries would bend the curve
    t, kept, energy = t[seen], kept[seen], energy[seen]
    nodes = np.concatenate([[0], np.rint(kept).astype(np.int64), [n]])
    sums = np.concatenate([[0.0], energy, [total]])
    edges = np.concatenate([[np.inf], t, [0.0]])
    if zeros:
        nodes, sums, edges = np.append(nodes, n + zeros), np.append(sums, total), np.append(edges, 0.0)
    nodes, unique = np.unique(nodes, return_index=True)
    sums, edges = np.maximum.accumulate(sums[unique]), edges[unique]
    return Curve(n + zeros, nodes, sums, edges, bend=bends(nodes, sums, edges[1:], edges[:-1]))


def balanced_curve(profile: Profile) -> Curve:
    """Curve of the network after every tensor is divided by its rms, from a sample of the nodes.

    Scales of tensors can be moved about (into the next layer, into batch-norm) without changing the function,
    and the curve moves with them. This variant is one member of that family, for comparison; good to about
    1e-4 in the cosine.
    """
    widths: list[NDArray[np.int64]] = []
    heights: list[NDArray[np.float64]] = []
    dead = _dead(profile)
    nodes = max(64, min(4096, _NODES // len(profile.tensors)))
    for tensor in profile.tensors.values():
        if tensor.rms > 0:
            kept, energy = _thin(tensor.curve, nodes)
            widths.append(np.diff(kept))
            heights.append(np.diff(energy) / tensor.rms**2)
    if dead:
        widths.append(np.asarray([dead]))
        heights.append(np.asarray([0.0]))
    width, height = np.concatenate(widths), np.concatenate(heights)
    order = np.argsort(-height / width, kind="stable")
    kept = np.concatenate([[0], np.cumsum(width[order])])
    energy = np.concatenate([[0.0], np.cumsum(height[order])])
    threshold = np.concatenate([[np.inf], np.sqrt(height / width)[order]])
    return Curve(profile.entries, kept, energy, threshold)


def _thin(curve: Curve, nodes: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nodes of a curve, dense where few entries are kept."""
    last = len(curve.energy) - 1
    even = np.linspace(0, last, nodes // 2)
    dense = np.geomspace(1, last, nodes // 2)
    index = np.unique(np.rint(np.concatenate([[0], even, dense])).astype(np.int64))
    return curve.kept[index] if curve.nodes is not None else index, curve.energy[index]


def _dead(profile: Profile) -> int:
    """Entries of tensors that are zero altogether."""
    return sum(tensor.entries for tensor in profile.tensors.values() if not tensor.rms > 0)


def _scale(profile: Profile) -> int:
    return max(1, _VIRTUAL // profile.entries)


def sentence(rule: str, sparsity: float, nulls: Mapping[str, tuple[str, float]]) -> str:
    """How much of an answer is the network and how much is arithmetic, in one sentence.

    Args:
        rule: the rule.
        sparsity: its answer for the network.
        nulls: name -> description and answer of each null; must hold "gaussian".
    """
    others = ", ".join(f"{value:.3f} for {description}" for description, value in nulls.values())
    gap = sparsity - nulls["gaussian"][1]
    return (
        f"{rule} is {sparsity:.3f} for this network, {others}: beyond the scales of its tensors the network "
        f"accounts for {gap:+.3f}, the rest is arithmetic"
    )
