"""Pruning while training, three epochs: what has to be tuned, and when the mask should freeze.

    ESPALIER_DATA=... python -m results.training [--network lenet5-mnist] [--group freezing] [--seed 0]

Groups of runs:
  sensitivity  the paper's law over a grid of c and mu, beside target gRDA at six sparsities
  freezing     target gRDA whose ramp ends at 50 to 100 % of the run

Which method prunes best is the question of the studies (results/studies), not of this script. LeNet5 starts from
scratch, ResNet-20 (by --network) from the prepared checkpoint. The paper's gRDA has no momentum and no decay,
thresholds every parameter, and ends at whatever sparsity its law gives. The last epoch counts; the test images are read
once per run and choose nothing. One run is one artefact under points/training/: kill the script anywhere and start it
again.
"""

import argparse
import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier import data
from espalier.checkpoint import open_checkpoint
from espalier.methods import AbstractMethod, TargetGRDA, Threshold
from espalier.models import CifarResNet, LeNet5, load_weights
from espalier.optim import PowerLaw
from espalier.pruned_training import train_pruned
from espalier.train import Training
from results._common import HERE, environment, once, summary, write_json

SEEDS = (0, 1, 2)
GROUPS = ("sensitivity", "freezing")
C_GRID = (0.0003, 0.001, 0.003, 0.01, 0.03)
MU_GRID = (0.4, 0.51, 0.6, 0.7)
TARGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
ENDS = (0.5, 0.7, 0.9, 1.0)
# As in the studies, chosen before any run; the precision is said so that machines agree.
MODERN = {
    "lenet5-mnist": Training(epochs=3, batch_size=128, lr=0.05, augment=False, precision="fp32"),
    "resnet20-prepared": Training(epochs=3, batch_size=128, lr=0.05, precision="bf16"),
}


def paper(training: Training) -> Training:
    """The same run with the rates of the directional-pruning paper: no momentum, no decay."""
    return replace(training, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="garipov")


@dataclass(frozen=True)
class Cell:
    """One run."""

    network: str
    group: str
    label: str
    method: AbstractMethod
    sparsity: float | None
    training: Training

    @property
    def path(self) -> Path:
        asked = "law" if self.sparsity is None else f"{self.sparsity:g}"
        name = f"{self.group}-{self.label.replace(' ', '-')}-{asked}-{self.training.seed}.json"
        return HERE / "points" / "training" / self.network / name


def cells(network: str, groups: Sequence[str] = GROUPS, seeds: Sequence[int] = SEEDS) -> Iterator[Cell]:
    """The runs asked for, one seed of everything first."""
    for seed in seeds:
        training = replace(MODERN[network], seed=seed)
        if "freezing" in groups:
            for sparsity in (0.95, 0.98):
                for end in ENDS:
                    yield Cell(network, "freezing", f"end {end:g}", TargetGRDA(end=end), sparsity, training)
        if "sensitivity" in groups:
            for sparsity in TARGETS:
                yield Cell(network, "sensitivity", "target", TargetGRDA(), sparsity, training)
            for mu in MU_GRID:
                for c in C_GRID:
                    law = Threshold(PowerLaw(c, mu), paper=True, momentum=False)
                    yield Cell(network, "sensitivity", f"c {c:g} mu {mu:g}", law, None, paper(training))


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


def measure(cell: Cell) -> dict[str, Any]:
    """Train and read the test images once."""
    model, parent = start(cell.network, cell.training.seed)
    folder = HERE.parent / "runs" / "training" / cell.network / cell.path.stem
    result = train_pruned(
        model,
        dataset(cell.network),
        cell.training,
        cell.method,
        sparsity=cell.sparsity,
        parent=parent,
        folder=folder,
    )
    shutil.rmtree(folder)
    test = result.stages[-1].evaluation
    return {
        "method": repr(cell.method),
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
    rows: dict[tuple[str, str, float | None], dict[int, Any]] = {}
    for cell in cells(network):
        if cell.path.exists():
            runs = rows.setdefault((cell.group, cell.label, cell.sparsity), {})
            runs[cell.training.seed] = once(cell.path, dict)
    found: dict[str, Any] = {group: [] for group in GROUPS}
    for (group, label, asked), runs in rows.items():
        found[group].append(
            {
                "method": label,
                "asked": asked,
                "accuracy": summary([run["accuracy"] for run in runs.values()]),
                "sparsity": summary([run["sparsity"] for run in runs.values()]),
                "accuracies": [run["accuracy"] for run in runs.values()],
                "seeds": list(runs),
                "epochs": next(iter(runs.values()))["epochs"],
            }
        )
    return found


def main() -> None:
    """The runs asked for; everything that is there goes into the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=tuple(MODERN), default="lenet5-mnist")
    parser.add_argument("--group", choices=GROUPS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    arguments = parser.parse_args()
    network = arguments.network
    for cell in cells(network, arguments.group or GROUPS, arguments.seed or SEEDS):
        found = once(cell.path, lambda cell=cell: measure(cell))  # type: ignore[misc]
        print(cell.path.stem, f"{found['sparsity']:.4f} {found['accuracy']:.4f}", flush=True)
        write_json(
            HERE / f"training-{network}.json",
            {
                "command": f"python -m results.training --network {network}",
                "environment": environment(),
                "modern": MODERN[network].spec(),
                "paper": paper(MODERN[network]).spec(),
                **collect(network),
            },
        )


if __name__ == "__main__":
    main()
