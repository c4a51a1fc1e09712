"""Networks of one architecture as points: the parameters of a module laid end to end as one vector."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from espalier._errors import EspalierError, listing
from espalier._types import Tensors
from espalier.checkpoint._base import REAL_DTYPES
from espalier.masks import unwrapped


class Space:
    """The parameter space of one module.

    A point is a vector (d,) that holds every distinct parameter once (tied ones are one), in the order of
    `named_parameters()`, on the module's device; float64 if a parameter is, else float32. What the module is, its
    forward code and its buffers, stays in the module, whose own weights are never touched: it is called with
    the weights of a point by `torch.func.functional_call`.

    Args:
        module: any module; wrappers of `torch.compile` and data parallelism are seen through.
        name: what messages call it.

    Raises:
        EspalierError: it has no parameters, lazily initialized or complex ones, or is quantized.
    """

    def __init__(self, module: nn.Module, name: str = "the network") -> None:
        self.module, self.name = unwrapped(module), name
        check_usable(self.module, name)
        parameters = dict(self.module.named_parameters())
        self.shapes = {key: tuple(p.shape) for key, p in parameters.items()}
        self.sizes = [p.numel() for p in parameters.values()]
        self.device = next(iter(parameters.values())).device
        self._dtypes = [p.dtype for p in parameters.values()]
        self.dtype = torch.float64 if torch.float64 in self._dtypes else torch.float32
        owners = {id(p): key for key, p in parameters.items()}
        self.aliases = {
            key: owners[id(p)]
            for key, p in self.module.named_parameters(remove_duplicate=False)
            if owners[id(p)] != key
        }

    @property
    def size(self) -> int:
        """Number of parameters d."""
        return sum(self.sizes)

    def vector(self, network: nn.Module | Tensors, name: str = "the other network") -> Tensor:
        """The point of a network: a new vector (d,).

        Args:
            network: a module, or its state dict; values are converted to the dtype and device of the space.
            name: what messages call it.

        Raises:
            EspalierError: it is of another architecture (names the parameters that differ), its buffers differ
                other than in batch-norm statistics, it holds values that are not finite, or it cannot be
                used at all (see the class).
        """
        if isinstance(network, nn.Module):
            network = unwrapped(network)
            check_usable(network, name)
            given: Tensors = dict(network.named_parameters())
            buffers: Tensors = dict(network.named_buffers())
        else:
            own = dict(self.module.named_buffers())
            given = {key: network[key] for key in network if key not in own and key not in self.aliases}
            buffers = {key: network[key] for key in network if key in own}
        self._check(given, name)
        self._check_buffers(buffers, name)
        flat = [given[key].detach().to(self.device, self.dtype).reshape(-1) for key in self.shapes]
        vector = torch.cat(flat)
        if not bool(vector.isfinite().all()):
            bad = [key for key in self.shapes if not bool(given[key].detach().isfinite().all())]
            raise EspalierError(f"{name} holds values that are not finite, in {listing(bad)}")
        return vector

    def weights(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters of a point by name: views of the vector, where the parameter has its dtype."""
        parts = zip(self.shapes.items(), torch.split(vector, self.sizes), self._dtypes, strict=True)
        return {key: part.view(shape).to(dtype) for (key, shape), part, dtype in parts}

    def _check(self, given: Tensors, name: str) -> None:
        missing = [key for key in self.shapes if key not in given]
        unexpected = [key for key in given if key not in self.shapes]
        differing = [
            f"{key} {tuple(given[key].shape)} for {shape}"
            for key, shape in self.shapes.items()
            if key in given and tuple(given[key].shape) != shape
        ]
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if problems := [f"{len(found)} {word}: {listing(found, 3)}" for word, found in kinds if found]:
            raise EspalierError(
                f"{name} is not of the architecture of {self.name}: {'; '.join(problems)}. Paths and planes join "
                "networks of one architecture only; `functions` compares any"
            )

    def _check_buffers(self, buffers: Tensors, name: str) -> None:
        statistics = statistics_names(self.module)
        differing = [
            key
            for key, own in self.module.named_buffers()
            if key in buffers
            and own.is_floating_point()
            and key not in statistics
            and not torch.equal(own, buffers[key].to(own))
        ]
        if differing:
            raise EspalierError(
                f"{name} differs from {self.name} in buffers that are no batch-norm statistics ({listing(differing)}): "
                "what they are between the two is not known; give both the same, or make them parameters"
            )


def check_usable(module: nn.Module, name: str) -> None:
    """Refuse modules whose parameters are no points of a real vector space.

    Raises:
        EspalierError: with the reason.
    """
    check_initialized(module, name)
    homes = {key: type(part).__module__ for key, part in module.named_modules()}
    quantized = [
        key or type(module).__name__
        for key, home in homes.items()
        if (home.startswith("torch.") and ".quantized" in home) or home.startswith("bitsandbytes")
    ]
    quantized += [
        key
        for key, p in module.named_parameters()
        if (p.dtype not in REAL_DTYPES and not p.dtype.is_complex) or p.is_quantized
    ]
    if quantized:
        raise EspalierError(
            f"{name} is quantized ({listing(quantized)}): between two integers or scaled values lies no network, and "
            "the loss is a step function of them, without gradient; give the floating-point network it was made from"
        )
    if complexes := [key for key, p in module.named_parameters() if p.dtype.is_complex]:
        raise EspalierError(
            f"{name} has complex parameters ({listing(complexes)}), of which norms, directions and curvature here are "
            "not defined; give it as a network of real and imaginary parts"
        )
    if not any(True for _ in module.parameters()):
        raise EspalierError(f"{name} has no parameters: there is no landscape over nothing")


def check_initialized(module: nn.Module, name: str) -> None:
    """Refuse modules with lazy layers that have seen no input.

    Raises:
        EspalierError: names the first one.
    """
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise EspalierError(
                f"{name} is lazily initialized: {key!r} has no shape yet; run one batch through it first"
            )


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep statistics, by name."""
    found = ((key, part) for key, part in module.named_modules() if isinstance(part, _BatchNorm))
    return {key: part for key, part in found if part.running_mean is not None}


def statistics_names(module: nn.Module) -> set[str]:
    """Names of the batch-norm statistics among the buffers."""
    parts = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{key}.{part}" if key else part for key in batch_norms(module) for part in parts}


def inner(a: Tensor, b: Tensor) -> float:
    """Inner product of two vectors, summed in float64."""
    return float((a.double() * b.double()).sum().item())


def length(a: Tensor) -> float:
    """Euclidean norm of a vector, summed in float64."""
    return math.sqrt(inner(a, a))


def average(vectors: Mapping[str, Tensor]) -> Tensor:
    r"""The mean of points, :math:`\frac1n \sum_i w_i`, as in stochastic weight averaging (Izmailov et al. 2018)."""
    if not vectors:
        raise EspalierError("an average needs at least one network")
    first = next(iter(vectors.values()))
    total = torch.zeros_like(first, dtype=torch.float64)
    for vector in vectors.values():
        total += vector
    return (total / len(vectors)).to(first.dtype)
