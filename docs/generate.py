"""Write the CLI reference from `--help`, and the API page from the public names: `make reference`."""

import importlib
from pathlib import Path
from types import FunctionType

import espalier

HERE = Path(__file__).parent

CLI_HEAD = """# Command line

<!-- Written by docs/generate.py; `make reference` writes it anew. -->

Every command prints tables for people and, with `--json`, one object for programs. What cannot be done is said in one
line on standard error, with exit status 2; options that do not exist get that status and the usage. An interrupt is
130. Anything else is a bug and keeps its traceback.
"""

THEMES: dict[str, tuple[str, ...]] = {
    "Checkpoints": (
        "open_checkpoint", "save_checkpoint", "rewrite", "load_sparse", "unpack", "AbstractCheckpoint", "TensorInfo",
        "select", "Selection",
    ),
    "How far": (
        "inspect", "Inspection", "profile", "Profile", "Curve", "exact_curve", "Amount", "AbstractAmount", "Utopia",
        "Safe", "CosineTarget", "EffectiveSize", "Knee", "Given",
    ),
    "Prune": (
        "prune", "prune_checkpoint", "prune_file", "PrunedFile", "Masks", "hold", "Hold", "Evidence",
        "AbstractScore", "Magnitude", "Random", "AbstractAllocation", "Global", "Uniform", "UniformPlus", "ERK", "LAMP",
    ),
    "With data": (
        "finetune", "Finetuned", "fit", "Training", "History", "evaluate", "Evaluation", "similarity",
        "Similarity", "recalibrate", "Recalibration", "largest_sparsity", "largest_agreeing_sparsity", "Budget",
    ),
    "Errors": ("EspalierError", "CheckpointError"),
}  # fmt: skip


PACKAGES = (
    "espalier.optim",
    "espalier.methods",
    "espalier.scores",
    "espalier.train",
    "espalier.train.calibration",
    "espalier.pruned_training",
    "espalier.layerwise",
    "espalier.directional",
    "espalier.landscape",
    "espalier.compare",
    "espalier.export",
    "espalier.runtime",
    "espalier.callbacks.lightning",
    "espalier.callbacks.transformers",
)
"""Imported by their own names; each has a section with the names that it exports."""


def exported(package: str) -> list[str]:
    """Public names of a package in its own order: `__all__`, or what it imports under the same name again."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("espalier.")
    ]


def _section(package: str) -> list[str]:
    """A package's own words, then its classes and functions; constants are in the docstrings of what takes them."""
    module = importlib.import_module(package)
    summary = (module.__doc__ or "").partition("\n")[0]
    named = {name: getattr(module, name) for name in exported(package)}
    parts = [f"## `{package}`\n\n{summary}\n"]
    for name, value in named.items():
        if isinstance(value, type | FunctionType):
            parts.append(f"::: {value.__module__}.{name}\n")
    return parts


def cli_reference() -> str:
    """One section a command, with its help."""
    import typer.main
    from typer import Context

    from espalier.cli import app

    group = typer.main.get_command(app)
    parts = [CLI_HEAD]
    commands = {"espalier": group}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        commands[f"espalier {name}"] = command
        for inner, each in getattr(command, "commands", {}).items():
            commands[f"espalier {name} {inner}"] = each
    for title, command in commands.items():
        settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
        with Context(command, info_name=title, **settings) as context:
            parts.append(f"## `{title}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def api_reference() -> str:
    """The public names by theme; mkdocstrings fills in the docstrings."""
    parts = ["# Python API\n\n<!-- Written by docs/generate.py; `make reference` writes it anew. -->\n"]
    for theme, names in THEMES.items():
        parts.append(f"## {theme}\n")
        for name in names:
            module = importlib.import_module(espalier._MODULES[name])
            parts.append(f"::: {getattr(module, name).__module__}.{name}\n")
    for package in PACKAGES:
        parts += _section(package)
    return "\n".join(parts)


def main() -> None:
    """Write both pages."""
    (HERE / "cli.md").write_text(cli_reference())
    (HERE / "api.md").write_text(api_reference())


if __name__ == "__main__":
    main()
