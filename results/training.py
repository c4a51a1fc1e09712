"""Pruning while training, three epochs: target gRDA, the paper's gRDA, gradual and one-shot magnitude.

    ESPALIER_DATA=... python -m results.training [--network lenet5-mnist] [--group table] [--seed 0]

Groups of runs:
  table        four methods at 90, 95 and 98 %, three seeds, equal epochs and data order
  teacher      target gRDA and gradual magnitude again, trained towards the dense parent too (KL, T = 4, weight 0.9)
  sensitivity  the paper's law over a grid of c and mu, beside targets: what has to be tuned
  freezing     target gRDA whose ramp ends at 50 to 100 % of the run: when the mask should freeze

ResNet-20 starts from the prepared checkpoint (88.36 % on the same test images), LeNet5 from scratch. The paper's
gRDA has no momentum and no decay, thresholds every parameter, and ends at whatever sparsity its law gives; c comes
from `calibrate` with one pilot epoch, mu is 0.51: its rows say the sparsity reached. The last epoch counts; the
test images are read once per run and choose nothing. One run is one artefact under points/training/: kill the
script anywhere and start it again.
"""

import argparse
import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier import data
from espalier.checkpoint import open_checkpoint
from espalier.methods import AbstractMethod, Gradual, OneShot, TargetGRDA, Threshold
from espalier.models import CifarResNet, LeNet5, load_weights
from espalier.optim import PowerLaw
from espalier.pruned_training import train_pruned
from espalier.train import Training
from espalier.train.calibration import calibrate
from results._common import HERE, environment, once, summary, write_json

