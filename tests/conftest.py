import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from espalier.cli import main

torch.set_num_threads(1)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test starts from the same global generator and leaves the caller's alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with MNIST, CIFAR-10 as JPEG and (beside it) public checkpoints."""
    root = os.environ.get("ESPALIER_DATA")
    if root is None or not Path(root).is_dir():
        pytest.skip("ESPALIER_DATA names no folder with the public data sets")
    return Path(root)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `espalier ARGS` in this process, in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["espalier", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
