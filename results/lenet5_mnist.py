"""The authors' notebook of "What Makes a Good Prune?", run again with five seeds: LeNet5 on MNIST.

    ESPALIER_DATA=... python -m results.lenet5_mnist

Their single run, no seed (their notebook's printed outputs): 97.49 % trained; 83 % pruned 74.46 % -> 96.60 % after one
epoch; safe amount 63.17 % (factor 0.76) 86.90 % -> 97.21 %. The same protocol here: inputs in [0, 1], batch 256, SGD
lr 0.001 momentum 0.9, 25 epochs on all 60,000 images, weights and biases ranked together (`scope="paper"`), the
101-point grid, one epoch of fine-tuning at the fixed mask with a new optimizer. The amount is chosen from the weights
alone; the test images are read once per stage and choose nothing.

Also recorded, from initialization to the end: the kurtosis and the amount each rule gives (the paper's "why not prune
at the start").
"""

import copy
from typing import Any

import torch
from torch import nn

from espalier import data
from espalier.amount import AbstractAmount, CosineTarget, EffectiveSize, Safe, Utopia
from espalier.checkpoint import open_checkpoint
from espalier.evaluation import evaluate
from espalier.models import LeNet5
from espalier.profiling import Profile, profile
from espalier.pruning import prune
from espalier.selection import Scope, select
from espalier.train import Epoch, Training, fit
from results._common import HERE, command, environment, once, summary, write_json

SEEDS = range(5)
PUBLISHED = {
    "trained": 0.9749,
    "utopia sparsity": 0.83,
    "utopia pruned": 0.7446,
    "utopia fine-tuned": 0.9660,
    "safe sparsity": 0.6317,
    "safe pruned": 0.8690,
    "safe fine-tuned": 0.9721,
}
RECIPE = Training(
    batch_size=256,
    lr=0.001,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    schedule="constant",
    augment=False,
)
RULES: dict[str, AbstractAmount] = {"utopia": Utopia(mode="paper"), "safe": Safe(mode="paper")}


def look(model: nn.Module, scope: Scope) -> Profile:
    checkpoint = open_checkpoint(model)
    return profile(checkpoint, select(checkpoint, scope))


def amounts(model: nn.Module) -> dict[str, Any]:
    """Kurtosis and amounts of a network, in both scopes."""
    record: dict[str, Any] = {}
    for scope in ("weights", "paper"):
        found = look(model, scope)
        record[scope] = {
            "kurtosis": found.kurtosis,
            "kurtosis_of_kurtoses": found.kurtosis_of_kurtoses,
            **{
                rule.__class__.__name__.lower(): rule.choose(found).sparsity
                for rule in (Utopia(), CosineTarget(), EffectiveSize())
            },
        }
    return record


def run(seed: int, mnist: data.Dataset) -> dict[str, Any]:
    """One seed: train, look at every epoch, prune twice, fine-tune twice."""
    torch.manual_seed(seed)
    model = LeNet5()
    along: list[dict[str, Any]] = []

    def watch(epoch: Epoch, network: nn.Module) -> None:
        along.append({"epoch": epoch.epoch, "train_loss": epoch.train_loss, **amounts(network)})

    training = Training(**{**RECIPE.spec(), "epochs": 25, "seed": seed})
    fit(model, mnist, training, on_epoch=watch)
    result: dict[str, Any] = {"seed": seed, "along": along, "trained": evaluate(model, mnist.test).accuracy}
    for name, rule in RULES.items():
        pruned = copy.deepcopy(model)
        amount = rule.choose(look(pruned, "paper"))
        masks = prune(pruned, amount.sparsity, scope="paper")
        result[f"{name} sparsity"], result[f"{name} cosine"] = masks.sparsity, amount.cosine
        result[f"{name} pruned"] = evaluate(pruned, mnist.test).accuracy
        fit(pruned, mnist, Training(**{**RECIPE.spec(), "epochs": 1, "seed": 1000 + seed}), masks=masks)
        result[f"{name} fine-tuned"] = evaluate(pruned, mnist.test).accuracy
    return result


def main() -> None:
    """All seeds, one artefact each; then the summary."""
    mnist = data.torchvision_data("MNIST", options=data.Options(validation=0.0))
    runs = []
    for seed in SEEDS:
        runs.append(
            once(HERE / "points" / "lenet5_mnist" / f"seed{seed}.json", lambda seed=seed: run(seed, mnist))
        )
        print(seed, {k: v for k, v in runs[-1].items() if k != "along"}, flush=True)
    keys = [key for key in runs[0] if key not in ("seed", "along")]
    write_json(
        HERE / "lenet5_mnist.json",
        {
            "command": command(),
            "environment": environment(),
            "summary": {key: summary([r[key] for r in runs]) for key in keys},
            "published": PUBLISHED,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
