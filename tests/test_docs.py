"""Documentation that cannot rot: its code runs, its references are fresh, every public name is in it."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import FunctionType

import pytest
from docs import generate

import espalier
from espalier.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/tutorial-checkpoint.md",
    "docs/tutorial-data.md",
    "docs/tutorial-training.md",
    "docs/comparing.md",
    "docs/tutorial-python.md",
    "docs/directional-training.md",
    "docs/export.md",
    "docs/runtime.md",
    "docs/landscape.md",
    "docs/landscape-curvature.md",
    "docs/directional.md",
    "docs/new-method.md",
]
# Pages whose commands take long (run elsewhere in the tests) or that have none.
PYTHON_ONLY = ("python.md", "new-method.md", "directional-training.md", "runtime.md", "comparing.md")
COMMANDS = (
    *("inspect", "prune", "unpack", "finetune", "train", "compare", "evaluate", "export", "bench", "demo"),
    *(
        f"landscape {name}"
        for name in ("spectrum", "project", "path", "plane", "functions", "norms", "topology")
    ),
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE
    )


def call(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one `espalier ...` line in this process; anything but success is an error."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, line


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `espalier demo` writes, made once for all pages."""
    folder = tmp_path_factory.mktemp("documentation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call("espalier demo -o demo", patch)
    return folder / "demo"


def test_demo_leaves_the_files_it_names(demonstration: Path) -> None:
    names = {path.name for path in demonstration.iterdir()}
    assert {"dense.safetensors", "tuned.safetensors", "small.safetensors", "report.html"} <= names
    dense, small = (demonstration / f"{name}.safetensors" for name in ("dense", "small"))
    assert small.stat().st_size < 0.3 * dense.stat().st_size
    assert (demonstration / "report.html").read_text().count("<svg") >= 4


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_run(
    page: str,
    demonstration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")
    ]
    assert lines or page.endswith(PYTHON_ONLY)
    for line in lines:
        assert line.startswith("espalier "), f"{page}: only our own commands are run: {line}"
        if line == "espalier demo -o demo":
            shutil.copytree(demonstration, tmp_path / "demo", dirs_exist_ok=True)
        else:
            call(line, monkeypatch)
            assert capsys.readouterr().out, f"{line} printed nothing"


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text()])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks(page, "python"))
    exec(compile(program, page, "exec"), {"__name__": "documentation"})


def test_references_are_fresh() -> None:
    assert (ROOT / "docs/cli.md").read_text() == generate.cli_reference(), "run `make reference`"
    assert (ROOT / "docs/api.md").read_text() == generate.api_reference(), "run `make reference`"


def test_every_public_name_is_in_the_api_page_under_one_theme() -> None:
    listed = [name for names in generate.THEMES.values() for name in names]
    assert sorted(listed) == sorted(set(espalier.__all__) - {"__version__"})


@pytest.mark.parametrize("name", [name for name in espalier.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert (getattr(espalier, name).__doc__ or "").strip(), f"espalier.{name} says nothing of itself"


@pytest.mark.parametrize("package", generate.PACKAGES)
def test_every_exported_class_and_function_is_in_the_api_page(package: str) -> None:
    module = importlib.import_module(package)
    page = generate.api_reference()
    assert f"## `{package}`" in page
    for name in generate.exported(package):
        value = getattr(module, name)
        if isinstance(value, type | FunctionType):
            assert f"::: {value.__module__}.{name}\n" in page
            assert (value.__doc__ or "").strip(), f"{package}.{name} says nothing of itself"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"## `espalier {command}`" in (ROOT / "docs/cli.md").read_text()
    assert any(f"espalier {command}" in (ROOT / page).read_text() for page in PAGES)


def test_readme_is_about_a_hundred_lines() -> None:
    assert 70 <= len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_nothing_names_a_machine_or_an_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "--" not in lock
