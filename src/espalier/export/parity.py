"""What onnxruntime computes beside what the module computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError, first_line
from espalier.export.examples import Example


@dataclass(frozen=True)
class Difference:
    """Outputs of the exported file beside those of the module, over all outputs and examples.

    Args:
        absolute: largest absolute difference of two numbers.
        relative: largest over the outputs of: absolute difference over largest absolute value.
        tolerance: relative difference that is allowed.
        rows: sizes of the batches it was measured on.
    """

    absolute: float
    relative: float
    tolerance: float
    rows: tuple[int, ...]

    @property
    def within(self) -> bool:
        """Whether it is allowed; NaN is not."""
        return self.relative <= self.tolerance


def flattened(output: Any) -> list[Tensor]:
    """The tensors in what a model returns, in the order in which they are exported."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for item in output for tensor in flattened(item)]
    return []


def run_module(model: nn.Module, example: Example) -> Any:
    """What a module answers; mode and gradients are up to the caller.

    Raises:
        EspalierError: it does not run on the example.
    """
    positional, named = example.arguments
    try:
        return model(*positional, **named)
    except Exception as error:  # whatever the code of a network raises
        raise EspalierError(
            f"{type(model).__name__} does not run on an example of shape {example.shapes}: "
            f"{type(error).__name__}: {first_line(error)}; give the shape of its inputs (--input-shape), "
            "or in Python all that it takes"
        ) from error


class Session:
    """An ONNX file in onnxruntime, on the CPU.

    Raises:
        EspalierError: onnxruntime is missing or cannot run the graph.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise EspalierError(
                "checking ONNX files needs onnxruntime: pip install 'espalier[export]'"
            ) from None
        options: Any = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would go on looking for work after a call, on cores that the next thing to be timed needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own exceptions, one for each status
            raise EspalierError(
                f"onnxruntime {ort.__version__} cannot run the exported graph: {_reason(error)}; "
                "try another --opset, a copy of the model in float32, or change that operator"
            ) from None

    def run(self, example: Example, *, shrink: bool = False) -> list[Tensor]:
        """The outputs, in order.

        Args:
            example: the inputs.
            shrink: whether memory that was kept for the next call is given back afterwards.
        """
        names = [given.name for given in self._session.get_inputs()]
        feeds = {
            name: tensor.detach().cpu().contiguous().numpy()
            for name, tensor in zip(names, example.tensors, strict=False)
        }
        options = None
        if shrink:
            import onnxruntime as ort

            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            return [torch.from_numpy(array) for array in self._session.run(None, feeds, options)]
        except Exception as error:
            raise EspalierError(
                f"onnxruntime fails on an example of shape {example.shapes}: {_reason(error)}"
            ) from None


def _reason(error: Exception) -> str:
    # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11) node with name ''"
    return first_line(error).rpartition(" : ")[2]


def difference(pairs: list[tuple[Tensor, Tensor]], tolerance: float, rows: tuple[int, ...]) -> Difference:
    """Compare outputs, those of the file first, in float64.

    Raises:
        EspalierError: two have different shapes.
    """
    absolute, relative = [0.0], [0.0]
    for theirs, ours in pairs:
        if theirs.shape != ours.shape:
            raise EspalierError(
                f"the exported graph gives {tuple(theirs.shape)} where the model gives {tuple(ours.shape)}: it was "
                "traced with sizes or values that are not constant; export it with a fixed batch (--batch)"
            )
        if not ours.numel():
            continue
        absolute.append((theirs.double() - ours.detach().cpu().double()).abs().max().item())
        scale = ours.detach().double().abs().max().item()
        relative.append(absolute[-1] / scale if scale else absolute[-1])
    return Difference(_worst(absolute), _worst(relative), tolerance, rows)


def _worst(found: list[float]) -> float:
    """The largest; NaN if there is one, which `max` may drop."""
    return torch.tensor(found, dtype=torch.float64).max().item()
