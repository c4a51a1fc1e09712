"""How much faster pruned networks are on a CPU, beside what else one could do, and how small their files are.

    python -m results.runtime --prepare     # ONNX files, compiled networks, sizes: any time, on any load
    python -m results.runtime --minutes 38  # the timings, on a machine that does nothing else

A point is a network, a number of threads and a batch size. All ways to run the network, ours at every sparsity among them,
are timed in turn in the same rounds. Points with a goal come first; after `--minutes` no new one is begun, and what there is
is written. Each is a file of its own: delete it to measure it again.

MiniLM: encoder Linear layers, each at the given sparsity, 128 tokens. VGG16 and ResNet-50: random weights of torchvision's
shapes, 224x224 (speed does not depend on the values), each layer at the given sparsity. ResNet-20: the prepared checkpoint,
pruned globally. Ways that keep zeros as numbers (all but ours) run the network with 90 % zeros. Two more rows say what is out
of reach: our network at the highest sparsity with products that cost nothing (copies, biases and the rest remain), and with
sparse layers that cost nothing (only the rest remains).
"""

import argparse
import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.allocate import Global, Uniform
from espalier.checkpoint import open_checkpoint, rewrite, save_checkpoint
from espalier.export import Example, image_example
from espalier.models import CifarResNet, fill, torchvision_model
from espalier.pruning import prune
from espalier.runtime import AbstractKernel, Machine, SparseConv2d, SparseLinear, accelerate, plan_of
from espalier.runtime.clock import doubts, interleave, resolution
from espalier.runtime.tracing import disagreement, tensors_of
from espalier.runtime.ways import AbstractWay, Compiled, Dense, Half, Int8, OnnxDense, OnnxSparse, why_not
from espalier.train.hardware import native_bf16
from results._common import HERE, command, environment, once, write_json

SPARSITIES = {
    "minilm": (0.8, 0.9, 0.95),
    "vgg16": (0.9, 0.95),
    "resnet20": (0.8, 0.9, 0.95),
    "resnet50": (0.8, 0.9, 0.95),
}
USUAL = 0.9
"""Zeros of the network that the other ways run."""
GOALS = {
    ("minilm", 1, 0.9): 2.2,
    ("minilm", 1, 0.95): 3.0,
    ("minilm", 32, 0.9): 1.5,
    **{("vgg16", batch, 0.95): 1.5 for batch in (1, 8, 32)},
}
"""(network, batch, sparsity) -> times dense fp32, one thread."""
ORDER = (
    *(("minilm", 1, 1), ("minilm", 1, 32), ("vgg16", 1, 1), ("resnet20", 1, 1), ("resnet50", 1, 1)),
    *(("resnet20", 1, 8), ("resnet20", 1, 32), ("minilm", 1, 8), ("minilm", 2, 1), ("minilm", 2, 32)),
    *(("minilm", 2, 8), ("resnet20", 2, 1), ("resnet20", 2, 8), ("resnet20", 2, 32), ("vgg16", 2, 1)),
    *(("resnet50", 2, 1), ("resnet50", 1, 8), ("vgg16", 1, 8), ("resnet50", 2, 8), ("vgg16", 2, 8)),
    *(("resnet50", 1, 32), ("resnet50", 2, 32), ("vgg16", 1, 32), ("vgg16", 2, 32)),
)
"""(network, threads, batch), what has goals or is cheap first."""
WAYS: tuple[type[AbstractWay], ...] = (Dense, Half, Compiled, Int8, OnnxDense, OnnxSparse)
AGAIN = "dense fp32, again"
FREE = {"products": "its products free", "layers": "its sparse layers free"}
POINTS = HERE / "points" / "runtime"


def network(name: str) -> tuple[nn.Module, Example, dict[str, Any]]:
    """A dense network, a batch for it, and how it is pruned."""
    if name == "minilm":
        from transformers import AutoModel

        from results.minilm import folder

        tokens = torch.randint(1000, 20000, (2, 128), generator=torch.Generator().manual_seed(0))
        example = Example(
            (tokens, torch.ones_like(tokens)), ("input_ids", "attention_mask"), ({0: "batch"},) * 2
        )
        model = AutoModel.from_pretrained(folder(), local_files_only=True)
        return model.eval(), example, {"include": ["encoder.*"], "allocation": Uniform()}
    if name == "resnet20":
        path = Path(os.environ["ESPALIER_DATA"]).parent / "checkpoints" / "resnet20-cifar10jpeg.safetensors"
        filled = fill(CifarResNet(20, 10), open_checkpoint(path).state_dict(), str(path))
        return filled.model.eval(), image_example((3, 32, 32)), {"allocation": Global()}
    torch.manual_seed(0)
    return torchvision_model(name).eval(), image_example((3, 224, 224)), {"allocation": Uniform()}


