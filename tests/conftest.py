import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

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


def two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """`work(rank, *arguments)` in two processes on a CPU, each with the environment that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_one_of_two, args=(port, work, arguments), nprocs=2)


def _one_of_two(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}  # Accelerate sets the number of threads anew
    os.environ.update({key: str(value) for key, value in (place | address | cpu).items()})
    work(rank, *arguments)
    dist.barrier()
    # A replica never lets go of its process group (torch 2.15): gloo's threads outlive it, and one that frees a
    # tensor while the interpreter ends aborts the process. So the interpreter does not end.
    os._exit(0)


# --- small models of transformers, in folders as it writes them


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Loading and saving by transformers without its bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def saved(model: Any, folder: Path) -> Path:
    """The folder, with a model of transformers in it."""
    with no_progress_bar():
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """Images of 1x8x8, 10 classes."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    return saved(transformers.ViTForImageClassification(config), tmp_path / "vit")


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """Tied: the head is the embedding."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=8)
    return saved(transformers.GPT2LMHeadModel(config), tmp_path / "gpt2")


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """In memory the tensors of its experts are others than in the file."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        vocab_size=11,
        max_position_embeddings=8,
    )
    return saved(transformers.MixtralForCausalLM(config), tmp_path / "mixtral")
