"""What the harness of `espalier compare` adds to the trainings that it runs."""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier import data
from espalier.compare import Cell, Contender, Network, run
from espalier.methods import Gradual
from espalier.models import DigitsCNN, LeNet5
from espalier.pruned_training import train_pruned
from espalier.train import Training


def comparing(quick: bool = False) -> Part:
    """A run of the comparison against the same training called directly: LeNet5 on MNIST, three epochs.

    The smallest run that the results have, so that what the harness costs a run (networks, locks, counting, the file's
    size, writing) weighs most. Both read the test split once.
    """
    images = (
        data.digits(data.Options(limit=200)) if quick else data.torchvision_data("MNIST", data.data_folder())
    )
    training = Training(epochs=1 if quick else 3, augment=False, precision="fp32")

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return DigitsCNN() if quick else LeNet5()

    cell = Cell(
        Network("network", build, lambda: images), Contender("gradual", Gradual()), 0.9, 0, False, training
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def harness() -> None:
            found = run(cell, folder / "study")
            assert found is not None and found.failure is None
            shutil.rmtree(folder / "study")

        def direct() -> None:
            train_pruned(build(0), images, training, Gradual(), sparsity=0.9, folder=folder / "run")
            shutil.rmtree(folder / "run")

        times = interleaved({"harness": harness, "direct": direct}, 1 if quick else 3)
    found = ratio(times["harness"], times["direct"])
    return Part(
        [Goal("a run of a comparison over the training alone", 1.03, *found)], {"seconds": table(times)}
    )
