"""What was measured and decided, small enough to keep beside the weights."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import device as Device

from espalier._errors import EspalierError
from espalier.checkpoint.write import atomic
from espalier.runtime.layers import Choice

FORMAT = "espalier runtime plan 1"


@dataclass(frozen=True)
class Machine:
    """What timings depend on besides the network; nothing in it names a person's computer.

    Args:
        processor: the model name, of a GPU where the network lies on one.
        vectors: the instruction set torch uses, or what the GPU can do.
        torch: version.
        threads: of torch, within an operator.
    """

    processor: str
    vectors: str
    torch: str
    threads: int

    @classmethod
    def here(cls, device: Device | None = None) -> Self:
        """This machine, as torch is set up now; for a network on a GPU, that GPU."""
        if device is not None and device.type == "cuda":
            capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
            name, can = torch.cuda.get_device_name(device), f"compute capability {capability}"
        else:
            name, can = processor(), torch.backends.cpu.get_cpu_capability()
        return cls(name, can, torch.__version__, torch.get_num_threads())


@dataclass(frozen=True)
class LayerPlan:
    """One layer: what it is, what it met, how long each way took, and what was decided.

    Args:
        name: full dotted name of the module; "" for the model itself.
        shape: of its weight.
        nonzeros: of its weight.
        calls: shapes of its inputs in one run of the example, and how often each.
        timings: way -> seconds for all its calls together, the shortest measured; "dense" among them.
        choice: None keeps the dense layer.
        reason: one sentence.
    """

    name: str
    shape: tuple[int, ...]
    nonzeros: int
    calls: tuple[tuple[tuple[int, ...], int], ...]
    timings: Mapping[str, float]
    choice: Choice | None
    reason: str

    @property
    def macs(self) -> int:
        """Multiply-adds of the nonzero weights in one run of the example."""
        return self.positions * self.nonzeros

    @property
    def dense_macs(self) -> int:
        """Multiply-adds of the dense layer in one run of the example."""
        rows = 1
        for size in self.shape:
            rows *= size
        return self.positions * rows

    positions: int = 0


@dataclass(frozen=True)
class Plan:
    """The decisions for one network, input, machine and number of threads.

    Args:
        machine: where it was measured.
        inputs: shapes of the tensors of the example, in order.
        layers: every Linear and Conv2d that ran, in the order of the model.
        dense: seconds of the dense network, the shortest run; None before the final check.
        ours: the same of the accelerated one.
        fell_back: whether the final check gave the dense network back.
        notes: what one should be told.
    """

    machine: Machine
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[LayerPlan, ...]
    dense: float | None = None
    ours: float | None = None
    fell_back: bool = False
    notes: tuple[str, ...] = ()

    @property
    def sparse(self) -> tuple[LayerPlan, ...]:
        """The layers that get a sparse kernel."""
        return () if self.fell_back else tuple(layer for layer in self.layers if layer.choice is not None)

    def summary(self) -> str:
        """One sentence."""
        if self.fell_back or not self.sparse:
            why = "the whole network was not faster" if self.fell_back else "no layer is faster sparse"
            return f"the dense network as it was: {why}"
        text = f"{len(self.sparse)} of {len(self.layers)} layers sparse"
        if self.dense and self.ours:
            text += f", {self.dense / self.ours:.2f} times dense ({self.ours * 1e3:.3g} ms, {self.dense * 1e3:.3g} ms)"
        return text

    def with_choices(self, choices: Mapping[str, Choice | None]) -> "Plan":
        """The same with other decisions for the named layers."""
        layers = tuple(replace(x, choice=choices.get(x.name, x.choice)) for x in self.layers)
        return replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are in the file."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The plan behind plain values.

        Raises:
            EspalierError: they are no plan.
        """
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise EspalierError(f"no runtime plan: its format is not {FORMAT!r}")
        try:
            layers = tuple(
                LayerPlan(
                    name=str(x["name"]),
                    shape=_ints(x["shape"]),
                    nonzeros=int(x["nonzeros"]),
                    calls=tuple((_ints(shape), int(count)) for shape, count in x["calls"]),
                    timings={str(way): float(s) for way, s in x["timings"].items()},
                    choice=None if x["choice"] is None else _choice(x["choice"]),
                    reason=str(x["reason"]),
                    positions=int(x["positions"]),
                )
                for x in found["layers"]
            )
            return cls(
                machine=Machine(**found["machine"]),
                inputs=tuple(_ints(shape) for shape in found["inputs"]),
                layers=layers,
                dense=None if found["dense"] is None else float(found["dense"]),
                ours=None if found["ours"] is None else float(found["ours"]),
                fell_back=bool(found["fell_back"]),
                notes=tuple(map(str, found["notes"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EspalierError(
                f"a runtime plan that cannot be read: {type(error).__name__}: {error}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        with atomic(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan.

        Raises:
            EspalierError: the file cannot be read, or is no plan.
        """
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise EspalierError(f"{path} cannot be read as a runtime plan: {error}") from error
        try:
            return cls.from_dict(found)
        except EspalierError as error:
            raise EspalierError(f"{path}: {error}") from error


def processor() -> str:
    """The model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def difference(
    plan: Plan, machine: Machine, inputs: tuple[tuple[int, ...], ...], layers: tuple[LayerPlan, ...]
) -> str:
    """Why a plan was not made for this machine, input and network, in words; "" if it was.

    The number of nonzeros may differ by a tenth: other weights of the same sparsity are no other problem.
    """
    if plan.machine != machine:
        pairs = [(k, a, asdict(machine)[k]) for k, a in asdict(plan.machine).items()]
        return "it is for " + ", ".join(f"{k} {a!r} (here {b!r})" for k, a, b in pairs if a != b)
    if plan.inputs != inputs:
        return f"it is for inputs of shape {_shapes(plan.inputs)}, not {_shapes(inputs)}"
    ours, theirs = {x.name: x for x in layers}, {x.name: x for x in plan.layers}
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        return f"it is for another network: {odd[0]!r} is in one of them only"
    for name, own in ours.items():
        other = theirs[name]
        if own.shape != other.shape or own.calls != other.calls:
            own_shape, their_shape = list(own.shape), list(other.shape)
            return f"it is for another network: {name!r} has weight {own_shape}, not {their_shape}, or other inputs"
        if not alike(own, other):
            return f"it is for other weights: {name!r} has {own.nonzeros:,} nonzeros, not {other.nonzeros:,}"
    return ""


def alike(a: LayerPlan, b: LayerPlan) -> bool:
    """Whether two layers of one shape have as many nonzeros, within a tenth."""
    return abs(a.nonzeros - b.nonzeros) <= max(a.nonzeros, b.nonzeros) / 10


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("×".join(map(str, shape)) or "()" for shape in shapes) or "none"


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _choice(found: Mapping[str, Any]) -> Choice:
    layout = found["layout"]
    if layout not in ("rows", "columns") or int(found["tile"]) < 1:
        raise ValueError(f"no choice: {dict(found)}")
    return Choice(str(found["kernel"]), int(found["tile"]), layout, str(found["shared"]))
