"""What the harness of `espalier compare` adds to the trainings that it runs."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier import data
from espalier.compare import Cell, Contender, Network, run, running
from espalier.methods import Gradual
from espalier.models import DigitsCNN, LeNet5
from espalier.pruned_training import train_pruned
from espalier.train import Training


def comparing(quick: bool = False) -> Part:
    """A run of the comparison against the training in it: LeNet5 on MNIST, three epochs.

    The smallest run that the results have, so that what the harness costs a run (networks, locks, counting, the file's
    size, writing) weighs most. Both are timed in one run, so what else the machine does hits them alike.
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
    inside: list[float] = []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return train_pruned(*arguments, **options)
        finally:
            inside.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as place, patch.object(running, "train_pruned", timed):

        def harness() -> None:
            found = run(cell, Path(place))
            assert found is not None and found.failure is None
            shutil.rmtree(Path(place) / cell.digest)

        whole = interleaved({"run": harness}, 1 if quick else 5)["run"]
    times = {"run": whole, "training in it": inside[1:]}  # the first is not timed
    found = ratio(whole, inside[1:])
    return Part(
        [Goal("a run of a comparison over the training in it", 1.03, *found)], {"seconds": table(times)}
    )
