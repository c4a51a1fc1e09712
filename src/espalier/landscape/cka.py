"""Linear CKA: how alike the representations of two networks are, layer by layer."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier._forward import device_of, modes
from espalier.data import AbstractSplit

_BYTES = 1 << 28  # of features that are held at a time


def linear_cka(a: Tensor, b: Tensor, *, biased: bool = False) -> float:
    r"""Linear centered kernel alignment of two sets of features of the same n inputs.

    :math:`CKA = HSIC(K, L)/\sqrt{HSIC(K, K) HSIC(L, L)}` with :math:`K = XX^\top, L = YY^\top`, in float64.

    Args:
        a: features X (n, p).
        b: features Y (n, q).
        biased: use the biased estimator of HSIC of Kornblith et al. 2019 (eq. 3), which tends to 1 when there
            are more features than inputs; the default is the unbiased one of Song et al. 2012 (eq. 5), for
            which unrelated features give 0 on average, so values below 0 occur.

    Returns:
        1 for features equal up to rotation and scale; nan if one of them does not depend on the input.

    Raises:
        EspalierError: different or too few inputs.

    References:
        Kornblith et al. (2019), "Similarity of neural network representations revisited", ICML.
        Nguyen, Raghu, Kornblith (2021), "Do wide and deep networks learn the same things?", ICLR, eq. 3.
    """
    return grams_cka(gram(a), gram(b), biased=biased)


def gram(features: Tensor) -> Tensor:
    """Inner products of the features (n, ...) of all inputs, float64 (n, n)."""
    flat = features.detach().flatten(1).double()
    return flat @ flat.T


def grams_cka(k: Tensor, other: Tensor, *, biased: bool = False) -> float:
    """`linear_cka` from the inner products (n, n) of either side."""
    if k.shape != other.shape:
        raise EspalierError(f"CKA needs the same inputs for both networks, got {len(k)} and {len(other)}")
    if len(k) < 4:
        raise EspalierError(f"CKA needs at least 4 inputs, got {len(k)}")
    hsic = _biased if biased else _unbiased
    cross, own, theirs = hsic(k, other), hsic(k, k), hsic(other, other)
    scale = own * theirs
    return cross / scale**0.5 if own > 0 and theirs > 0 else float("nan")


def layers_cka(
    a: nn.Module, b: nn.Module, split: AbstractSplit, *, biased: bool = False, batch_size: int = 200
) -> dict[str, float]:
    """Linear CKA of two networks at every layer both have under the same name; eval mode, modes are restored.

    The layers are the modules with a weight of two or more dimensions (convolution, linear); their outputs,
    flattened, are the features. As many passes are made as keep the features in memory below 256 MiB.

    Args:
        a: network.
        b: network; its layers may have other widths.
        split: inputs only; the n x n products of every layer are held.
        biased: see `linear_cka`.
        batch_size: inputs per forward pass.

    Returns:
        Layer name -> CKA, in the order of the first network.

    Raises:
        EspalierError: no layer in common, too few inputs.
    """
    theirs = set(layer_names(b))
    common = [name for name in layer_names(a) if name in theirs]
    if not common:
        raise EspalierError("the two networks have no layer of the same name: CKA compares layers by name")
    one, two = (layer_grams(network, common, split, batch_size=batch_size) for network in (a, b))
    return {
        name: grams_cka(one[name], two[name], biased=biased) for name in common if name in one and name in two
    }


def layer_names(network: nn.Module) -> list[str]:
    """Modules with a weight of two or more dimensions of their own, in the order of the network."""
    return [
        name
        for name, part in network.named_modules()
        if any(p.ndim >= 2 for p in part.parameters(recurse=False))
    ]


def layer_grams(
    network: nn.Module, names: Iterable[str], split: AbstractSplit, *, batch_size: int = 200
) -> dict[str, Tensor]:
    """Inner products (n, n) of the outputs of the named modules; those that give no tensor are left out."""
    names = list(names)
    sizes = {
        name: value.numel() * value.element_size()
        for name, value in _outputs(network, names, split.take(1), 1).items()
    }
    found: dict[str, Tensor] = {}
    group: list[str] = []
    held = 0
    for name in [*sizes, None]:
        if name is None or (group and held + sizes[name] * len(split) > _BYTES):
            outputs = _outputs(network, group, split, batch_size)
            found |= {key: gram(value).cpu() for key, value in outputs.items()}
            group, held = [], 0
        if name is not None:
            group.append(name)
            held += sizes[name] * len(split)
    return found


def _outputs(
    network: nn.Module, names: Iterable[str], split: AbstractSplit, batch_size: int
) -> Mapping[str, Tensor]:
    """What the named modules give for every input; of a module that runs twice a pass, the last."""
    device, parts = device_of(network), dict(network.named_modules())
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    now: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                now[name] = output.detach().flatten(1)

        return hook

    handles = [parts[name].register_forward_hook(keep(name)) for name in kept]
    try:
        with modes(network), torch.no_grad():
            network.eval()
            for x in split.inputs(batch_size):
                now.clear()
                network(x.to(device))
                for name, output in now.items():
                    kept[name].append(output)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(pieces) for name, pieces in kept.items() if pieces}


def _biased(k: Tensor, other: Tensor) -> float:
    """HSIC_0 without its constant factor: tr(K H L H)."""

    def centered(m: Tensor) -> Tensor:
        return m - m.mean(0, keepdim=True) - m.mean(1, keepdim=True) + m.mean()

    return float((centered(k) * centered(other)).sum())


def _unbiased(k: Tensor, other: Tensor) -> float:
    """HSIC_1 of Song et al. (2012), eq. 5, without its constant factor 1/(n(n - 3))."""
    n = len(k)
    k, other = k - torch.diag(k.diagonal()), other - torch.diag(other.diagonal())
    trace = (k * other).sum()
    sums = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return float(trace + sums - 2 / (n - 2) * (k.sum(0) @ other.sum(0)))
