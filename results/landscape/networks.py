"""The networks a landscape is drawn of: SGD, a second SGD run as control, and gRDA, from one start."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.data import Dataset
from espalier.evaluation import evaluate
from espalier.likeness import cosine_bound
from espalier.methods import TargetGRDA
from espalier.models import load_weights
from espalier.pruning import prune
from espalier.scores import AbstractScore, Magnitude, Random
from espalier.train import Training, fit
from results._common import HERE
from results.training import MODERN, dataset, start

Make = Callable[[], Any]
"""Makes one artefact."""
CONTROL = "second SGD"
"""The same start, the batches in another order."""
RUNS = {"SGD": None, CONTROL: None, "gRDA 90 %": 0.9, "gRDA 95 %": 0.95}
"""Networks of the first result: the sparsity asked for, None for plain SGD."""
TUNED = (("L1", 0.8), ("L1", 0.95), ("random", 0.2), ("random", 0.8))
"""Networks of the second: SGD's, pruned one-shot and fine-tuned."""
SCORES: dict[str, AbstractScore] = {"L1": Magnitude(), "random": Random(seed=0)}


@dataclass(frozen=True)
class Sizes:
    """How much is spent on each part; images are the first of the splits' fixed permutation.

    Args:
        train: training images the ways between networks are measured on.
        test: test images, there and for the functions.
        points: on a way.
        curve: training images the bend is trained on.
        epochs: of that.
        plane: training images of planes.
        side: points a side of the planes through networks.
        around: points a side of the planes of random directions.
        directions: pairs of random directions.
        cosines: at which L1 and random pruning are compared.
        curvature: training images of the Hessian.
        pairs: leading eigenpairs.
        probes: of the density.
        steps: Lanczos steps a probe.
        family: step of the sparsities of the pruned families, in per cent.
        predictions: test images whose predictions are embedded.
        repeats: other starts from which lines and shares are measured again.
    """

    train: int = 2000
    test: int = 5000
    points: int = 21
    curve: int = 20000
    epochs: int = 5
    plane: int = 1000
    side: int = 21
    around: int = 15
    directions: int = 3
    cosines: tuple[float, ...] = (0.99, 0.9)
    curvature: int = 1000
    pairs: int = 10
    probes: int = 3
    steps: int = 30
    family: int = 1
    predictions: int = 1000
    repeats: int = 4


@dataclass(frozen=True)
class Case:
    """One architecture on its data.

    Args:
        name: of the network and the data.
        title: for people.
        begin: the network every run begins with, of a seed.
        data: its splits.
        training: of every run.
        tuning: of pruned networks.
        sizes: how much is spent.
        folder: where artefacts are kept.
        scratch: where unfinished work is kept.
        seed: of the start; the runs order their batches by twice that, the control by one more.
    """

    name: str
    title: str
    begin: Callable[[int], nn.Module]
    data: Callable[[], Dataset]
    training: Training
    tuning: Training
    sizes: Sizes
    folder: Path
    scratch: Path
    seed: int = 0

    def start(self) -> nn.Module:
        """The network every run begins with, anew."""
        return self.begin(self.seed)

    def again(self, seed: int) -> "Case":
        """The same from another start, in folders of its own."""
        word = f"start-{seed}"
        training = replace(self.training, seed=2 * seed)
        return replace(
            self, seed=seed, training=training, folder=self.folder / word, scratch=self.scratch / word
        )

    def load(self, name: str) -> nn.Module:
        """The start with the weights of one of its networks."""
        path = self.folder / f"{slug(name)}.safetensors"
        return load_weights(self.start(), open_checkpoint(path).state_dict(), path.name)


def slug(name: str) -> str:
    return name.replace(" %", "").replace(",", "").replace(" ", "-")


SMALL = Sizes(
    train=1000,
    test=1000,
    points=9,
    curve=5000,
    epochs=3,
    plane=500,
    side=15,
    around=11,
    directions=1,
    curvature=500,
    probes=2,
    family=2,
    repeats=0,
)
"""A pass of ResNet-20 costs thirty times one of LeNet5."""


def case(name: str) -> Case:
    """A network of the results."""
    training = MODERN[name]
    lenet = name == "lenet5-mnist"
    return Case(
        name,
        "LeNet5 on MNIST" if lenet else "ResNet-20 on cifar10_jpeg",
        lambda seed: start(name, seed)[0],
        lambda: dataset(name),
        training,
        replace(training, epochs=1, lr=0.01),
        Sizes() if lenet else SMALL,
        HERE / "points" / "landscape" / name,
        HERE.parent / "runs" / "landscape" / name,
    )


def trained(case: Case, name: str) -> nn.Module:
    """A network of the first result, trained now if it is not there."""
    sparsity = RUNS[name]
    training = case.training if name != CONTROL else replace(case.training, seed=case.training.seed + 1)
    method = None if sparsity is None else TargetGRDA(end=0.9)

    def run(model: nn.Module, folder: Path) -> None:
        fit(
            model,
            case.data(),
            training,
            method=method,
            sparsity=sparsity,
            folder=folder,
            progress=steps(name),
        )

    return _made(case, name, case.start, run)


def tuned(case: Case, score: str, sparsity: float) -> nn.Module:
    """SGD's network pruned one-shot and fine-tuned, now if it is not there."""
    name = tuned_name(score, sparsity)

    def run(model: nn.Module, folder: Path) -> None:
        masks = prune(model, sparsity, score=SCORES[score])
        fit(model, case.data(), case.tuning, masks=masks, folder=folder, progress=steps(name))

    return _made(case, name, lambda: trained(case, "SGD"), run)


def tuned_name(score: str, sparsity: float) -> str:
    return f"{score} {100 * sparsity:g} %, tuned"


def _made(
    case: Case, name: str, begin: Callable[[], nn.Module], run: Callable[[nn.Module, Path], None]
) -> nn.Module:
    path = case.folder / f"{slug(name)}.safetensors"
    if not path.exists():
        model, folder = begin(), case.scratch / slug(name)
        run(model, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, model.state_dict())
        shutil.rmtree(folder)
    return case.load(name)


def measured(case: Case) -> dict[str, Make]:
    """Accuracy, zeros and the way gone of all networks of the first result, and of the start."""

    def measure(model: nn.Module) -> dict[str, Any]:
        found = evaluate(model, case.data().test)
        weights = [p for p in model.parameters() if p.ndim > 1]
        return {
            "accuracy": found.accuracy,
            "interval": found.interval,
            "loss": found.loss,
            "n": found.n,
            "sparsity": sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights),
            "distance_from_start": distance(model, case.start()),
        }

    return {
        "start": lambda: measure(case.start()),
        **{name: partial(lambda name: measure(trained(case, name)), name) for name in RUNS},
    }


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return float(sum(float((p - q).detach().double().square().sum()) for p, q in pairs) ** 0.5)


def pruned(network: nn.Module, score: str, sparsity: float) -> float:
    """Prune a network in place; its cosine to what it was, over the weights."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    return cosine_bound(before, prune(network, sparsity, score=SCORES[score]))


def steps(word: str, every: float = 0.25) -> Callable[..., None]:
    """Prints how far something is, a few times."""
    told = [0.0]

    def tell(done: int, of: int, *_: object) -> None:
        if done / of >= told[0] + every or done == of:
            told[0] = done / of
            print(f"  {word}: {done} of {of}", flush=True)

    return tell
