"""The published search, slowly: prune at each of 101 sparsities, measure the cosine, take the best point.

Written from the description of the procedure: every point starts from an untouched copy of the network, is
pruned globally by magnitude with `torch.nn.utils.prune`, and the two flat parameter vectors are compared.
Float64 where the published code has float32.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def pruned_vector(model: nn.Module, sparsity: float) -> tuple[Tensor, int]:
    """Flat parameters of a globally pruned copy (weights and biases), and the number of zeros put in."""
    net = copy.deepcopy(model)
    slots = [
        (module, name)
        for module in net.modules()
        for name in ("weight", "bias")
        if isinstance(getattr(module, name, None), nn.Parameter)
    ]
    total = sum(getattr(module, name).numel() for module, name in slots)
    names = [(module, name, getattr(module, name)) for module, name in slots]
    prune.global_unstructured(slots, pruning_method=prune.L1Unstructured, amount=float(sparsity))
    masks = {id(parameter): getattr(module, f"{name}_mask") for module, name, parameter in names}
    originals = dict(net.named_parameters())
    flat = []
    for parameter in originals.values():
        mask = masks.get(id(parameter))
        values = parameter.detach().double().flatten()
        flat.append(values if mask is None else values * mask.double().flatten())
    return torch.cat(flat), round(sparsity * total)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors, 0 where one is zero."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 0.0


def front(model: nn.Module) -> tuple[list[float], list[float]]:
    """The 101 points (sparsity, cosine)."""
    parent, _ = pruned_vector(model, 0.0)
    sparsities = [i / 100 for i in range(101)]
    return sparsities, [cosine(parent, pruned_vector(model, s)[0]) for s in sparsities]


def utopia(model: nn.Module) -> float:
    """Sparsity of the first point with the least distance to (1, 1)."""
    sparsities, cosines = front(model)
    distances = [math.hypot(1 - s, 1 - c) for s, c in zip(sparsities, cosines)]
    return sparsities[distances.index(min(distances))]


def factor(kurtoses: list[float]) -> float:
    """The published multiplier of the safe amount, from the per-tensor kurtoses."""
    mean = sum(kurtoses) / len(kurtoses)
    m2 = sum((k - mean) ** 2 for k in kurtoses) / len(kurtoses)
    m4 = sum((k - mean) ** 4 for k in kurtoses) / len(kurtoses)
    kappa = m4 / m2**2
    return 1 / math.log2(kappa) if kappa < math.e else 1 / math.log(kappa)
