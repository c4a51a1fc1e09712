"""Time of a product with the curvature over that of a gradient; products that the leading eigenpairs take."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks._measure import Goal, Part, interleaved, ratio, table
from espalier import data
from espalier._errors import EspalierError
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


def curvature(quick: bool = False) -> Part:
    """One product with the Hessian and with Gauss-Newton over one gradient, on the same data."""
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
    return Part(goals, {"parameters": risk.dimension, "examples": risk.examples, "seconds": table(times)})


def trained(images: int) -> tuple[nn.Module, AbstractSplit]:
    """The ResNet-20 of the results and its training images.

    Raises:
        EspalierError: no data folder, or no checkpoint beside it.
    """
    path = data.data_folder() / CHECKPOINT
    if not path.exists():
        raise EspalierError(
            f"no file {path}: the eigenpairs need the ResNet-20 of the results beside the data"
        )
    split = data.parquet("cifar10_jpeg", data.Options(limit=images)).train
    return fill(CifarResNet(20, 10), open_checkpoint(path).state_dict(), str(CHECKPOINT)).model, split


def eigenpairs(quick: bool = False, images: int = 100) -> Part:
    """Products for the ten leading eigenpairs of the Hessian of a trained ResNet-20; needs ESPALIER_DATA."""
    subject = (DigitsCNN(), noise(8, (1, 8, 8))) if quick else trained(images)
    risk = Risk(*subject, batch_size=100)
    pairs = leading(Curvature(risk), 2 if quick else 10, tolerance=0.1 if quick else 1e-3)
    used = float(pairs.products)
    return Part(
        [Goal("products for the leading eigenpairs", 60, used, used, used)],
        {**pairs.to_dict(), "parameters": risk.dimension, "examples": risk.examples},
    )


def eigenpairs_10000(quick: bool = False) -> Part:
    """Products for the ten leading eigenpairs on 10,000 images, in most of an hour; needs ESPALIER_DATA."""
    return eigenpairs(quick, images=10_000)
