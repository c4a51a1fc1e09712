"""How far can this network be pruned, prune it so that it still works, and why believe it.

The names below are the public surface. They load on first use, so that `import espalier` (and with it
`espalier --help`) does not import torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_MODULES: dict[str, str] = {
    "EspalierError": "espalier._errors",
    "CheckpointError": "espalier._errors",
}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'espalier' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
