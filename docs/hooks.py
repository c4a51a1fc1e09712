"""Show results/ as a page of the documentation, with its figures, without copying them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add results/README.md as results.md, and the figures beside it."""
    page = (RESULTS / "README.md").read_text()
    files.append(File.generated(config, "results.md", content=page))
    for figure in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, figure.name, abs_src_path=str(figure)))
    return files
