"""How far can this network be pruned, prune it so that it still works, and why believe it.

The names below are the public surface. They load on first use, so that `import espalier` (and with it
`espalier --help`) does not import torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

# Module -> the names it makes public. A module is never called like one of its names: importing it would hide the name.
_PUBLIC = {
    "_errors": ("CheckpointError", "EspalierError"),
    "allocate": ("ERK", "LAMP", "AbstractAllocation", "Global", "Uniform", "UniformPlus"),
    "amount": (
        "AbstractAmount",
        "Amount",
        "CosineTarget",
        "EffectiveSize",
        "Given",
        "Knee",
        "Safe",
        "Utopia",
    ),
    "apply": ("Hold", "hold"),
    "budget": ("Budget", "largest_agreeing_sparsity", "largest_sparsity"),
    "checkpoint": (
        "AbstractCheckpoint",
        "TensorInfo",
        "load_sparse",
        "open_checkpoint",
        "rewrite",
        "save_checkpoint",
        "unpack",
    ),
    "curve": ("Curve", "exact_curve"),
    "evaluation": ("Evaluation", "evaluate"),
    "finetuning": ("Finetuned", "finetune"),
    "inspection": ("Inspection", "inspect"),
    "likeness": ("Similarity", "similarity"),
    "masks": ("Masks",),
    "profiling": ("Profile", "profile"),
    "pruned_file": ("PrunedFile", "prune_file"),
    "pruning": ("prune", "prune_checkpoint"),
    "recalibration": ("Recalibration", "recalibrate"),
    "scores": ("AbstractScore", "Evidence", "Magnitude", "Random"),
    "selection": ("Selection", "select"),
    "train": ("History", "Training", "fit"),
}
_MODULES = {name: f"espalier.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'espalier' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
