"""The ways a pruned network can be deployed on a CPU, each as a module that takes what the network takes."""

import copy
import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from espalier._errors import EspalierError, first_line
from espalier._quiet import quiet
from espalier.export import Example, to_onnx
from espalier.export.parity import Session
from espalier.runtime.acceleration import accelerate, plan_of
from espalier.runtime.layers import SparseConv2d, SparseLinear
from espalier.runtime.plan import Plan


class AbstractWay(ABC):
    """One row of the bench.

    Args:
        model: the pruned network, float32, in eval mode; never changed.
        folder: for files; emptied by the caller.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.note = ""

    @abstractmethod
    def module(self, example: Example) -> nn.Module:
        """What answers inputs like the example, ready to be timed; anything it raises is a reason not to run."""

    def file_bytes(self, sparse: int) -> int | None:
        """Bytes of what would be shipped, given those of the sparse file."""
        del sparse
        return sum(int(tensor.nbytes) for tensor in self.model.state_dict().values())

    def weights(self) -> dict[str, Tensor]:
        """The weights this way multiplies with, by the names of the model's parameters, where they can be seen."""
        return {}

    def held(self, module: nn.Module) -> int:
        """Bytes that the weights take in memory."""
        return bytes_of(module)

    def settle(self, module: nn.Module, example: Example) -> None:  # noqa: B027
        """Give back memory that a call keeps for the next one."""


class Dense(AbstractWay):
    """The network as it is."""

    name: ClassVar[str] = "dense fp32"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        return self.model


class Half(AbstractWay):
    """The network and its inputs in bfloat16."""

    name: ClassVar[str] = "dense bf16"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        return _Cast(copy.deepcopy(self.model).to(torch.bfloat16))

    def file_bytes(self, sparse: int) -> int | None:  # noqa: D102
        state = self.model.state_dict().values()
        return sum(int(x.numel() * (2 if x.is_floating_point() else x.element_size())) for x in state)


class Compiled(AbstractWay):
    """`torch.compile` with its default backend."""

    name: ClassVar[str] = "torch.compile"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        with quiet():
            torch._dynamo.reset()
            return _compiled(copy.deepcopy(self.model), example)


class Int8(AbstractWay):
    """Dynamic int8 quantisation of the Linear layers by torch itself: of the zeros of the file, all stay zeros.

    Its kernels are those of FBGEMM. torch has deprecated it, and names torchao instead.
    """

    name: ClassVar[str] = "int8 dynamic"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        self._check()
        with quiet():
            from torch.ao.quantization import quantize_dynamic

            quantize: Any = quantize_dynamic
            quantized: nn.Module = quantize(copy.deepcopy(self.model), {nn.Linear})
        self._quantized = quantized
        return quantized

    def _check(self) -> None:
        linears = sum(isinstance(module, nn.Linear) for module in self.model.modules())
        others = sum(isinstance(module, nn.Conv2d) for module in self.model.modules())
        if not linears:
            raise EspalierError("the network has no Linear layer, and dynamic quantisation takes no other")
        self.note = f"{linears} Linear layer{'s' if linears > 1 else ''}"
        self.note += f"; {others} convolutions stay fp32" if others else ""

    def file_bytes(self, sparse: int) -> int | None:  # noqa: D102
        path = self.folder / "int8.pt"
        torch.save(self._quantized.state_dict(), path)
        return path.stat().st_size

    def weights(self) -> dict[str, Tensor]:  # noqa: D102
        found = {}
        for name, module in self._quantized.named_modules():
            if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
                weight: Any = module.weight
                found[f"{name}.weight" if name else "weight"] = weight().int_repr()
        return found


class Int8Ao(Int8):
    """The same by torchao, where that is installed: the path that is maintained. Compiled, as its authors advise."""

    name: ClassVar[str] = "int8 dynamic, torchao"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        self._check()
        with quiet():
            try:
                ao: Any = importlib.import_module("torchao.quantization")
            except ImportError:
                raise EspalierError("torchao is not installed: pip install 'espalier[torchao]'") from None
            self._quantized = copy.deepcopy(self.model)
            ao.quantize_(self._quantized, ao.Int8DynamicActivationInt8WeightConfig())
            return _compiled(self._quantized, example)

    def weights(self) -> dict[str, Tensor]:  # noqa: D102
        parameters = dict(self._quantized.named_parameters())
        return {name: getattr(x, "qdata") for name, x in parameters.items() if hasattr(x, "qdata")}  # noqa: B009


