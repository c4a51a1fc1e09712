"""The only place where words become objects: one literal table a family.

Every function imports what it needs when it is called, so that `--help` stays instant.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from espalier._errors import EspalierError, near

if TYPE_CHECKING:
    from torch import nn

    from espalier.allocate import AbstractAllocation
    from espalier.amount import AbstractAmount
    from espalier.checkpoint import AbstractCheckpoint
    from espalier.data import Dataset
    from espalier.models import Filled

T = TypeVar("T")


def look_up(what: str, word: str, table: Mapping[str, T]) -> T:
    """The entry of a table, or an error that lists the words and suggests a near one."""
    if word in table:
        return table[word]
    raise EspalierError(f"unknown {what} {word!r}; known: {', '.join(table)}.{near(word, table)}")


def fraction(what: str, word: str) -> float:
    """A number such as 0.9 or 90%, as a float."""
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        raise EspalierError(f"{what} must be a number such as 0.9 or 90%, got {word!r}") from None


def amount(word: str, *, axis: str = "cosine") -> "AbstractAmount":
    """The rule behind `utopia`, `safe` (or `=paper`), `cosine=0.99`, `effective`, `knee`, or a number."""
    from espalier.amount import CosineTarget, EffectiveSize, Given, Knee, Safe, Utopia

    name, _, value = word.partition("=")
    if name[:1].isdigit() or name[:1] in ".-+":
        return Given(fraction("the amount", word))
    table: dict[str, Callable[[], AbstractAmount]] = {
        "utopia": lambda: Utopia(axis, mode=value or "exact"),  # type: ignore[arg-type]
        "safe": lambda: Safe(mode=value or "monotone"),  # type: ignore[arg-type]
        "cosine": lambda: CosineTarget(fraction("the cosine", value or "0.99")),
        "effective": lambda: EffectiveSize(fraction("the factor of effective", value or "1")),
        "knee": lambda: Knee(axis),  # type: ignore[arg-type]
    }
    rule = look_up("amount", name, table)
    if name == "knee" and value:
        raise EspalierError(f"knee takes no value, got {word!r}")
    return rule()


def allocation(word: str, floor: float) -> "AbstractAllocation":
    """How a total is spread over the tensors."""
    from espalier.allocate import ERK, LAMP, Global, Uniform, UniformPlus

    table: dict[str, Callable[[], AbstractAllocation]] = {
        "global": lambda: Global(floor=floor),
        "uniform": lambda: Uniform(floor=floor),
        "uniform+": lambda: UniformPlus(floor=floor),
        "erk": lambda: ERK(floor=floor),
        "lamp": lambda: LAMP(floor=floor),
    }
    return look_up("allocation", word, table)()


def nm_pattern(word: str) -> tuple[int, int]:
    """`2:4` as (2, 4)."""
    kept, _, group = word.partition(":")
    if kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group):
        return int(kept), int(group)
    raise EspalierError(f"--nm must be kept:group with 0 < kept < group, such as 2:4, got {word!r}")


def model(word: str, classes: int, checkpoint: "AbstractCheckpoint", source: str) -> "Filled":
    """A network by name, for data with that many classes, filled from a checkpoint that messages call `source`."""
    from espalier.models import fill, load_hf

    if word.startswith("hf:"):
        return load_hf(word.removeprefix("hf:"), checkpoint, source)
    return fill(network(word, classes), checkpoint.state_dict(), source)


def fresh(make: "Callable[[], nn.Module]", seed: int) -> "nn.Module":
    """A network as a seed initializes it; the global generator is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def network(word: str, classes: int) -> "nn.Module":
    """A network by name, for data with that many classes, as it is initialized."""
    from espalier.models import VGG16, CifarResNet, DigitsCNN, LeNet5, WideResNet, imported, torchvision_model

    if word.startswith("hf:"):
        raise EspalierError(f"{word} is a folder with weights of its own: use it with a checkpoint")
    if word.startswith("torchvision:"):
        return torchvision_model(word.removeprefix("torchvision:"), classes)
    if ":" in word:
        return imported(word)
    table: dict[str, Callable[[], nn.Module]] = {
        "lenet5": partial(LeNet5, classes),
        "digits_cnn": partial(DigitsCNN, classes),
        **{f"resnet{depth}": partial(CifarResNet, depth, classes) for depth in (20, 32, 44, 56, 110)},
        "vgg16": partial(VGG16, classes),
        "wrn28x10": partial(WideResNet, 28, 10, classes),
    }
    # Any depth and width; "+bias" as in the directional pruning paper.
    if wide := re.fullmatch(r"wrn(\d+)x(\d+)(\+bias)?", word):
        table[word] = partial(WideResNet, int(wide[1]), int(wide[2]), classes, bias=bool(wide[3]))
    return look_up("model", word, table)()


def narrower(word: str, classes: int) -> "Callable[[float], nn.Module] | None":
    """Width in (0, 1] -> a network by name with that share of its channels; None where there is no such version."""
    from espalier.models import CifarResNet, DigitsCNN, LeNet5, WideResNet

    def wide(width: float) -> "nn.Module":
        return WideResNet(28, max(1, round(10 * width)), classes)

    table: dict[str, Callable[[float], nn.Module]] = {
        "lenet5": lambda width: LeNet5(classes, width=width),
        "digits_cnn": lambda width: DigitsCNN(classes, width=width),
        **{
            f"resnet{depth}": lambda width, depth=depth: CifarResNet(depth, classes, width=width)  # type: ignore[misc]
            for depth in (20, 32, 44, 56, 110)
        },
        "wrn28x10": wide,
    }
    return table.get(word)


_TO_GET = {
    "imagenet": "get the ILSVRC 2012 images from https://image-net.org, unpack them to imagenet/train/CLASS/ and "
    "imagenet/val/CLASS/, and name the folder above by --data-root",
    "cifar10_jpeg": "it is CIFAR-10 with its images stored as JPEG (quality about 75), in train.parquet and "
    "test.parquet with columns img and label; torchvision:CIFAR10 is the original",
}


def dataset(
    word: str,
    root: Path | None,
    *,
    limit: int | None = None,
    validation: float = 0.1,
    normalization: str = "default",
) -> "Dataset":
    """`digits`, `torchvision:NAME`, a folder (of parquet files, or of images), or a hub name."""
    from espalier import data

    known = {"default": None, "imagenet": data.IMAGENET, "cifar10": data.CIFAR10, "cifar100": data.CIFAR100}
    options = data.Options(look_up("normalization", normalization, known), validation, limit)
    if word == "digits":
        return data.digits(options)
    if word.startswith("torchvision:"):
        return data.torchvision_data(word.removeprefix("torchvision:"), root, options)
    for folder in (Path(word), *([root / word] if root else [])):
        if folder.is_dir():
            if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
                return data.parquet(folder, options, data=root)
            return data.image_folder(folder, options, data=root)
    if word.count("/") == 1 and not word.startswith((".", "/")):
        return data.hub(word, options)
    root = root and data.data_folder(root)
    where = root or "that of --data-root or ESPALIER_DATA"
    if word in _TO_GET:
        raise EspalierError(f"there is no folder {word!r}, here or in {where}: {_TO_GET[word]}")
    raise EspalierError(
        f"unknown data {word!r}; known: digits, torchvision:NAME, a hub name owner/name, or a folder of parquet files "
        f"or of images (train/CLASS/ and val/CLASS/), here or in {where}."
        f"{near(word, ['digits', 'torchvision:MNIST', 'torchvision:CIFAR10'])}"
    )
