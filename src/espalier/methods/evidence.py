"""What scores read beyond the weights: gradients, curvature and flow of a live network, which is left as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from espalier._errors import EspalierError, listing
from espalier._forward import as_input, device_of, logits_of, modes
from espalier.checkpoint.reparametrized import groups_of
from espalier.data import seeded
from espalier.masks import named_parameters, unwrapped
from espalier.methods._base import Batches
from espalier.methods.flow import synaptic_flow
from espalier.scores import Evidence, Sampling

Found = dict[str, Tensor]

_FIRST_ORDER = frozenset({"gradients", "squared_gradients", "gradient_samples"})
_SECOND_ORDER = frozenset({"hessian_gradient", "hessian_diagonal"})
_GATHERED = _FIRST_ORDER | _SECOND_ORDER | {"weights", "synaptic_flow"}


def gather(
    model: nn.Module,
    names: tuple[str, ...],
    needs: frozenset[str],
    batches: Batches | None,
    sampling: Sampling | None = None,
) -> Evidence:
    """Exactly the evidence that is needed, without a second copy of the network.

    Cross-entropy in eval mode (see `Sampling` for batch norm), in the dtype of the network, on its device, the same
    bits for the same batches. Afterwards parameters, gradients, buffers, modes, `requires_grad` and the random
    generators are as before. What the answer holds takes memory of its own: one tensor like the weights for each
    field, m of them for `gradient_samples`.

        >>> import torch
        >>> from espalier.masks import Masks
        >>> from espalier.methods import gather
        >>> from espalier.pruning import kept_entries
        >>> from espalier.scores import SNIP, Sampling, ranked
        >>> from espalier.threshold import top_counts
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
        >>> evidence = gather(model, ("weight",), SNIP.needs, lambda count: iter(data), Sampling(8, 8))
        >>> scores = ranked(SNIP(), evidence)
        >>> Masks.from_scores(scores, top_counts(scores, kept_entries(12, 0.75))).kept
        3

    Args:
        model: returns logits (B, classes), or an object with `.logits`.
        names: of the parameters, which may be frozen.
        needs: fields of `Evidence`; see `AbstractScore.needs`.
        batches: called with a number of examples, gives (inputs, labels) in an order that is always the same; None
            where there is no data.
        sampling: which of them; None is `Sampling()`.

    Raises:
        EspalierError: a field that only training gives, no data where it is needed, an example without a label, or
            a network without synaptic flow.
    """
    model = unwrapped(model)
    every = named_parameters(model)
    parameters = {name: every[name] for name in names}
    found: dict[str, Found] = {}
    # What nothing here can gather stays None, which is refused where a score asks for it.
    if wanted := (needs & _GATHERED) - {"weights", "synaptic_flow"}:
        if batches is None:
            raise EspalierError(
                f"{listing(sorted(wanted))} are measured on training data, and there is none here."
            )
        with _still(model, parameters, sampling or Sampling()), torch.enable_grad():
            groups = _Groups(model, batches, sampling or Sampling())
            if wanted & _FIRST_ORDER or "hessian_gradient" in wanted:
                found |= _first_order(groups, parameters, wanted)
            if wanted & _SECOND_ORDER:
                found |= _second_order(groups, parameters, wanted, found.get("gradients", {}))
    if "synaptic_flow" in needs:
        if batches is None:
            raise EspalierError("synaptic flow needs the shape of the inputs, and there is no data here.")
        x = next(iter(batches(1)), (torch.empty(0),))[0]
        found["synaptic_flow"] = synaptic_flow(model, parameters, x[:1])
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    answer: dict[str, Any] = {field: found[field] for field in found if field in needs}
    shapes = {name: tuple(tensor.shape) for name, tensor in [*every.items(), *model.named_buffers()]}
    return Evidence(weights, **answer, groups=groups_of(shapes, names))


class _Groups:
    """The loss of one group of examples after the other, as often as it is asked for."""

    def __init__(self, model: nn.Module, batches: Batches, sampling: Sampling) -> None:
        self.model, self.batches, self.sampling = model, batches, sampling

    def losses(self) -> Iterator[Tensor]:
        """Mean cross-entropy of each group, with its graph."""
        device = device_of(self.model)
        for x, y in self._groups():
            if bool((y < 0).any()):
                raise EspalierError(
                    "a score that reads the loss needs labels, and some training examples have none; use one that "
                    "reads the weights alone, such as Magnitude()"
                )
            logits = logits_of(self.model(as_input(self.model, x)))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            yield F.cross_entropy(logits / self.sampling.temperature, y.to(device))

    def _groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        size, left, whole = self.sampling.group, None, False
        for x, y in self.batches(self.sampling.examples):
            if left is not None:
                x, y = torch.cat([left[0], x]), torch.cat([left[1], y])
            while len(x) >= size:
                yield x[:size], y[:size]
                x, y, whole = x[size:], y[size:], True
            left = (x, y)
        if left is None or not whole:
            if left is None or not len(left[0]):
                raise EspalierError(
                    "a score that reads the loss needs training examples, and there are none."
                )
            yield left


def _first_order(
    groups: _Groups, parameters: dict[str, nn.Parameter], wanted: frozenset[str]
) -> dict[str, Found]:
    """Sums over groups of gradients and of their squares, and the gradients themselves."""
    sampling = groups.sampling
    sums = {name: _zeros(p, torch.float32) for name, p in parameters.items()}
    squares, samples = {}, {}
    if "squared_gradients" in wanted:
        squares = {name: _zeros(p, torch.float64) for name, p in parameters.items()}
    if "gradient_samples" in wanted:
        most = max(1, sampling.examples // sampling.group)
        samples = {name: _zeros(p, torch.float32, most) for name, p in parameters.items()}
    m = 0
    for loss in groups.losses():
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient
            if squares:
                squares[name] += gradient.double().square()
            if samples:
                samples[name][m] = gradient
        m += 1
    found = {"gradients": {name: total.div_(m) for name, total in sums.items()}}
    if squares:
        found["squared_gradients"] = {name: total.div_(m) for name, total in squares.items()}
    if samples:
        found["gradient_samples"] = {name: rows[:m] for name, rows in samples.items()}
    return found


def _second_order(
    groups: _Groups, parameters: dict[str, nn.Parameter], wanted: frozenset[str], gradient: Found
) -> dict[str, Found]:
    """Hessian products, mean over groups: with the gradient, and with signs entry by entry."""
    fields = sorted(wanted & _SECOND_ORDER)
    sums = {field: {name: _zeros(p, torch.float32) for name, p in parameters.items()} for field in fields}
    m = 0
    # The fast attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for loss in groups.losses():
            slopes = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=True, materialize_grads=True
            )
            for field in fields:
                if field == "hessian_gradient":
                    vectors = {name: gradient[name].to(p.dtype) for name, p in parameters.items()}
                else:
                    vectors = {name: _signs(name, m, p) for name, p in parameters.items()}
                products = _product(slopes, parameters, vectors)
                for name, product in products.items():
                    sums[field][name] += product if field == "hessian_gradient" else product * vectors[name]
            m += 1
    return {field: {name: total.div_(m) for name, total in found.items()} for field, found in sums.items()}


def _product(slopes: tuple[Tensor, ...], parameters: dict[str, nn.Parameter], vectors: Found) -> Found:
    """The Hessian, given by the graph of the gradient, times a vector."""
    along = torch.stack([(g * v).sum() for g, v in zip(slopes, vectors.values(), strict=True)]).sum()
    if not along.requires_grad:  # a loss that is linear in every parameter
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    found = torch.autograd.grad(along, list(parameters.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def _signs(name: str, index: int, like: Tensor) -> Tensor:
    """Independent signs that depend on the name and the index alone."""
    generator = seeded("signs", name, index)
    drawn = torch.randint(2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.mul_(2).sub_(1).to(like.device, like.dtype)


def _zeros(like: Tensor, dtype: torch.dtype, rows: int | None = None) -> Tensor:
    """Zeros in a tensor's shape, in at least this dtype."""
    shape = like.shape if rows is None else (rows, *like.shape)
    return torch.zeros(shape, dtype=torch.promote_types(dtype, like.dtype), device=like.device)


@contextmanager
def _still(model: nn.Module, parameters: dict[str, nn.Parameter], sampling: Sampling) -> Iterator[None]:
    """Eval mode and gradients for these parameters alone; modes, buffers and `requires_grad` are put back."""
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    chosen = {id(p) for p in parameters.values()}
    with ExitStack() as stack:
        stack.enter_context(modes(model))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            # Its kernels have no backward pass in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        model.eval()
        if sampling.batch_statistics:
            stack.enter_context(_batch_statistics(model))
        try:
            for p, _ in wanted:
                p.requires_grad_(id(p) in chosen)
            yield
        finally:
            for p, before in wanted:
                p.requires_grad_(before)


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm as in training; its buffers are put back."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [[(buffer, buffer.clone()) for buffer in layer.buffers()] for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for buffers in before:
            for buffer, old in buffers:
                buffer.copy_(old)
