"""Checkpoints as networks on the best device at hand, and the data; imports torch, so commands import it late."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from espalier._errors import CheckpointError
from espalier._forward import probe
from espalier.checkpoint import AbstractCheckpoint, open_checkpoint
from espalier.cli import names, options
from espalier.data import Dataset
from espalier.landscape.points import check_usable
from espalier.landscape.surface import Surface
from espalier.processes import from_main, place


def gather(
    files: Mapping[str, Path], model: str, data: str, root: Path | None, limit: int
) -> tuple[Dataset, dict[str, nn.Module]]:
    """The data, and a network for each file, in eval mode, on the GPU if there is one.

    One example is tried before any work.
    """
    dataset = _data(data, root, limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, nn.Module] = {}
    for name, file in files.items():
        checkpoint = open_checkpoint(file)
        network = _filled(model, len(dataset.classes), checkpoint, file).to(device).eval()
        if not found:
            probe(network, dataset, f"--model {model}")
        found[name] = network
        options.say(*(f"{name}: {note}" for note in checkpoint.notes))
    return dataset, found


def surface_of(
    networks: Mapping[str, nn.Module], data: Dataset, batch_size: int, separate: bool
) -> tuple[Surface, dict[str, Tensor]]:
    """The surface that the first network belongs to, and every network as a point of it."""
    first, network = next(iter(networks.items()))
    surface = Surface(network, data.train, data.test, batch_size=batch_size, shared=not separate, name=first)
    say_shared(surface.train.passes())
    return surface, {name: surface.space.vector(other, name) for name, other in networks.items()}


def say_shared(batches: int) -> None:
    """Whether the processes that were started have something to share."""
    processes = place()[1]
    if processes > 1:
        idle = "" if batches >= processes else ": give a smaller --batch-size, so that each has one"
        options.say(f"{processes} processes share {batches:,} batches of training examples{idle}")


def subset(data: Dataset, train: int, test: int, limit: int) -> str:
    """Which examples were used, for people to read beside the numbers."""
    cut = "all of them" if not limit else f"--limit {limit:,}; the first of a fixed permutation"
    parts = [f"{count:,} {word}" for count, word in ((train, "training"), (test, "test")) if count]
    return f"{data.name}: {' and '.join(parts)} examples ({cut})"


def _filled(word: str, classes: int, checkpoint: AbstractCheckpoint, file: Path) -> nn.Module:
    try:
        return names.model(word, classes, checkpoint, str(file)).model
    except CheckpointError:
        if not word.startswith(
            "hf:"
        ):  # what a quantized network packs away is no tensor and seems to be missing
            check_usable(names.network(word, classes), f"--model {word}")
        raise


def _data(word: str, root: Path | None, limit: int) -> Dataset:
    """The data set; of several processes the main one looks for it first, and downloads it if need be."""
    found: list[Dataset] = []

    def load() -> None:
        found.append(names.dataset(word, root, limit=limit or None))

    from_main(load)
    if not found:
        load()
    return found[0]
