"""An ONNX file of a module, smaller by its zeros, and checked before it is there."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError, listing
from espalier._forward import device_of, modes
from espalier.checkpoint import atomic
from espalier.checkpoint.atomic import file_target
from espalier.export.examples import BATCH, Example, as_example
from espalier.export.initializers import Indices, Initializer, name_transposes, sparsify
from espalier.export.parity import Difference, Session, difference, flattened, run_module
from espalier.export.tracing import traced

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative difference that is allowed, by the dtype of the parameters: sums are taken in another order."""

_MORE = 3  # rows beyond those of the example in a batch that checks whether the size is really open

Axes = dict[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the file.
        bytes: its size.
        dense_bytes: size of the same file with dense initializers only.
        opset: version of the ONNX operators.
        inputs: name -> sizes; a name stands for a size that may change.
        outputs: the same of the outputs.
        tensors: the floating initializers of 64 entries or more.
        difference: to the module, measured in onnxruntime.
        notes: sentences worth reading.
    """

    path: Path
    bytes: int
    dense_bytes: int
    opset: int
    inputs: Axes
    outputs: Axes
    tensors: tuple[Initializer, ...]
    difference: Difference
    notes: tuple[str, ...] = ()

    @property
    def zeros(self) -> int:
        """Zeros in the listed tensors."""
        return sum(tensor.zeros for tensor in self.tensors)

    @property
    def entries(self) -> int:
        """Entries of the listed tensors."""
        return sum(tensor.entries for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {
            "path": str(self.path),
            "difference": asdict(self.difference) | {"within": self.difference.within},
        }


def to_onnx(
    model: nn.Module,
    example: Example | Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    path: str | Path,
    *,
    opset: int | None = None,
    indices: Indices = "int64",
    fixed: bool = False,
    tolerance: float | None = None,
) -> Exported:
    """Write a module as an ONNX file whose pruned weights are sparse initializers.

    Traced in eval mode by `torch.onnx.export` (which folds batch norm into convolutions). A tensor becomes sparse
    where that takes fewer bytes; the others stay dense. The file is run in onnxruntime on the example, on one
    row of it and on three more, beside the module, and takes its place only if they agree. The module and its
    modes are left as they were.

    onnxruntime makes sparse initializers dense when it loads a file: the file is smaller, while memory and speed
    are those of the dense network.

    Args:
        model: the module.
        example: a tensor, a tuple, or a dict by names of arguments; the first axis of each tensor is the batch.
        path: the file to write; one that exists is replaced.
        opset: version of the ONNX operators; None for the default of torch.
        indices: "int64", as the standard says, takes 8 bytes for each value; "small" takes 2 or 4, which
            onnxruntime reads and other programs may not.
        fixed: keep every size as in the example instead of leaving the batch (and of text, the length) open.
        tolerance: relative difference that is allowed (see `Difference`); None for that of the dtype.

    Raises:
        EspalierError: a package is missing, the module does not run on the example or cannot be exported, or the
            exported graph cannot be run or gives something else; nothing is written then.
        CheckpointError: the file cannot be written.
    """
    _check_packages()
    target = file_target(path)
    example = as_example(example)
    if not fixed and example.rows == 1:
        example = example.with_rows(2)  # torch.export takes a size of 1 for a constant
    device = device_of(model)
    example = Example(tuple(tensor.to(device) for tensor in example.tensors), example.names, example.axes)
    if tolerance is None:
        tolerance = TOLERANCES.get(next((p.dtype for p in model.parameters()), torch.float32), 1e-4)
    with modes(model), torch.no_grad():
        model.eval()
        answer = run_module(model, example)
        others = [] if fixed else [example.with_rows(rows) for rows in (1, example.rows + _MORE)]
        refused = "" if fixed else _refused(model, others)
        names = _output_names(answer)
        proto, reason = traced(model, example, names, opset=opset, fixed=fixed or bool(refused))
        reason = refused or reason
        name_transposes(proto, dict(model.named_parameters()))
        version = _version(proto, opset)
        dense_bytes = proto.ByteSize()
        tensors = sparsify(proto, indices)
        _check_proto(proto, indices)
        batches = [example, *([] if reason else others)]
        with atomic(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            apart = _compare(model, Session(temporary), batches, tolerance)
            if not apart.within:
                raise EspalierError(
                    f"{path}: not written: onnxruntime differs from the model by {apart.relative:.2g} of its largest "
                    f"output ({apart.absolute:.2g} absolute), more than the tolerance {tolerance:g}; "
                    "give another --tolerance if that is enough for you, or --batch if the model does another "
                    "thing with other batches"
                )
    size = target.stat().st_size
    notes = _notes(tensors, size, dense_bytes, indices, reason, example.rows)
    inputs, outputs = _axes(proto.graph.input), _axes(proto.graph.output)
    return Exported(Path(path), size, dense_bytes, version, inputs, outputs, tensors, apart, notes)


def _check_packages() -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401

        del onnx
    except ImportError as error:
        raise EspalierError(f"export to ONNX needs {error.name}: pip install 'espalier[export]'") from None


def _version(proto: "ModelProto", opset: int | None) -> int:
    version: int = next(item.version for item in proto.opset_import if item.domain == "")
    if opset not in (None, version):
        raise EspalierError(
            f"opset {opset} was asked for and torch {torch.__version__} wrote {version} instead: it cannot "
            f"convert this model; leave --opset out or give {version}"
        )
    return version


def _refused(model: nn.Module, examples: list[Example]) -> str:
    """Why a model runs on a batch of one size only; "" if it runs on all."""
    try:
        for example in examples:
            run_module(model, example)
    except EspalierError as error:
        return str(error).partition("; give")[0]
    return ""


def _output_names(answer: Any) -> list[str] | None:
    """The keys of what the model returns; "output" for one tensor; None where torch has to find some."""
    if isinstance(answer, Tensor):
        return ["output"]
    if isinstance(answer, Mapping) and all(isinstance(value, Tensor) for value in answer.values()):
        return list(answer)
    return None


def _check_proto(proto: "ModelProto", indices: Indices) -> None:
    """What the standard's own checker says; it knows no indices but int64."""
    import onnx

    if indices == "int64":
        onnx.checker.check_model(proto)


def _compare(model: nn.Module, session: Session, batches: list[Example], tolerance: float) -> Difference:
    pairs: list[tuple[Tensor, Tensor]] = []
    for example in batches:
        ours, theirs = flattened(run_module(model, example)), session.run(example)
        if len(ours) != len(theirs):
            raise EspalierError(
                f"the model returns {len(ours)} tensors and the exported graph {len(theirs)}: "
                "wrap the model so that it returns a tensor, or a tuple of different tensors"
            )
        pairs += zip(theirs, ours, strict=True)
    return difference(pairs, tolerance, tuple(example.rows for example in batches))


def _axes(values: Any) -> Axes:
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


def _notes(
    tensors: tuple[Initializer, ...], size: int, dense: int, indices: Indices, reason: str, rows: int
) -> tuple[str, ...]:
    notes = []
    sparse = [tensor for tensor in tensors if tensor.sparse]
    pruned = [tensor for tensor in tensors if not tensor.sparse and tensor.zeros >= tensor.entries / 10]
    if sparse:
        notes.append(
            "onnxruntime makes sparse tensors dense as it loads them: the file is smaller, speed and memory are those "
            "of the dense network"
        )
    elif not any(tensor.zeros for tensor in tensors):
        notes.append("no weight is zero: nothing is gained over a dense file; prune it first")
    else:
        share = sum(tensor.zeros for tensor in tensors) / max(1, sum(tensor.entries for tensor in tensors))
        notes.append(
            f"nothing is gained over a dense file: {100 * share:.1f} % zeros are too few for any tensor"
        )
    if pruned:
        least, most = min(t.pays_from for t in pruned), max(t.pays_from for t in pruned)
        shares = (
            f"{100 * least:.0f} %"
            if math.isclose(least, most)
            else f"{100 * least:.0f} to {100 * most:.0f} %"
        )
        notes.append(
            f"{len(pruned)} with zeros stay dense, because sparse is smaller only from {shares} zeros on: "
            f"{listing(f'{t.name} ({100 * t.zeros / t.entries:.0f} %)' for t in pruned)}"
        )
    if indices == "small" and sparse:
        notes.append(
            "positions are int16 and int32: onnxruntime reads them, the ONNX standard knows int64 alone"
        )
    if reason:
        notes.append(f"the {BATCH} is fixed at {rows}, because it cannot be left open: {reason}")
    return tuple(notes)
