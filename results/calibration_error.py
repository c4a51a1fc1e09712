"""How near the c that `calibrate` proposes comes to the sparsity asked for, when the whole training is run with it.

    python -m results.calibration_error

The digits_cnn on scikit-learn's digits, 20 epochs, pilots of 4 (the default fifth) and, for one of the two trainings, of
2. For each of three seeds c is proposed from pilots and the network is then trained with it, from the same start.
Accuracies are on the validation split; the test images are not read. About 5 minutes of one thread; each
proposal with its training is an artefact under points/calibration_error/: kill the script anywhere and start it again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from espalier import data
from espalier.models import DigitsCNN
from espalier.optim import DualAveraging, PowerLaw
from espalier.train import Training, fit
from espalier.train.calibration import calibrate
from results._common import HERE, command, environment, once, summary, write_json

SEEDS = (0, 1, 2)
SPARSITIES = (0.9, 0.95, 0.98)
CHANCE = 0.2  # an accuracy of ten classes below this is that of guessing
# As the paper trains, and as one would today.
PLAIN = {"epochs": 20, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
MODERN = {"epochs": 20, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine"}
TRAININGS: dict[str, tuple[dict[str, Any], int]] = {
    "constant rate 0.1, no momentum": (PLAIN, 4),
    "momentum 0.9, cosine from 0.05, decay 1e-4": (MODERN, 4),
    "the same, pilots of 2 epochs": (MODERN, 2),
}


def start(seed: int) -> nn.Module:
    """An untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitsCNN()


def trained(training: Training, law: PowerLaw, digits: data.Dataset) -> tuple[float, float | None]:
    """Sparsity and validation accuracy at the end of the whole training under a law."""
    made: list[DualAveraging] = []

    def build(parameters: Sequence[nn.Parameter]) -> Optimizer:
        t = training
        made.append(
            DualAveraging(
                parameters,
                t.lr,
                law=law,
                momentum=t.momentum,
                nesterov=t.nesterov and t.momentum > 0,
                weight_decay=t.weight_decay,
            )
        )
        return made[0]

    history = fit(start(training.seed), digits, training, optimizer=build)
    return made[0].mask_report().sparsity, history.last.accuracy


def run(fields: dict[str, Any], pilots: int, sparsity: float, seed: int) -> dict[str, Any]:
    """One proposal, and the training with it."""
    digits = data.digits()
    training = Training(seed=seed, precision="fp32", **fields)
    found = calibrate(start(seed), digits, training, sparsity, pilot_epochs=pilots)
    reached, accuracy = trained(training, found.law, digits)
    return {
        "seed": seed,
        "asked": sparsity,
        "c": found.law.c,
        "mu": found.law.mu,
        "predicted": found.predicted,
        "low": found.low,
        "high": found.high,
        "reached": reached,
        "accuracy": accuracy,
        "pilots": [{"c": p.law.c, "sparsity": p.sparsity, "accuracy": p.accuracy} for p in found.pilots],
    }


def main() -> None:
    """Every point once, then the means over the seeds."""
    torch.set_num_threads(1)
    rows = []
    for place, (name, (fields, pilots)) in enumerate(TRAININGS.items()):
        for sparsity in SPARSITIES:
            runs = []
            for seed in SEEDS:
                path = HERE / "points" / "calibration_error" / f"{place}-{sparsity:g}-{seed}.json"
                runs.append(once(path, lambda: run(fields, pilots, sparsity, seed)))  # noqa: B023
                print(name, sparsity, f"{runs[-1]['predicted']:.4f} {runs[-1]['reached']:.4f}", flush=True)
            keys = ("predicted", "low", "high", "reached", "accuracy")
            rows.append(
                {
                    "training": name,
                    "asked": sparsity,
                    **{key: summary([one[key] for one in runs]) for key in keys},
                    "inside": sum(one["low"] <= one["reached"] <= one["high"] for one in runs),
                    "chance": sum(p["accuracy"] < CHANCE for one in runs for p in one["pilots"]),
                    "pilots": sum(len(one["pilots"]) for one in runs),
                }
            )
    trainings = {name: {**fields, "pilot epochs": pilots} for name, (fields, pilots) in TRAININGS.items()}
    write_json(
        HERE / "calibration_error.json",
        {"command": command(), "environment": environment(), "trainings": trainings, "rows": rows},
    )


if __name__ == "__main__":
    main()