class OnnxSparse(AbstractWay):
    """onnxruntime with the exported file, whose pruned weights are sparse initializers."""

    name: ClassVar[str] = "onnxruntime, sparse file"

    def _file(self, example: Example) -> Path:
        path = self.folder / "sparse.onnx"
        if not path.exists():
            with quiet():
                to_onnx(self.model, example.with_rows(2), path)
        return path

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        return _Onnx(Session(self._file(example)), example)

    def file_bytes(self, sparse: int) -> int | None:  # noqa: D102
        return (self.folder / "sparse.onnx").stat().st_size

    def held(self, module: nn.Module) -> int:  # noqa: D102
        return bytes_of(self.model)  # dense in memory, also from the sparse file

    def settle(self, module: nn.Module, example: Example) -> None:  # noqa: D102
        assert isinstance(module, _Onnx)
        module.session.run(example, shrink=True)


class OnnxDense(OnnxSparse):
    """onnxruntime with the same graph and dense weights."""

    name: ClassVar[str] = "onnxruntime, dense"

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        path = self.folder / "dense.onnx"
        if not path.exists():
            _densify(self._file(example), path)
        return _Onnx(Session(path), example)

    def file_bytes(self, sparse: int) -> int | None:  # noqa: D102
        return (self.folder / "dense.onnx").stat().st_size


class Ours(AbstractWay):
    """The sparse file and `espalier.runtime.accelerate`."""

    name: ClassVar[str] = "espalier"

    def __init__(self, model: nn.Module, folder: Path, seconds: float = 0.5) -> None:
        super().__init__(model, folder)
        self.seconds = seconds
        self.plans: dict[int, Plan] = {}

    def module(self, example: Example) -> nn.Module:  # noqa: D102
        positional, named = example.arguments
        fast = accelerate(self.model, named or positional, seconds=self.seconds)
        self.plans[example.rows] = plan = plan_of(fast)
        self.note = "; ".join(f"batch {rows}: {p.summary()}" for rows, p in self.plans.items())
        del plan
        return fast

    def file_bytes(self, sparse: int) -> int | None:  # noqa: D102
        return sparse

    def held(self, module: nn.Module) -> int:  # noqa: D102
        layers = [x for x in module.modules() if isinstance(x, SparseLinear | SparseConv2d)]
        groups = {x.siblings for x in layers if isinstance(x, SparseLinear) and x.siblings is not None}
        return bytes_of(module) + sum(x.kernel.nbytes(x.packed) for x in (*layers, *groups))


WAYS: tuple[type[AbstractWay], ...] = (Dense, Half, Compiled, Int8, Int8Ao, OnnxDense, OnnxSparse, Ours)
"""All rows, in the order of the table."""


def _compiled(module: nn.Module, example: Example) -> nn.Module:
    """A compiled module that has run once, so that no timing holds the compilation."""
    compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    positional, named = example.arguments
    with torch.inference_mode():
        compiled(*positional, **named)
    return compiled


def bytes_of(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module, also where quantisation hides them; shared memory once."""
    found: dict[int, int] = {}
    waiting = pytree.tree_leaves(list(module.state_dict().values()))
    while waiting:
        leaf = waiting.pop()
        if hasattr(leaf, "__tensor_flatten__"):
            waiting += [getattr(leaf, name) for name in leaf.__tensor_flatten__()[0]]
        elif isinstance(leaf, Tensor):
            found[leaf.data_ptr()] = max(leaf.nbytes, found.get(leaf.data_ptr(), 0))
    return sum(found.values())


def why_not(error: BaseException) -> str:
    """The reason why a way does not run, in one line."""
    return (
        first_line(error)
        if isinstance(error, EspalierError)
        else f"{type(error).__name__}: {first_line(error)}"
    )


class _Cast(nn.Module):
    """Casts floating inputs to bfloat16."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *positional: Any, **named: Any) -> Any:
        positional, named = pytree.tree_map(_to_bf16, (positional, named))
        return self.inner(*positional, **named)


class _Onnx(nn.Module):
    """An onnxruntime session that is called as the network is."""

    def __init__(self, session: Session, example: Example) -> None:
        super().__init__()
        self.session, self.example = session, example

    def forward(self, *positional: Tensor, **named: Tensor) -> Any:
        given = Example(positional or tuple(named.values()), self.example.names, self.example.axes)
        found = self.session.run(given)
        return found[0] if len(found) == 1 else found


def _to_bf16(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def _densify(source: Path, target: Path) -> None:
    """The same ONNX graph with dense weights."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(str(source))
    for sparse in proto.graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        proto.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del proto.graph.sparse_initializer[:]
    onnx.save(proto, str(target))