def pruned(model: nn.Module, sparsity: float, options: Mapping[str, Any]) -> tuple[nn.Module, float]:
    """A pruned copy, and its zeros over the entries of the layers pruned."""
    found = copy.deepcopy(model)
    return found, prune(found, sparsity, **options).sparsity


def obstacle(name: str, batch: int, way: type[AbstractWay]) -> str:
    """Why a way is not run for a network; "" if it is."""
    images = name in ("resnet50", "vgg16")
    if way is Half and not native_bf16(torch.device("cpu")):
        return "this processor emulates bf16"
    if way is Int8 and name in ("resnet20", "resnet50"):
        return "of its layers dynamic int8 takes only the last"
    if way is Compiled and images and batch > 1:
        return "compiled for batch 1 only"
    if way is OnnxSparse and images:
        return "onnxruntime makes the weights dense when it loads them: see the other networks"
    return ""


def prepared(name: str, threads: int, batch: int) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The other ways to run a network, ready to be timed, and why the missing ones are missing."""
    torch.set_num_threads(threads)
    folder = Path(tempfile.gettempdir()) / f"espalier-results-runtime-{torch.__version__}" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"compiled-{threads}")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no idle processes beside what is timed
    model, example, options = network(name)
    model, _ = pruned(model, USUAL, options)
    modules: dict[str, nn.Module] = {}
    reasons: dict[str, str] = {}
    for way in WAYS:
        if reason := obstacle(name, batch, way):
            reasons[way.name] = reason
            continue
        try:
            modules[way.name] = way(model, folder).module(example.with_rows(batch))
        except Exception as error:  # whatever a compiler or an exporter raises is a reason
            reasons[way.name] = why_not(error)
    return modules, reasons


class Free(AbstractKernel):
    """A product that costs nothing, and is zero."""

    name = "free"

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.stored: dict[int, Tensor] = {}

    def pack(self, weight: Tensor) -> Tensor:
        return weight

    def matmul(self, packed: Any, activations: Tensor) -> Tensor:
        n = activations.shape[1]
        if n not in self.stored:
            self.stored[n] = torch.zeros(self.rows, n)
        return self.stored[n]

    def nbytes(self, packed: Any) -> int:
        return 0


class Given(nn.Module):
    """A layer that costs nothing: it answers what was answered before."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, input: Tensor) -> Tensor:
        return self.output


