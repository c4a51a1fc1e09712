"""Loss and accuracy at any weights of one module, on fixed data, with batch norm re-estimated at every point."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from espalier._errors import EspalierError, plural
from espalier._forward import as_input, logits_of, modes, takes_channels_last
from espalier.data._base import Batch
from espalier.landscape.batches import Data, FixedBatches
from espalier.landscape.points import Space, batch_norms
from espalier.processes import place, share, summed

_TRIED = 8  # inputs on which a network is asked twice whether it answers the same


@dataclass(frozen=True)
class Level:
    """A network on one set of examples.

    Args:
        loss: mean cross-entropy over the examples, in nats, summed in float64.
        accuracy: fraction right, in [0, 1].
        n: number of examples.
    """

    loss: float
    accuracy: float
    n: int

    @property
    def error(self) -> float:
        """Fraction wrong."""
        return 1 - self.accuracy


@dataclass(frozen=True)
class Height:
    """A point of the surface.

    Args:
        train: on the training examples.
        test: on the test examples; None without any.
    """

    train: Level
    test: Level | None

    def record(self) -> dict[str, dict[str, float | int]]:
        """Plain values for JSON."""
        parts = {"train": self.train, "test": self.test}
        return {
            k: {"loss": v.loss, "accuracy": v.accuracy, "n": v.n} for k, v in parts.items() if v is not None
        }

    @staticmethod
    def from_record(record: dict[str, dict[str, float]]) -> "Height":
        """What `record` gave, after it went through JSON, where a loss that was not finite became null."""
        levels = {
            key: Level(math.nan if part["loss"] is None else part["loss"], part["accuracy"], int(part["n"]))
            for key, part in record.items()
        }
        return Height(levels["train"], levels.get("test"))


class Surface:
    """Loss and accuracy as a function of the weights of one module.

    Everything is in eval mode (dropout off, whatever mode the module is in, and its mode, weights and buffers are
    as before afterwards), except batch norm, whose statistics belong to weights and are estimated anew at
    each point from the training inputs, as `torch.optim.swa_utils.update_bn` does: plain averages over
    batches of batch mean and unbiased variance. The inputs carry the augmentation of the split, in one fixed draw:
    statistics of unaugmented inputs are not those a network was trained with (the prepared ResNet-20 of
    the results falls from 87 % to 83 % by them alone). The passes:

    * without batch norm: one over the training examples, one over the test examples, nothing augmented;
    * `shared` (the default): the pass over the training examples estimates the statistics and gives the
      training loss, of the augmented inputs and with each batch normalized by its own mean and variance, so
      batch norm costs nothing extra. With
      all examples in one batch this differs from the loss under the new statistics only in the factor
      n / (n - 1) of the variance; with several batches by their sampling noise;
    * `shared=False`: a pass for the statistics, then one in eval mode for the training loss, not augmented.

    The test loss always uses the new statistics.

    If `torch.distributed` is initialized, every process takes its share of the batches of each pass, and sums and
    statistics are put together in float64 (`espalier.processes`).

    Args:
        module: any classifier that returns logits (B, classes) or an object with `.logits`; stays on its device.
        train: labelled training examples; see `FixedBatches`.
        test: labelled examples to report on, if any.
        batch_size: examples per forward pass, of a split.
        shared: see above.
        augment: see above; False leaves the inputs as they are. Loaders are taken as they come.
        name: what messages call the module.

    Raises:
        EspalierError: the module cannot be used (see `Space`) or is random in eval mode, the data move or do
            not fit, or a batch of one example is to give batch-norm statistics.
    """

    def __init__(
        self,
        module: nn.Module,
        train: Data,
        test: Data | None = None,
        *,
        batch_size: int = 500,
        shared: bool = True,
        augment: bool = True,
        name: str = "the network",
    ) -> None:
        self.space = Space(module, name)
        self.module, self.shared = self.space.module, shared
        device = self.space.device
        self.train = FixedBatches(train, "training", batch_size=batch_size, augment=augment, device=device)
        self.test = None if test is None else FixedBatches(test, "test", batch_size=batch_size, device=device)
        self.evaluations = 0
        self._layers = batch_norms(self.module)
        if self._layers and self.train.smallest() < 2:
            raise EspalierError(
                "batch-norm statistics need at least 2 training examples in every batch; give a larger batch size"
            )
        self._layout = torch.contiguous_format
        self._try(name)

    @property
    def norms(self) -> int:
        """Batch-norm layers whose statistics are re-estimated."""
        return len(self._layers)

    @property
    def note(self) -> str:
        """One sentence for reports on how batch norm was treated."""
        if not self._layers:
            return "no batch norm; eval mode"
        batches = plural(self.train.passes(), "batch").replace("batchs", "batches")
        inputs = "training inputs, augmented as in training" if self.train.augment else "training inputs"
        how = (
            f"in the pass that gives the training loss, over {batches} of {inputs}, each normalized by itself"
            if self.shared
            else f"in a pass of their own over {batches} of {inputs}"
        )
        return f"statistics of {self.norms} batch-norm layers re-estimated at every point, {how}; otherwise eval mode"

    @property
    def spec(self) -> dict[str, object]:
        """What the values depend on besides the weights, for files that can be resumed."""
        return {
            "examples, training": self.train.examples,
            "examples, test": None if self.test is None else self.test.examples,
            "train": self.train.digest,
            "test": None if self.test is None else self.test.digest,
            "batches": self.train.passes(),
            "shared": self.shared,
            "augment": self.train.augment,
        }

    def __call__(self, vector: Tensor) -> Height:
        """Loss and accuracy at a point (d,)."""
        weights, buffers = self.space.weights(vector), self._fresh()
        self.evaluations += 1
        with torch.no_grad(), self._evaluating():
            train = self._estimate(weights, buffers) if self._layers else None
            if train is None or not self.shared:
                train = self._level(weights, buffers, self.train)
            test = None if self.test is None else self._level(weights, buffers, self.test)
        return Height(train, test)

    def batch_loss(self, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of one batch as a differentiable function of the point.

        Batch norm uses the statistics of the batch; dropout is off.
        """
        with self._evaluating(), self._estimating():
            logits = self._logits(self.space.weights(vector), self._fresh(), x)
        return F.cross_entropy(logits.float(), y)

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The network at a point, with batch-norm statistics estimated from the training inputs, to be saved."""
        weights, buffers = self.space.weights(vector), self._fresh()
        if self._layers:
            with torch.no_grad(), self._evaluating():
                self._estimate(weights, buffers)
        filled = {**weights, **{alias: weights[own] for alias, own in self.space.aliases.items()}, **buffers}
        return {
            key: filled.get(key, value).detach().clone() for key, value in self.module.state_dict().items()
        }

    def _estimate(self, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Level:
        """Fill in the batch-norm statistics of these weights; the level of the pass that gives them."""
        with self._estimating():
            level = self._level(weights, buffers, self.train.seen())
        if place()[1] > 1:
            self._merge(buffers)
        return level

    def _merge(self, buffers: dict[str, Tensor]) -> None:
        """From averages over the batches of each process to those over all batches."""
        for key in self._layers:
            prefix = f"{key}." if key else ""
            if (count := buffers.get(f"{prefix}num_batches_tracked")) is None:
                continue  # without a count torch does not average
            batches = summed(count.double())
            for part in ("running_mean", "running_var"):
                own = buffers[prefix + part]
                total = summed(own.double() * count)
                own.copy_(torch.where(batches > 0, total / batches, own.double()))
            count.copy_(batches)

    def _level(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], data: Iterable[Batch]) -> Level:
        """Loss and accuracy; of several processes each takes its share of the batches."""
        total = torch.zeros(3, dtype=torch.float64, device=self.space.device)
        for x, y in share(data):
            logits = self._logits(weights, buffers, x)
            total[0] += F.cross_entropy(logits.double(), y, reduction="sum")
            total[1] += (logits.argmax(1) == y).sum()
            total[2] += len(y)
        loss, right, n = summed(total).tolist()
        return Level(loss / n, right / n, round(n))

    def _logits(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return logits_of(functional_call(self.module, (weights, buffers), (self._given(x),)))

    def _given(self, x: Tensor) -> Tensor:
        """Inputs in the precision of the module, laid out as is fastest."""
        x = as_input(self.module, x)
        return x.contiguous(memory_format=self._layout) if x.ndim == 4 else x

    def _fresh(self) -> dict[str, Tensor]:
        """Batch-norm statistics as they are before the first batch."""
        found: dict[str, Tensor] = {}
        for key, layer in self._layers.items():
            prefix = f"{key}." if key else ""
            assert layer.running_mean is not None and layer.running_var is not None
            found[f"{prefix}running_mean"] = torch.zeros_like(layer.running_mean)
            found[f"{prefix}running_var"] = torch.ones_like(layer.running_var)
            if layer.num_batches_tracked is not None:
                found[f"{prefix}num_batches_tracked"] = torch.zeros_like(layer.num_batches_tracked)
        return found

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with modes(self.module):
            self.module.eval()
            yield

    @contextmanager
    def _estimating(self) -> Iterator[None]:
        """Batch norm normalizes by the batch and averages over batches (momentum None), for the time being."""
        momenta = {key: layer.momentum for key, layer in self._layers.items()}
        try:
            for layer in self._layers.values():
                layer.momentum = None
                layer.train()
            yield
        finally:
            for key, layer in self._layers.items():
                layer.momentum = momenta[key]
                layer.eval()

    def _try(self, name: str) -> None:
        """Run a few inputs twice with the module's own weights: what does not fit is told before any work."""
        x = self._given(next(iter(self.train))[0][:_TRIED])
        with torch.no_grad(), self._evaluating():
            first, again = (logits_of(self.module(x)).double() for _ in range(2))
        if self.space.device.type == "cpu" and takes_channels_last(self.module, x):
            self._layout = torch.channels_last
        spread = (first - again).abs().max().item()
        if spread > 1e-3 * max(1.0, first.abs().max().item()):
            raise EspalierError(
                f"{name} gives different answers to the same inputs in eval mode (logits differ by {spread:.2g}): "
                "something random is left on, such as F.dropout without training=self.training"
            )
        highest = max(self.train.highest, self.test.highest if self.test else 0)
        if highest >= first.shape[1]:
            raise EspalierError(
                f"label {highest} found, but {name} has {first.shape[1]} classes: wrong model or data set"
            )
