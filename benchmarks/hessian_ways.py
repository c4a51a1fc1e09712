"""Ways to a product with the Hessian that were not taken: slower, or faster at a price in memory."""

import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from benchmarks.curvature import noise
from espalier.landscape import Risk
from espalier.models import CifarResNet, DigitsCNN


class Others:
    """The same product on one batch, by other ways.

    What `Risk.product` does, forward with a derivative and back through both, takes 8 convolutions where a gradient
    takes 3. Backward twice and forward over backward also compute the gradient, which nobody asked for: 9, and a
    convolution's second derivative has no fast kernel of its own. A graph that is kept over products saves the
    passes that do not depend on the vector, and holds the activations of all examples with their derivatives.

    Args:
        model: put in eval mode.
        x: inputs.
        y: labels.
        v: vector (d,).
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> None:
        self.model, self.x, self.y, self.v = model.eval(), x, y, v
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        leaf = self.weights.clone().requires_grad_()
        self.kept = leaf, self.slope(leaf, create_graph=True)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own code
            _, self.linear = torch.func.linearize(torch.func.grad(self.loss), self.weights)
        self.tracing = time.perf_counter() - start

    def loss(self, flat: Tensor) -> Tensor:
        """Summed over the batch."""
        pieces = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        items = zip(self.shapes.items(), pieces, strict=True)
        weights = {name: piece.view(shape) for (name, shape), piece in items}
        return F.cross_entropy(functional_call(self.model, weights, (self.x,)), self.y, reduction="sum")

    def slope(self, flat: Tensor, create_graph: bool = False) -> Tensor:
        """Its gradient."""
        return torch.autograd.grad(self.loss(flat), flat, create_graph=create_graph)[0]

    def backward_twice(self) -> Tensor:
        """The gradient, differentiated."""
        leaf = self.weights.clone().requires_grad_()
        return torch.autograd.grad(self.slope(leaf, create_graph=True), leaf, self.v)[0]

    def forward_over_backward(self) -> Tensor:
        """The gradient, with its derivative carried along."""
        with forward_ad.dual_level():
            leaf = self.weights.clone().requires_grad_()
            dual = forward_ad.make_dual(leaf, self.v)  # type: ignore[no-untyped-call]
            (found,) = torch.autograd.grad(self.loss(dual), leaf)
            return forward_ad.unpack_dual(found).tangent  # type: ignore[no-any-return, no-untyped-call]

    def backward_kept(self) -> Tensor:
        """The second half of `backward_twice`."""
        leaf, slope = self.kept
        return torch.autograd.grad(slope, leaf, self.v, retain_graph=True)[0]

    def linearized(self) -> Tensor:
        """What `torch.func.linearize` makes of the gradient; its time is without the tracing."""
        return self.linear(self.v)  # type: ignore[no-any-return]


def hessian_ways(quick: bool = False) -> Part:
    """A product with the Hessian over the fastest other way that keeps nothing; every way in gradients."""
    model: nn.Module = DigitsCNN() if quick else CifarResNet(20, 10)
    risk = Risk(model, noise(8, (1, 8, 8)) if quick else noise(50, (3, 32, 32)), batch_size=50)
    v = torch.randn(risk.dimension, generator=torch.Generator().manual_seed(0))
    ((x, y),) = risk.batches()
    others = Others(model, x, y, v)
    fresh: dict[str, Callable[[], Tensor]] = {
        "backward twice": others.backward_twice,
        "forward over backward": others.forward_over_backward,
    }
    times = interleaved(
        {
            "gradient": risk.loss_and_gradient,
            "as it is": partial(risk.product, risk.weights, v, "hessian"),
            **fresh,
            "backward twice, graph kept": others.backward_kept,
            "linearized, graph kept": others.linearized,
        },
        2 if quick else 10,
    )
    best = min(fresh, key=lambda name: min(times[name]))
    measured = {
        "parameters": risk.dimension,
        "examples": risk.examples,
        "seconds": table(times),
        "gradients": {name: ratio(seconds, times["gradient"])[0] for name, seconds in times.items()},
        "seconds to linearize": others.tracing,
    }
    return Part([Goal(f"product over {best}", 1.0, *ratio(times["as it is"], times[best]))], measured)
