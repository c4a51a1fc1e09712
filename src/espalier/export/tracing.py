"""`torch.onnx.export` without its noise, and its errors in a sentence that says which operator."""

import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from espalier._errors import EspalierError, first_line
from espalier._quiet import quiet
from espalier.export.examples import Example

if TYPE_CHECKING:
    from onnx import ModelProto

LIMIT = 2_000_000_000
"""Bytes of weights in one ONNX file: protocol buffers end at 2 GiB."""


def traced(
    model: nn.Module, example: Example, outputs: list[str] | None, *, opset: int | None, fixed: bool
) -> tuple["ModelProto", str]:
    """Export a module to an ONNX model in memory.

    Args:
        model: in eval mode.
        example: what it is traced with.
        outputs: names of the outputs; None leaves them to torch.
        opset: version of the operators; None for the default of torch.
        fixed: whether every size is that of the example.

    Returns:
        The model, without the notes that torch leaves in it (they hold paths and code), and why the batch is
        fixed although it was not asked for; "" if it is not.

    Raises:
        EspalierError: an operator has no form in ONNX, or the model cannot be traced.
    """
    try:
        return _clean(_export(model, example, outputs, opset, fixed)), ""
    except Exception as error:  # torch.export and its passes raise whatever comes
        if fixed or _operator(error):
            raise _refusal(model, error) from error
        first = error
    try:
        return _clean(_export(model, example, outputs, opset, True)), _cause(first)
    except Exception as error:
        raise _refusal(model, error) from error


def _export(
    model: nn.Module, example: Example, outputs: list[str] | None, opset: int | None, fixed: bool
) -> Any:
    positional, named = example.arguments
    dims = {name: torch.export.Dim(name) for axes in example.axes for name in axes.values()}
    shapes = [{axis: dims[name] for axis, name in axes.items()} for axes in example.axes]
    dynamic: Any = tuple(shapes) if example.names is None else dict(zip(example.names, shapes, strict=True))
    with quiet(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # graphs are printed
        return torch.onnx.export(
            model,
            positional,
            kwargs=named,
            dynamo=True,
            input_names=list(example.labels(model)),
            output_names=outputs,
            opset_version=opset,
            dynamic_shapes=None if fixed else dynamic,
            verbose=False,
        )


def _clean(program: Any) -> "ModelProto":
    if (weights := sum(value.nbytes for value in _weights(program))) > LIMIT:
        raise EspalierError(
            f"{weights / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GB): "
            "use --to safetensors, or --to sparse"
        )
    model: ModelProto = program.model_proto
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    return model


def _weights(program: Any) -> Iterator[Any]:
    for value in program.model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _refusal(model: nn.Module, error: BaseException) -> EspalierError:
    if isinstance(error, EspalierError):
        return error
    name = type(model).__name__
    if operator := _operator(error):
        return EspalierError(
            f"{name} cannot be exported to ONNX: the operator {operator} has no form there; replace it in the model "
            "by others, or leave the part that uses it out of the export; --to safetensors and --to torch need none"
        )
    return EspalierError(
        f"{name} cannot be exported to ONNX: {_cause(error)}; rewrite that part so that it does not depend on the "
        "values (torch.where, torch.cond); --to safetensors and --to torch need no tracing"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _operator(error: BaseException) -> str:
    for link in _chain(error):
        if type(link).__name__ == "DispatchError" and (found := re.search(r"op='([\w.]+)'", str(link))):
            return found[1].replace("::", ".")
    return ""


def _cause(error: BaseException) -> str:
    """What went wrong, and the last line of the model's own code that is named."""
    link = list(_chain(error))[-1]
    text = "".join(str(item) for item in _chain(error))
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(\S.*)', text)
    own = [place for place in places if "/torch/" not in place[0].replace("\\", "/")]
    where = ""
    if own:
        file, line, function, code = own[-1]
        where = f" (in {function}, {Path(file).name} line {line}: `{code.strip()}`)"
    return f"{first_line(link).rstrip('.')}{where}"
