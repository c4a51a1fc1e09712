import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


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
