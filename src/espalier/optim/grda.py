"""The optimizers of the literature, as instances of `DualAveraging`."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from espalier.optim.dual_averaging import DualAveraging
from espalier.optim.laws import Lasso, LinearLaw, PowerLaw


def GRDA(
    params: Iterable[Any], lr: float | Tensor, c: float = 0.005, mu: float = 0.51, **options: Any
) -> DualAveraging:
    r"""Directional pruning's optimizer (Chao, Wang, Xing and Cheng, NeurIPS 2020, arXiv 2006.09358).

    .. math::
        v_n = v_{n-1} - \gamma_n \nabla f(w_{n-1}), \quad
        g_n = g_{n-1} + c\,\gamma_n^{\mu+1/2}\,(n^\mu - (n-1)^\mu), \quad
        w_n = \mathrm{sign}(v_n)\,(|v_n| - g_n)_+

    with :math:`v_0 = w_0` and :math:`g_0 = 0`: Algorithm 2, which at a constant rate is Algorithm 1.

    Differs from the authors' code: the threshold is kept in float64 per group (their float32 increments
    vanish after rate drops), weights are updated in place, and norms and biases are not thresholded unless
    `scope="paper"`. To repeat the paper's runs pass `scope="paper"` and no momentum or decay.

    Args:
        params: parameters, named parameters, or groups; groups have a `law`, not c and mu of their own.
        lr: gamma, the rate of SGD without momentum.
        c: >= 0; the paper uses 5e-4 to 1e-2 and advises the largest that keeps accuracy in the first epochs.
        mu: in [0, 1]; the paper uses 0.4 to 0.85.
        options: of `DualAveraging`.

    Returns:
        A `DualAveraging` with `PowerLaw(c, mu)`.

    Raises:
        EspalierError: an option is out of range.

    Example:
        >>> import torch
        >>> from espalier.optim import GRDA
        >>> w = torch.nn.Parameter(torch.tensor([[0.5, -0.1]]))
        >>> optimizer = GRDA([w], lr=0.25, c=0.8, mu=0.5)
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.data  # latent 0.25, -0.35; threshold 0.8 * 0.25 = 0.2
        tensor([[ 0.0500, -0.1500]])
    """
    return DualAveraging(params, lr, law=PowerLaw(c, mu), **options)


def RDA(params: Iterable[Any], lr: float | Tensor, penalty: float, **options: Any) -> DualAveraging:
    r"""Regularized dual averaging with an l1 penalty (Xiao, JMLR 2010), centered at the initial weights.

    With zero initial weights and a constant rate this is Xiao's
    :math:`w_{n} = \arg\min_w \langle \bar g_n, w\rangle + \lambda\|w\|_1 + \tfrac{1}{2\gamma n}\|w\|^2`, where
    :math:`\bar g_n` is the mean gradient so far.

    Args:
        params: parameters, named parameters, or groups.
        lr: gamma.
        penalty: lambda >= 0.
        options: of `DualAveraging`.

    Returns:
        A `DualAveraging` with `LinearLaw(penalty)`.

    Raises:
        EspalierError: an option is out of range.
    """
    return DualAveraging(params, lr, law=LinearLaw(penalty), **options)


def ProxSGD(params: Iterable[Any], lr: float | Tensor, penalty: float, **options: Any) -> DualAveraging:
    r"""Proximal SGD for an l1 penalty (lasso), without a latent.

    .. math:: w_n = S_{\gamma_n \lambda}(w_{n-1} - \gamma_n d_n)

    The baseline with one hyper-parameter. With momentum, lambda is scaled as the rate is, by 1 / (1 -
    momentum).

    Args:
        params: parameters, named parameters, or groups.
        lr: gamma.
        penalty: lambda >= 0.
        options: of `DualAveraging`.

    Returns:
        A `DualAveraging` with `Lasso(penalty)`.

    Raises:
        EspalierError: an option is out of range.
    """
    return DualAveraging(params, lr, law=Lasso(penalty), **options)