SPARSITIES = (0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
# Chosen before any run: the setting that the sketch gives.
MODERN = Training(epochs=3, batch_size=128, lr=0.05, schedule="cosine")
PAPER = replace(MODERN, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="garipov")
METHODS: dict[str, AbstractMethod] = {
    "target gRDA": TargetGRDA(),
    "gradual magnitude": Gradual(),
    "one-shot magnitude": OneShot(),
}
C_GRID = (0.0003, 0.001, 0.003, 0.01, 0.03)
MU_GRID = (0.4, 0.51, 0.6, 0.7)
TARGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
ENDS = (0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Cell:
    """One run."""

    network: str
    group: str
    label: str
    method: AbstractMethod | None  # None: the paper's, its c from `calibrate`
    sparsity: float | None
    seed: int
    training: Training
    teacher: bool = False

    @property
    def path(self) -> Path:
        asked = "law" if self.sparsity is None else f"{self.sparsity:g}"
        word = self.label.replace(" ", "-")
        return HERE / "points" / "training" / self.network / f"{self.group}-{word}-{asked}-{self.seed}.json"


def cells(network: str, groups: list[str], seeds: list[int]) -> Iterator[Cell]:
    """The runs asked for, one seed of everything first."""
    for seed in seeds:
        training, paper = replace(MODERN, seed=seed), replace(PAPER, seed=seed)
        if "table" in groups:
            for sparsity in SPARSITIES:
                for label, method in METHODS.items():
                    yield Cell(network, "table", label, method, sparsity, seed, training)
            for sparsity in SPARSITIES:
                yield Cell(network, "table", "paper gRDA", None, sparsity, seed, paper)
        if "teacher" in groups:
            for sparsity in SPARSITIES:
                for label in ("target gRDA", "gradual magnitude"):
                    yield Cell(
                        network, "teacher", label, METHODS[label], sparsity, seed, training, teacher=True
                    )
        if "freezing" in groups:
            for sparsity in SPARSITIES[1:]:
                for end in ENDS:
                    yield Cell(
                        network, "freezing", f"end {end:g}", TargetGRDA(end=end), sparsity, seed, training
                    )
        if "sensitivity" in groups:
            for sparsity in TARGETS:
                yield Cell(network, "sensitivity", "target", TargetGRDA(), sparsity, seed, training)
            for mu in MU_GRID:
                for c in C_GRID:
                    law = Threshold(PowerLaw(c, mu), paper=True, momentum=False)
                    yield Cell(network, "sensitivity", f"c {c:g} mu {mu:g}", law, None, seed, paper)


def start(network: str, seed: int) -> tuple[nn.Module, nn.Module | None]:
    """The network as a run begins, and its dense parent where there is one."""
    if network == "lenet5-mnist":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LeNet5(), None
    path = data.data_folder().parent / "checkpoints" / "resnet20-cifar10jpeg.safetensors"
    model = load_weights(CifarResNet(20), open_checkpoint(path).state_dict(), path.name)
    return model, copy.deepcopy(model)


@cache
def dataset(network: str) -> data.Dataset:
    if network == "lenet5-mnist":
        return data.torchvision_data("MNIST", data.data_folder())
    return data.parquet("cifar10_jpeg")


def calibrated(cell: Cell) -> PowerLaw:
    """c for the sparsity asked for, found once with seed 0 and used by every seed."""
    assert cell.sparsity is not None
    path = HERE / "points" / "training" / cell.network / f"calibration-{cell.sparsity:g}.json"

    def search() -> dict[str, Any]:
        model, _ = start(cell.network, 0)
        training = replace(cell.training, seed=0)
        found = calibrate(
            model,
            dataset(cell.network),
            training,
            cell.sparsity or 0.0,
            pilot_epochs=1,
            rounds=3,
            scope="paper",
        )
        pilots = [{"c": p.law.c, "sparsity": p.sparsity, "accuracy": p.accuracy} for p in found.pilots]
        return {"c": found.law.c, "mu": found.law.mu, "predicted": found.predicted, "pilots": pilots}

    found = once(path, search)
    return PowerLaw(found["c"], found["mu"])


def measure(cell: Cell) -> dict[str, Any]:
    """Train and read the test images once."""
    model, parent = start(cell.network, cell.seed)
    method, sparsity = cell.method, cell.sparsity
    if method is None:
        method, sparsity = Threshold(calibrated(cell), paper=True, momentum=False), None
    folder = HERE.parent / "runs" / "training" / cell.network / cell.path.stem
    result = train_pruned(
        model,
        dataset(cell.network),
        cell.training,
        method,
        sparsity=sparsity,
        parent=parent,
        teacher=parent if cell.teacher else None,
        folder=folder,
    )
    shutil.rmtree(folder)
    test = result.stages[-1].evaluation
    return {
        "method": repr(method),
        "asked": cell.sparsity,
        "sparsity": result.sparsity,
        "zeros": result.zeros,
        "accuracy": test.accuracy,
        "interval": test.interval,
        "loss": test.loss,
        "seconds": sum(epoch.seconds for epoch in result.history.epochs),
        "epochs": [
            {
                "epoch": epoch.epoch,
                "accuracy": epoch.accuracy,
                "sparsity": epoch.sparsity,
                "turnover": epoch.record()["turnover"],
            }
            for epoch in result.history.epochs
        ],
    }


def collect(network: str) -> dict[str, Any]:
    """Everything that is there, as rows over seeds."""
    rows: dict[tuple[str, str, float | None], list[Any]] = {}
    for cell in cells(network, ["table", "teacher", "freezing", "sensitivity"], list(SEEDS)):
        if cell.path.exists():
            rows.setdefault((cell.group, cell.label, cell.sparsity), []).append(once(cell.path, dict))
    found: dict[str, Any] = {}
    for (group, label, asked), runs in rows.items():
        found.setdefault(group, []).append(
            {
                "method": label,
                "asked": asked,
                "accuracy": summary([run["accuracy"] for run in runs]),
                "sparsity": summary([run["sparsity"] for run in runs]),
                "accuracies": [run["accuracy"] for run in runs],
                "epochs": runs[0]["epochs"],
            }
        )
    return found


def main() -> None:
    """The runs asked for; everything that is there goes into the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    networks = ("lenet5-mnist", "resnet20-prepared")
    groups = ("table", "teacher", "freezing", "sensitivity")
    parser.add_argument("--network", choices=networks, action="append")
    parser.add_argument("--group", choices=groups, action="append")
    parser.add_argument("--seed", type=int, action="append")
    arguments = parser.parse_args()
    for network in arguments.network or networks:
        for cell in cells(network, arguments.group or ["table"], arguments.seed or list(SEEDS)):
            if cell.teacher and network == "lenet5-mnist":
                continue  # from scratch: there is no parent to be taught by
            found = once(cell.path, lambda cell=cell: measure(cell))  # type: ignore[misc]
            print(cell.path.stem, f"{found['sparsity']:.4f} {found['accuracy']:.4f}", flush=True)
            write_json(
                HERE / f"training-{network}.json",
                {
                    "command": f"python -m results.training --network {network}",
                    "environment": environment(),
                    "modern": MODERN.spec(),
                    "paper": PAPER.spec(),
                    **collect(network),
                },
            )


if __name__ == "__main__":
    main()
