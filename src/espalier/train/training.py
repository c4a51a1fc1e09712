"""What a training run is asked to do, as a frozen value."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from espalier._errors import EspalierError, near
from espalier._types import is_number, is_whole

Schedule = Literal["constant", "cosine", "step", "garipov"]
OptimizerName = Literal["sgd", "adam", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Training:
    """A training run: how long, with which steps, towards what.

    Args:
        epochs: passes over the training split; 1 is the fine-tune of the good-prune paper. 0 only measures.
        batch_size: examples per step, over all processes together.
        lr: learning rate at the start, positive.
        momentum: of SGD, in [0, 1).
        nesterov: Nesterov's form of the momentum (ignored without momentum).
        weight_decay: at least 0; coupled for sgd and adam, decoupled for adamw.
        schedule: "constant"; "cosine" falls to 0 over the run; "step" divides by 10 at each milestone;
            "garipov" is constant for half of the run, falls linearly to 1 % until nine tenths, and stays there
            (Garipov et al., 2018, as in the directional-pruning paper). Updated at every step.
        milestones: of "step", as fractions of the run in (0, 1), increasing.
        warmup: epochs of linear rise from 0, before the schedule takes over; may be a fraction.
        optimizer: "sgd", "adam" or "adamw"; any other is passed to `fit`.
        label_smoothing: in [0, 1).
        seed: of data order, augmentation and dropout.
        augment: apply the data set's augmentation.
        precision: of the forward and backward pass; "auto" is bf16 autocast where the hardware has it, else
            fp32, unless Accelerate was started with a mixed precision, which then holds.
        channels_last: memory layout of convolutions; None decides (see `espalier.train.hardware`).
        labels: False trains towards the teacher alone, without reading a label.
        teacher_weight: share of the teacher in the loss when both are used, in [0, 1].
        temperature: of the teacher's and the student's softmax, positive.
        stop_below: stop after an epoch over which at most this fraction of the weights became or stopped being
            zero, in [0, 1); None never does. The learning rate is not brought to its end.

    Raises:
        EspalierError: a value outside its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # for recipes; read by pydantic

    epochs: int = 1
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup: float = 0.0
    optimizer: OptimizerName = "sgd"
    label_smoothing: float = 0.0
    seed: int = 0
    augment: bool = True
    precision: Precision = "auto"
    channels_last: bool | None = None
    labels: bool = True
    teacher_weight: float = 0.9
    temperature: float = 4.0
    stop_below: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, bool) and type(value) is not bool:
                raise EspalierError(f"training `{f.name}` must be True or False, got {value!r}")
            if type(f.default) is int and not is_whole(value):
                raise EspalierError(f"training `{f.name}` must be a whole number, got {value!r}")
            if type(f.default) is float and not is_number(value):
                raise EspalierError(f"training `{f.name}` must be a number, got {value!r}")
        for name, ok, need in (
            ("epochs", self.epochs >= 0, "0 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup", 0 <= self.warmup <= self.epochs, "between 0 and `epochs`"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("teacher_weight", 0 <= self.teacher_weight <= 1, "in [0, 1]"),
            ("temperature", 0 < self.temperature < math.inf, "a positive number"),
            ("stop_below", self.stop_below is None or 0 <= self.stop_below < 1, "in [0, 1), or none"),
            (
                "milestones",
                list(self.milestones) == sorted({m for m in self.milestones if 0 < m < 1}),
                "increasing fractions of the run, in (0, 1)",
            ),
        ):
            if not ok:
                raise EspalierError(f"training `{name}` must be {need}, got {getattr(self, name)}")
        for name, known in (
            ("schedule", get_args(Schedule)),
            ("optimizer", get_args(OptimizerName)),
            ("precision", get_args(Precision)),
        ):
            value = getattr(self, name)
            if value not in known:
                raise EspalierError(
                    f"training `{name}` must be one of {', '.join(known)}, got "
                    f"{value!r}.{near(str(value), known)}"
                )

    def spec(self) -> dict[str, Any]:
        """The fields that differ from their defaults: a new field with a default changes no digest."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
