"""Proximal maps: what the optimizer does to its latent to get the weights.

Each is total (finite in, finite out, a pruned entry is exactly +0.0), keeps signs and moves no two points
apart where the minimized problem is convex. None divides by a magnitude, so an entry that is already zero is
no special case.
"""

import torch
from torch import Tensor


def soft_threshold(v: Tensor, threshold: float | Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""Shrink magnitudes by the threshold and stop at zero.

    .. math:: S_g(v) = \arg\min_w \tfrac12 \|w - v\|^2 + g \|w\|_1 = \mathrm{sign}(v) \, (|v| - g)_+

    Args:
        v: any shape, real floating.
        threshold: g >= 0; a number, or a tensor that broadcasts with `v` (so it can stay on the device).
        out: written in place and returned if given; `v`'s shape, any floating dtype; may be `v` itself.

    Returns:
        `v`'s shape; NaN stays NaN, so a diverged entry never looks pruned.
    """
    if isinstance(threshold, Tensor):
        # v - clamp(v) rather than sign(v) * relu(|v| - g): x - x is +0.0 where -1 * 0 would be -0.0.
        shrunk = v - torch.clamp(v, -threshold, threshold)
        return shrunk if out is None else out.copy_(shrunk)
    if out is None or out.dtype != v.dtype:
        shrunk = torch.nn.functional.softshrink(v, threshold).add_(0.0)
        return shrunk if out is None else out.copy_(shrunk)
    torch.ops.aten.softshrink.out(v, threshold, out=out)
    return out.add_(0.0)  # softshrink leaves -0.0 where v < 0


def elastic_net(v: Tensor, threshold: float | Tensor, ridge: float | Tensor) -> Tensor:
    r"""Soft threshold, then shrink what is left by a common factor.

    .. math:: \arg\min_w \tfrac12 \|w - v\|^2 + g \|w\|_1 + \tfrac{k}{2} \|w\|^2 = S_g(v) / (1 + k)

    Args:
        v: any shape, real floating.
        threshold: g >= 0.
        ridge: k >= 0.

    Returns:
        `v`'s shape.
    """
    return soft_threshold(v, threshold) / (1 + ridge)


def hard_threshold(v: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Zero magnitudes up to the threshold and leave the others alone.

    .. math:: \arg\min_w \tfrac12 \|w - v\|^2 + \tfrac{g^2}{2} \|w\|_0 = v \cdot [\,|v| > g\,]

    At :math:`|v| = g` both 0 and v are minimizers; this returns 0. The problem is not convex and the map is not
    non-expansive.

    Args:
        v: any shape, real floating.
        threshold: g >= 0.

    Returns:
        `v`'s shape.
    """
    return torch.where(v.abs() <= threshold, torch.zeros_like(v), v)


def lost_scale(v: Tensor, threshold: float | Tensor) -> Tensor:
    r"""What gives each output unit back the l1 norm that pruning takes from it (ST-3, WACV 2023, its alpha).

    .. math:: \alpha_i = \frac{1.01}{\rho_i + 0.01}, \qquad
              \rho_i = \frac{\sum_j |v_{ij}| \, [|v_{ij}| > g]}{\sum_j |v_{ij}|}

    Args:
        v: any shape, real floating; i is its dimension 0, j all others. Nothing is scaled without the latter.
        threshold: g >= 0.

    Returns:
        In [1, 101], with the number of dimensions of `v`; 1 for a unit without weights.
    """
    magnitude = v.abs()
    axes = tuple(range(1, v.ndim))
    if not axes:
        return torch.ones_like(v)
    whole = magnitude.sum(axes, keepdim=True, dtype=torch.float64)
    left = magnitude.masked_fill_(magnitude <= threshold, 0.0).sum(axes, keepdim=True, dtype=torch.float64)
    scale = 1.01 * whole / (left + 0.01 * whole).clamp(min=1e-30)
    return torch.where(whole > 0, scale, 1.0).to(v.dtype)
