"""The mean loss of a network on fixed data, as a function of its weights: value, gradient, curvature."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from espalier._errors import EspalierError, listing, near
from espalier._forward import device_of, logits_of, modes, takes_channels_last
from espalier._types import Tensors
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit, Batch
from espalier.landscape.points import check_usable
from espalier.masks import unwrapped
from espalier.processes import share, summed
from espalier.selection import Selection

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) of a batch -> the sum of the losses of its examples, a scalar."""
Kind = Literal["hessian", "gauss-newton"]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the batch."""
    return F.cross_entropy(outputs, labels, reduction="sum")


class Risk:
    r"""The mean loss over fixed examples as a function of the selected weights.

    .. math:: L(w) = \frac1N \sum_{i=1}^N \ell(f_w(x_i), y_i)

    The network runs in eval mode (batch norm with its stored statistics, no dropout), over the examples in one
    fixed order; weights that are not selected, and buffers, stay as they are. The module is called through
    `torch.func.functional_call` with copies: it is never changed, and any `nn.Module` will do. Outside, weights
    are tensors by name; inside, one flat vector in the order of `names`, so that vector arithmetic has no loop
    over parameters. Sums over batches are float64.

    At construction the loss and the gradient of the first batch (of all data, for batches that are not a split
    of ours) are computed twice and compared: curvature of something that changes is not curvature.

    If `torch.distributed` is initialized, every process takes its share of the batches and the sums are added
    up in float64 (`espalier.processes`); each must be given the same model and data.

    Args:
        model: returns outputs, or an object with `.logits`.
        data: a split, or batches (inputs, labels) that can be iterated over again and again.
        selection: whose names are the variables; None takes every parameter that training would touch.
        batch_size: examples per pass, for a split; changes memory and time, the result only by rounding.
        loss: of outputs and labels, summed over the batch.
        dtype: to compute in; None takes that of the model, at least float32. float64 costs time and helps where
            eigenvalues near zero matter.
        device: where to compute; None stays where the model is.

    Raises:
        EspalierError: no data, labels that are no classes of the model, names that are not parameters, weights
            that are lazy, complex or quantized, dropout that stays on in eval mode, a loss that is not finite, or one
            that is not the same twice.
    """

    def __init__(
        self,
        model: nn.Module,
        data: AbstractSplit | Iterable[Batch],
        *,
        selection: Selection | None = None,
        batch_size: int = 200,
        loss: Loss = cross_entropy,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._model, self._data, self._batch_size, self._loss = unwrapped(model), data, batch_size, loss
        check_usable(self._model, "the model")
        _refuse_dropout(self._model)
        self.device = device_of(self._model) if device is None else torch.device(device)
        values = {name: p.detach() for name, p in self._model.named_parameters()}
        self.names = _variables(self._model, values, selection)
        self.dtype = dtype or torch.promote_types(values[self.names[0]].dtype, torch.float32)
        self._fixed = {
            name: self._moved(tensor.clone())
            for name, tensor in [*values.items(), *self._model.named_buffers()]
            if name not in self.names
        }
        self.shapes = {name: tuple(values[name].shape) for name in self.names}
        self._sizes = [values[name].numel() for name in self.names]
        self.weights = self.flat(values)
        self.dimension = len(self.weights)
        self.examples = self._count()
        self._forward = True  # until an operation says that it cannot
        self._layout = torch.contiguous_format
        if self.device.type == "cpu" and takes_channels_last(self._model, next(iter(self._whole()))[0]):
            self._layout = torch.channels_last
        if loss is cross_entropy:
            self._check_labels()
        self._probe()

    def flat(self, tensors: Tensors) -> Tensor:
        """One vector (d,) of tensors by name; those that are no variables are left out.

        Raises:
            EspalierError: a variable is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise EspalierError(
                    f"a vector of weights needs {name!r}, which is not there.{near(name, tensors)}"
                )
            if tuple(tensors[name].shape) != shape:
                raise EspalierError(
                    f"{name!r} has shape {tuple(tensors[name].shape)} where {shape} was needed; "
                    "the networks must have the same architecture"
                )
        return torch.cat([self._moved(tensors[name].detach()).reshape(-1) for name in self.names])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The pieces of a vector (d,) by name: views in the shapes of the parameters."""
        pieces = torch.split(flat, self._sizes)
        return {name: piece.view(self.shapes[name]) for name, piece in zip(self.names, pieces, strict=True)}

    def loss(self, at: Tensor | Tensors | None = None) -> float:
        """The mean loss at some weights; None: where the model is."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self._running(), torch.no_grad():
            weights = self.named(self._vector(at))
            for x, y in self.batches():
                total += self._loss(self._outputs(weights, x), y)
        return float(summed(total)) / self.examples

    def gradient(self, at: Tensor | Tensors | None = None) -> dict[str, Tensor]:
        """The gradient of the mean loss by name, float64."""
        return self.named(self.loss_and_gradient(at)[1])

    def loss_and_gradient(self, at: Tensor | Tensors | None = None) -> tuple[float, Tensor]:
        """The mean loss, and its gradient as a vector (d,) in float64."""
        return self._loss_and_gradient(self._vector(at), self.batches())

    def product(self, at: Tensor, v: Tensor, kind: Kind = "hessian") -> Tensor:
        """One curvature-vector product (d,), float64; see `espalier.landscape.operators.Curvature`.

        Args:
            at: weights (d,).
            v: vector (d,).
            kind: "hessian", by differentiating the gradient once more; or "gauss-newton", J' (d^2 loss / d
                outputs^2) J, which is positive semi-definite for convex losses.
        """
        if kind not in get_args(Kind):
            raise EspalierError(f"curvature {kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
        one = self._hessian_product if kind == "hessian" else self._gauss_newton_product
        at, v = self._moved(at), self._moved(v)
        total = torch.zeros(self.dimension, dtype=torch.float64, device=self.device)
        with self._running():
            for x, y in self.batches():
                total += one(at, v, x, y)
        return summed(total).div_(self.examples)

    def _hessian_product(self, at: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self._forward:
            try:
                return self._forward_then_back(at, v, x, y)
            except RuntimeError:
                # An operation without a forward derivative, or with one that has none itself.
                self._forward = False
        return self._back_twice(at, v, x, y)

    def _forward_then_back(self, at: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """J' (d^2 loss / d z^2) J v + (d J v / d w)' (d loss / d z), with z the outputs and J their derivative."""
        leaf = at.detach().requires_grad_()
        outputs, along = self._along(leaf, v, x)
        if along is None:  # the outputs do not depend on the weights
            return torch.zeros_like(v)
        slope, bent = self._bent(outputs, along, y)
        parts = [(z, weight) for z, weight in ((outputs, bent), (along, slope)) if z.requires_grad]
        return torch.autograd.grad(
            [z for z, _ in parts], leaf, [w for _, w in parts], materialize_grads=True
        )[0]

    def _back_twice(self, at: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        loss = self._loss(self._outputs(self.named(leaf), x), y)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        if not gradient.requires_grad:  # the loss is linear in the weights
            return torch.zeros_like(v)
        return torch.autograd.grad(gradient, leaf, v, materialize_grads=True)[0]

    def _gauss_newton_product(self, at: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        # Two passes, one for J v and one for J': a single one would record the tangents too, at twice the time.
        with torch.no_grad():
            _, along = self._along(at, v, x)
        if along is None:
            return torch.zeros_like(v)
        leaf = at.detach().requires_grad_()
        outputs = self._outputs(self.named(leaf), x)
        _, bent = self._bent(outputs, along, y)
        return torch.autograd.grad(outputs, leaf, bent, materialize_grads=True)[0]

    def _along(self, at: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs, and their derivative along v; None where they do not depend on the weights."""
        _load_forward_ad()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(at, v)  # type: ignore[no-untyped-call]
            outputs, along = forward_ad.unpack_dual(self._outputs(self.named(dual), x))  # type: ignore[no-untyped-call]
        return outputs, along

    def _bent(self, outputs: Tensor, along: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """First derivative of the loss in the outputs, and the second times a vector."""
        inner = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._loss(inner, y), inner, create_graph=True)
        if not slope.requires_grad:
            return slope, torch.zeros_like(along)
        return slope.detach(), torch.autograd.grad(slope, inner, along.detach())[0]

    def _loss_and_gradient(self, at: Tensor, batches: Iterable[Batch]) -> tuple[float, Tensor]:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        slope = torch.zeros(self.dimension, dtype=torch.float64, device=self.device)
        leaf = at.detach().requires_grad_()
        with self._running():
            weights = self.named(leaf)
            for x, y in batches:
                loss = self._loss(self._outputs(weights, x), y)
                slope += torch.autograd.grad(loss, leaf, materialize_grads=True)[0]
                total += loss.detach()
        return float(summed(total)) / self.examples, summed(slope).div_(self.examples)

    def _outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Any = functional_call(self._model, {**self._fixed, **weights}, (x,))
        return found if isinstance(found, Tensor) else logits_of(found)

    def batches(self) -> Iterator[Batch]:
        """This process's share of the batches, where and in what to compute."""
        for x, y in share(self._whole()):
            moved = self._moved(x)
            yield (
                (moved.contiguous(memory_format=self._layout) if moved.ndim == 4 else moved),
                y.to(self.device),
            )

    def _whole(self) -> Iterable[Batch]:
        data = self._data
        return data.batches(self._batch_size) if isinstance(data, AbstractSplit) else data

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _vector(self, at: Tensor | Tensors | None) -> Tensor:
        if at is None:
            return self.weights
        return self._moved(at) if isinstance(at, Tensor) else self.flat(at)

    @contextmanager
    def _running(self) -> Iterator[None]:
        # Fused attention has no second derivative; the plain one has.
        with modes(self._model), sdpa_kernel(SDPBackend.MATH):
            self._model.eval()
            yield

    def _count(self) -> int:
        if isinstance(self._data, AbstractSplit):
            n = len(self._data)
        else:
            if iter(self._data) is self._data:
                raise EspalierError(
                    "the data can be iterated over only once, and curvature needs many passes: give a split, "
                    "a list of batches, or a DataLoader"
                )
            n = sum(len(y) for _, y in self._data)
        if not n:
            raise EspalierError("no examples: the risk is a mean over data, and there are none")
        return n

    def _check_labels(self) -> None:
        """Refuses labels that the outputs have no class for, where outputs are classes by example."""
        x, _ = next(iter(self._whole()))
        with self._running(), torch.no_grad():
            outputs = self._outputs(self.named(self.weights), self._moved(x[:1]))
        if outputs.ndim != 2:
            return
        data = self._data
        each = [data.labels] if isinstance(data, AbstractSplit) else [y for _, y in data]
        low, high = (min(int(y.min()) for y in each), max(int(y.max()) for y in each))
        if low < 0:
            raise EspalierError(f"label {low} found: curvature needs an example's class, from 0")
        if high >= outputs.shape[1]:
            raise EspalierError(
                f"label {high} found, but the model has {outputs.shape[1]} classes: wrong model or data set"
            )

    def _probe(self) -> None:
        """Refuses what is not the same function twice, and what is not finite."""
        some = 1 if isinstance(self._data, AbstractSplit) else None
        passes = [self._loss_and_gradient(self.weights, islice(self.batches(), some)) for _ in range(2)]
        (first, slope), (second, again) = passes
        if not (torch.isfinite(slope).all() and torch.isfinite(torch.tensor(first))):
            raise EspalierError(
                f"the loss or its gradient is not finite ({first:g}): curvature needs a finite one; "
                "look for NaN in weights and inputs"
            )
        tolerance = 1e-9 if self.dtype == torch.float64 else 1e-4
        drift = float((slope - again).norm() / slope.norm().clamp_min(1e-12))
        if abs(first - second) > tolerance * max(abs(first), 1e-6) or drift > tolerance:
            raise EspalierError(
                f"the same weights on the same data gave two answers (loss {first:.8g} and {second:.8g}, "
                f"gradients {drift:.1g} apart): curvature needs a fixed function; look for F.dropout without "
                "training=self.training, and for a loader that shuffles and drops, augments or samples"
            )


@cache
def _load_forward_ad() -> None:
    """Torch loads its forward derivatives at their first use, with a warning about its own code."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1)).sin()  # type: ignore[no-untyped-call]


def _variables(model: nn.Module, values: dict[str, Tensor], selection: Selection | None) -> tuple[str, ...]:
    """Names of the variables in the order of the parameters."""
    if selection is None:
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise EspalierError("the model has no parameter that requires a gradient; give a selection")
        return tuple(trained)
    aliases = open_checkpoint(model).aliases
    wanted = [aliases.get(name, name) for name in selection.names]
    unknown = [name for name in wanted if name not in values]
    if unknown:
        raise EspalierError(
            f"the selection names {listing(unknown)}, no parameters of the model.{near(unknown[0], values)}"
        )
    return tuple(name for name in values if name in set(wanted))


def _refuse_dropout(model: nn.Module) -> None:
    with modes(model):
        model.eval()
        left = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p
        ]
    if left:
        raise EspalierError(
            f"dropout {listing(left)} stays on in eval mode, so the loss is random: set its p to 0"
        )
