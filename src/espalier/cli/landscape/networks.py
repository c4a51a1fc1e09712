"""Checkpoints as networks on the best device at hand, and the data; imports torch, so commands import it late."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from espalier._forward import probe
from espalier.checkpoint import open_checkpoint
from espalier.cli import names, options
from espalier.data import Dataset


def gather(files: Mapping[str, Path], model: str, data: Dataset) -> dict[str, nn.Module]:
    """A network for each file, in eval mode, on the GPU if there is one; one example is tried before any work."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, nn.Module] = {}
    for name, file in files.items():
        checkpoint = open_checkpoint(file)
        network = names.model(model, len(data.classes), checkpoint, str(file)).model.to(device).eval()
        if not found:
            probe(network, data, f"--model {model}")
        found[name] = network
        options.say(*(f"{name}: {note}" for note in checkpoint.notes))
    return found


def subset(data: Dataset, train: int, test: int, limit: int) -> str:
    """Which examples were used, for people to read beside the numbers."""
    cut = "all of them" if not limit else f"--limit {limit:,}; the first of a fixed permutation"
    parts = [f"{count:,} {word}" for count, word in ((train, "training"), (test, "test")) if count]
    return f"{data.name}: {' and '.join(parts)} examples ({cut})"
