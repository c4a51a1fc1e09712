"""Weights of an ONNX graph as sparse initializers, where the file becomes smaller by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from onnx import ModelProto, SparseTensorProto, TensorProto

Indices = Literal["int64", "small"]
"""int64 is the one type the ONNX standard knows. onnxruntime reads int16 and int32 too."""

_FLOATS = (1, 10, 11)  # TensorProto.FLOAT, FLOAT16, DOUBLE: what onnxruntime makes dense again
_SMALLEST = 64  # entries below which it is not worth a thought


@dataclass(frozen=True)
class Initializer:
    """A floating tensor in the file.

    Args:
        name: its name in the graph; exporters fold and transpose, so it need not be that of a parameter.
        shape: its shape in the graph.
        zeros: entries that are zero.
        entries: all of them.
        sparse: whether it is a sparse initializer.
        bytes: as it is stored.
        dense_bytes: as a dense initializer.
        pays_from: sparsity from which sparse is smaller, with the index type of this tensor.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    entries: int
    sparse: bool
    bytes: int
    dense_bytes: int
    pays_from: float


def index_dtype(entries: int, indices: Indices) -> np.dtype[np.signedinteger]:
    """Dtype of linear positions in a tensor of so many entries."""
    if indices == "int64" or entries > 1 << 31:
        return np.dtype(np.int64)
    return np.dtype(np.int16 if entries <= 1 << 15 else np.int32)


def sparsify(model: "ModelProto", indices: Indices = "int64") -> tuple[Initializer, ...]:
    """Turn initializers into sparse ones, in place, wherever that takes fewer bytes.

    Zeros are counted by value, so -0.0 (a pruned weight times a negative scale of batch norm) becomes +0.0.

    Args:
        model: changed.
        indices: type of the positions.

    Returns:
        Every floating initializer of at least 64 entries, in order.
    """
    found = []
    kept = []
    for tensor in model.graph.initializer:
        sparse = None
        entries = int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.data_type in _FLOATS and entries >= _SMALLEST:
            dtype = index_dtype(entries, indices)
            sparse, zeros = _sparse(tensor, dtype)
            before, size = tensor.ByteSize(), before_size(tensor)
            smaller = sparse.ByteSize() < before
            pays = dtype.itemsize / (dtype.itemsize + size)
            after = sparse.ByteSize() if smaller else before
            found.append(
                Initializer(tensor.name, tuple(tensor.dims), zeros, entries, smaller, after, before, pays)
            )
            if not smaller:
                sparse = None
        if sparse is None:
            kept.append(tensor)
        else:
            model.graph.sparse_initializer.append(sparse)
    if len(kept) < len(model.graph.initializer):
        copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
    return tuple(found)


def name_transposes(model: "ModelProto", parameters: Mapping[str, Tensor]) -> None:
    """Give an initializer that is a transposed parameter its name and `.T`, where torch wrote `val_92`.

    Args:
        model: changed. One with graphs inside of nodes is left as it is: they may use the names too.
        parameters: of the module that was exported.
    """
    from onnx import numpy_helper

    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return
    matrices = {
        _content(value.detach().cpu().numpy().T): f"{name}.T"
        for name, value in parameters.items()
        if value.ndim == 2 and value.dtype in (torch.float32, torch.float16, torch.float64)
    }
    taken = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.name not in parameters and tensor.data_type in _FLOATS:
            name = matrices.get(_content(numpy_helper.to_array(tensor)))
            if name is not None and name not in taken:
                names[tensor.name] = tensor.name = name
                taken.add(name)
    for node in model.graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = names.get(given, given)


def _content(array: NDArray[Any]) -> tuple[tuple[int, ...], int]:
    """Equal for equal matrices, and for others hardly ever; the file is checked as a whole."""
    return array.shape, hash(array.tobytes())


def before_size(tensor: "TensorProto") -> int:
    """Bytes of an entry."""
    return {1: 4, 10: 2, 11: 8}[tensor.data_type]


def _sparse(tensor: "TensorProto", dtype: np.dtype[np.signedinteger]) -> tuple["SparseTensorProto", int]:
    from onnx import SparseTensorProto, numpy_helper

    flat = numpy_helper.to_array(tensor).reshape(-1)
    at = np.flatnonzero(flat != 0)
    values = numpy_helper.from_array(flat[at], tensor.name)
    positions = numpy_helper.from_array(at.astype(dtype), f"{tensor.name}_positions")
    return SparseTensorProto(values=values, indices=positions, dims=list(tensor.dims)), len(flat) - len(at)
