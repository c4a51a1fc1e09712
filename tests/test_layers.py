"""Imports point one way, and every module can be the first one imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import espalier

SOURCE = Path(espalier.__file__).parent

# From the bottom up; a module may import from its own layer and from those before it.
LAYERS = [
    {"_types", "_errors", "_quiet", "flops"},
    {"checkpoint", "processes"},
    {"selection"},
    {"scores"},
    {"threshold", "histogram", "curve", "optima", "kurtosis", "profiling", "nulls"},
    {"masks", "allocate", "amount", "inspection"},
    {"apply", "pruning", "pruned_file"},
    {"data", "models"},
    {"_forward", "evaluation", "likeness", "recalibration", "budget"},
    {"train", "methods"},
    {"finetuning", "pruned_training", "recipe", "study"},
    {"landscape", "directional", "layerwise", "export", "compare", "runtime"},
    {"callbacks"},
    {"report"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Can be lifted out and used alone.
ALONE = {"optim": {"_types", "_errors", "optim"}}

MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "espalier":
                names = [f"espalier.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("espalier."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in {"__init__", "__main__"}:
        return
    assert part in RANK or part in ALONE, (
        f"{part} has no layer: give it one in this file and in docs/architecture.md"
    )
    for other in imports(path):
        if other in {"EspalierError", "CheckpointError", "__version__"}:
            continue
        if part in ALONE:
            assert other in ALONE[part], f"{part} stands alone but imports {other}"
        elif other in ALONE:
            assert RANK[part] > RANK["scores"], f"{part} is below {other}"
        else:
            assert RANK[other] <= RANK[part], f"{part} must not import {other}"


def test_every_module_can_be_imported_first() -> None:
    """One interpreter; the package is forgotten between imports, so no module leans on another's import."""
    names = []
    for path in MODULES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    program = (
        "import importlib, sys, torch\n"
        f"for name in {names!r}:\n"
        "    for old in [m for m in sys.modules if m.split('.')[0] == 'espalier']: del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
