"""Accuracy against sparsity and against cosine, before and after one epoch: CIFAR ResNets on cifar10_jpeg.

    ESPALIER_DATA=... python -m results.resnet_cifar [--network resnet20-prepared] [--stage before]

Does any amount rule predict where the accuracy falls? Does accuracy collapse onto one curve when plotted against cosine
instead of sparsity, for pruning by magnitude and at random (the claim of "What Makes a Good Prune?")? The test images
are read once per point and choose nothing; agreement and divergence to the parent come from the inputs of the
validation split. One point is one artefact under points/: kill the script anywhere and start it again.

cifar10_jpeg is CIFAR-10 stored as JPEG (quality about 75), harder than the original: not CIFAR-10.
"""

import argparse
import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier import data
from espalier._forward import collect_logits
from espalier.amount import AbstractAmount, CosineTarget, EffectiveSize, Knee, Safe, Utopia
from espalier.checkpoint import open_checkpoint
from espalier.evaluation import evaluate
from espalier.likeness import compare_logits, cosine_bound
from espalier.models import CifarResNet, load_weights
from espalier.profiling import profile
from espalier.pruning import prune
from espalier.scores import AbstractScore, Magnitude, Random
from espalier.selection import select
from espalier.train import Training, fit
from results._common import HERE, environment, once, write_json

COARSE = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
FINE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
# Removing a share s at random leaves a cosine of sqrt(1 - s): to meet magnitude pruning at equal cosine takes few weights.
FEW = (0.005, 0.01, 0.02, 0.04, 0.08, 0.12)
NETWORKS: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "resnet20-prepared": (20, "resnet20-cifar10jpeg.safetensors", FINE),
    "resnet56-public": (56, "resnet56-4bfd9763.th", COARSE),
    "resnet20-public": (20, "resnet20-12fca82f.th", COARSE),
}
SCORES: dict[str, AbstractScore] = {"magnitude": Magnitude(), "random": Random(seed=0)}
RULES: dict[str, AbstractAmount] = {
    "utopia": Utopia(),
    "safe": Safe(),
    "safe (paper)": Safe(mode="paper"),
    "cosine 0.99": CosineTarget(0.99),
    "effective": EffectiveSize(),
    "knee": Knee(),
}
# One epoch; the same for every network, sparsity and score, chosen before any of them was run.
RECIPE = Training(epochs=1, batch_size=128, lr=0.01, schedule="cosine", seed=0)


def parent(network: str) -> nn.Module:
    depth, file, _ = NETWORKS[network]
    path = data.data_folder().parent / "checkpoints" / file
    return load_weights(CifarResNet(depth), open_checkpoint(path).state_dict(), file)


@cache
def parent_logits(network: str) -> torch.Tensor:
    """The parent's answers on the validation inputs, once per network."""
    return collect_logits(parent(network), cifar10_jpeg().validation)


@cache
def cifar10_jpeg() -> data.Dataset:
    return data.parquet("cifar10_jpeg")


def measure(model: nn.Module, network: str) -> dict[str, Any]:
    """Test accuracy, and the likeness to the parent on inputs that need no labels."""
    cifar = cifar10_jpeg()
    test = evaluate(model, cifar.test)
    like = compare_logits(collect_logits(model, cifar.validation), parent_logits(network))
    return {
        "accuracy": test.accuracy,
        "interval": test.interval,
        "loss": test.loss,
        "agreement": like.agreement,
        "divergence": like.divergence,
        "logit_cosine": like.logit_cosine,
    }


def point(network: str, score: str, sparsity: float, tune: bool) -> dict[str, Any]:
    """Prune to a sparsity, fine-tune one epoch if asked, measure."""
    dense = parent(network)
    model = copy.deepcopy(dense)
    masks = prune(model, sparsity, score=SCORES[score])
    cosine = cosine_bound(dict(dense.named_parameters()), masks)
    if tune:
        fit(model, cifar10_jpeg(), RECIPE, masks=masks)
        masks.verify(model)
    return {
        "sparsity": masks.sparsity,
        "cosine": cosine,
        "tuned": tune,
        **measure(model, network),
    }


def rules(network: str) -> dict[str, Any]:
    """What each rule says from the weights alone."""
    checkpoint = open_checkpoint(parent(network))
    found = profile(checkpoint, select(checkpoint))
    chosen = {name: rule.choose(found) for name, rule in RULES.items()}
    return {
        name: {"sparsity": a.sparsity, "cosine": a.cosine, "regime": a.regime} for name, a in chosen.items()
    }


def collect(network: str, stages: list[str], scores: list[str]) -> dict[str, Any]:
    """Every point of a network that is asked for, made now where it is missing, and every other one that is there."""
    folder: Path = HERE / "points" / network
    dense = once(folder / "dense.json", lambda: measure(parent(network), network))
    # What an epoch does without pruning: the public networks have never seen JPEG images, and learn that in it.
    control, tuned = folder / "dense-after.json", None
    if control.exists() or "after" in stages:
        tuned = once(control, lambda: point(network, "magnitude", 0.0, tune=True))
    curves: dict[str, list[Any]] = {}
    for stage in ("before", "after"):
        for score in SCORES:
            points = []
            extra = FEW if score == "random" and stage == "before" else ()
            for sparsity in (*extra, *NETWORKS[network][2]):
                tune, path = stage == "after", folder / f"{stage}-{score}-{sparsity}.json"
                if path.exists() or (stage in stages and score in scores):
                    points.append(once(path, lambda: point(network, score, sparsity, tune)))  # noqa: B023
                    print(network, stage, score, sparsity, f"{points[-1]['accuracy']:.4f}", flush=True)
            curves[f"{stage} {score}"] = points
    return {"dense": dense, "dense after": tuned, "rules": rules(network), "curves": curves}


def main() -> None:
    """The networks and stages asked for; everything that is there goes into the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    parser.add_argument("--stage", choices=("before", "after"), action="append")
    parser.add_argument("--score", choices=list(SCORES), action="append")
    arguments = parser.parse_args()
    networks = arguments.network or list(NETWORKS)
    found = {
        network: collect(network, arguments.stage or ["before", "after"], arguments.score or list(SCORES))
        for network in networks
    }
    for network, result in found.items():
        write_json(
            HERE / f"{network}.json",
            {
                "command": f"python -m results.resnet_cifar --network {network}",
                "environment": environment(),
                "recipe": RECIPE.spec(),
                **result,
            },
        )


if __name__ == "__main__":
    main()