def sparse_layers(network: nn.Module) -> dict[str, SparseLinear | SparseConv2d]:
    """The layers that have a sparse kernel, by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, SparseLinear | SparseConv2d)}


def free_products(fast: nn.Module) -> nn.Module:
    """The accelerated network with products that cost nothing."""
    found = copy.deepcopy(fast)
    for layer in sparse_layers(found).values():
        layer.kernel = Free(layer.weight.shape[0])
        if isinstance(layer, SparseLinear) and layer.siblings is not None:
            layer.siblings.kernel = Free(sum(layer.siblings.sizes))
    return found


def free_layers(fast: nn.Module, run: Callable[[nn.Module], object]) -> nn.Module:
    """The accelerated network with sparse layers that cost nothing."""
    found = copy.deepcopy(fast)
    for name, layer in sparse_layers(found).items():
        outputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))  # noqa: B023
        run(found)
        handle.remove()
        found.set_submodule(name, Given(outputs[0]))
    return found


def point(name: str, threads: int, batch: int, seconds: float) -> dict[str, Any]:
    """One network with one number of threads and one batch size."""
    start = time.perf_counter()
    modules, reasons = prepared(name, threads, batch)
    model, example, options = network(name)
    given = example.with_rows(batch)
    positional, named = given.arguments
    ours: dict[str, dict[str, Any]] = {}
    for sparsity in SPARSITIES[name]:
        sparse, zeros = pruned(model, sparsity, options)
        fast = accelerate(sparse, named or positional, seconds=seconds / 20)
        with torch.inference_mode():
            outputs = [tensors_of(x(*positional, **named)) for x in (fast, sparse)]
        ours[f"espalier, {100 * sparsity:g} % zeros"] = {
            "sparsity": sparsity,
            "zeros": zeros,
            "difference": disagreement(*outputs),
            "plan": plan_of(fast).summary(),
            "goal": GOALS.get((name, batch, sparsity)) if threads == 1 else None,
        }
        modules[f"espalier, {100 * sparsity:g} % zeros"] = fast

    def runs(module: nn.Module) -> Callable[[], object]:
        return lambda: module(*positional, **named)

    with torch.inference_mode():
        modules[FREE["products"]] = free_products(fast)
        modules[FREE["layers"]] = free_layers(fast, lambda module: runs(module)())
    functions = {way: runs(module) for way, module in modules.items()}
    functions[AGAIN] = functions[Dense.name]
    with torch.inference_mode():
        timings = interleave(functions, rounds=40, budget=seconds, least=5)
    dense = timings[Dense.name].minimum
    rows = [
        {
            "name": way,
            "min": timing.minimum,
            "median": timing.median,
            "spread": timing.spread,
            "n": len(timing.samples),
            "speedup": dense / timing.minimum,
        }
        | ours.get(way, {})
        for way, timing in timings.items()
    ]
    return {
        "network": name,
        "threads": threads,
        "batch": batch,
        "rows": rows,
        "not run": reasons,
        "doubts": list(doubts(timings, step=resolution(), twins=(Dense.name, AGAIN))),
        "machine": vars(Machine.here()),
        "seconds": time.perf_counter() - start,
    }


def sizes(name: str) -> list[dict[str, float]]:
    """Bytes of the sparse file, of the dense one, and of the pruned tensors in both."""
    model, _, options = network(name)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        for sparsity in SPARSITIES[name]:
            sparse, zeros = pruned(model, sparsity, options)
            save_checkpoint(path, sparse.state_dict())
            dense = path.stat().st_size
            written = rewrite(open_checkpoint(sparse), path, _same, sparse=True)
            weights = dict(sparse.named_parameters())
            names = [
                key for key, size in written.tensors.items() if key in weights and size < weights[key].nbytes
            ]
            found.append(
                {
                    "sparsity": sparsity,
                    "zeros": zeros,
                    "sparse": written.bytes,
                    "dense": dense,
                    "sparse, pruned tensors": sum(written.tensors[key] for key in names),
                    "dense, pruned tensors": sum(weights[key].nbytes for key in names),
                }
            )
    return found


def _same(name: str, tensor: Tensor) -> Tensor:
    del name
    return tensor


def says(found: Mapping[str, Any]) -> str:
    """A point in one line."""
    gains = [
        f"{row['name'].removeprefix('espalier, ')} {row['speedup']:.2f}"
        + (f" (goal {row['goal']:g})" if row.get("goal") else "")
        for row in found["rows"][1:]
        if row["name"] != AGAIN
    ]
    doubt = f"; doubt: {found['doubts'][0]}" if found["doubts"] else ""
    where = f"{found['network']}, threads {found['threads']}, batch {found['batch']}"
    return f"{where}, {found['seconds']:.0f} s, times dense: {', '.join(gains)}{doubt}"


def main() -> None:
    """One point an artefact."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--prepare", action="store_true", help="make what needs no quiet machine, time nothing"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no new point after so many"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="for the rounds of a point, at least")
    parser.add_argument("--networks", nargs="+", default=list(SPARSITIES), choices=list(SPARSITIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    files = {name: once(POINTS / f"{name}-files.json", lambda: sizes(name)) for name in asked.networks}  # noqa: B023
    begun, points = time.monotonic(), []
    for name, threads, batch in ORDER:
        path = POINTS / f"{name}-{threads}-{batch}.json"
        if name not in asked.networks or threads not in asked.threads or batch not in asked.batches:
            continue
        if asked.prepare:
            print(name, threads, batch, prepared(name, threads, batch)[1], flush=True)
        elif path.exists() or time.monotonic() - begun < 60 * asked.minutes:
            points.append(once(path, lambda: point(name, threads, batch, asked.seconds)))  # noqa: B023
            print(says(points[-1]), flush=True)
    if not asked.prepare:
        made = {"command": command(), "environment": environment()}
        write_json(HERE / "runtime.json", made | {"files": files, "points": points})


if __name__ == "__main__":
    main()
