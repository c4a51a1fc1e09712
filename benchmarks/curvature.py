"""Time of a curvature-vector product as a ratio to a gradient on the same data, and products for ten eigenpairs."""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier import data
from espalier.checkpoint import open_checkpoint
from espalier.data import AbstractSplit, TensorSplit
from espalier.landscape import Curvature, Risk, leading
from espalier.models import CifarResNet, DigitsCNN, fill

CHECKPOINT = Path("..") / "checkpoints" / "resnet20-cifar10jpeg.safetensors"  # beside the data folder


def noise(n: int, shape: tuple[int, int, int]) -> TensorSplit:
    """Images that are noise: time does not depend on what is in them."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (n,), generator=g)
    return TensorSplit("train", torch.randn(n, *shape, generator=g), labels, torch.arange(n), scale=1.0)


def trained(images: int) -> tuple[nn.Module, AbstractSplit] | None:
    """The ResNet-20 of the results and its training images, where the data folder is."""
    root = os.environ.get("ESPALIER_DATA")
    if root is None or not (Path(root) / CHECKPOINT).exists():
        return None
    state = open_checkpoint(Path(root) / CHECKPOINT).state_dict()
    split = data.parquet(Path(root) / "cifar10_jpeg", data.Options(limit=images)).train
    return fill(CifarResNet(20, 10), state, str(CHECKPOINT)).model, split


def curvature(quick: bool = False, images: int = 200) -> Part:
    """One product with the Hessian and with Gauss-Newton over one gradient; top ten of ResNet-20's Hessian."""
    model: nn.Module = DigitsCNN() if quick else CifarResNet(20, 10)
    risk = Risk(model, noise(8, (1, 8, 8)) if quick else noise(100, (3, 32, 32)), batch_size=100)
    v = torch.randn(risk.dimension, generator=torch.Generator().manual_seed(0))
    times = interleaved(
        {
            "gradient": risk.loss_and_gradient,
            "hessian": partial(risk.product, risk.weights, v, "hessian"),
            "gauss-newton": partial(risk.product, risk.weights, v, "gauss-newton"),
        },
        2 if quick else 5,
    )
    goals = [
        Goal(f"product with {kind} over a gradient", 2.5, *ratio(times[kind], times["gradient"]))
        for kind in ("hessian", "gauss-newton")
    ]
    measured = {"parameters": risk.dimension, "examples": risk.examples, "seconds": table(times)}
    if not quick and (found := trained(images)) is not None:
        real = Risk(*found, batch_size=100)
        pairs = leading(Curvature(real), 10)
        used = float(pairs.products)
        goals.append(Goal("products for the top ten of ResNet-20", 60, used, used, used))
        measured["eigenpairs"] = pairs.to_dict() | {"examples": real.examples}
    return Part(goals, measured)
