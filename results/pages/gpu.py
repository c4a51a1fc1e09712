"""What needs a GPU: the commands, and that nobody has run them here."""

import shlex
from collections.abc import Iterator
from typing import Any

from results.pages._shared import Chapter, markdown

EPOCHS = 100  # the paper trains for 600 (VGG16) and 200 (WRN28x10)
TRAINED = {"vgg16": "vgg16-cifar10", "wrn28x10": "wrn28x10-cifar10"}
VERSIONS = {
    "paper": "gRDA with the paper's c, mu and rates",
    "paper --baseline": "SGD with the paper's rates",
    "modern": "gRDA to 95 % zeros, momentum, decay, cosine rate",
    "modern --baseline": "SGD, momentum, decay, cosine rate",
}


def folder(network: str, version: str) -> str:
    return f"runs/gpu/{network}-{version.replace(' --', '-')}"


def trainings() -> Iterator[tuple[str, str, str]]:
    """(network, what, command) of the runs beside SGD."""
    for network, recipe in TRAINED.items():
        for version, what in VERSIONS.items():
            words = f"espalier train {recipe}-{version} --data cifar10_jpeg --epochs {EPOCHS} --seeds 0,1,2"
            yield network, what, f"{words} -o {folder(network, version)}"


def pairs() -> Iterator[tuple[str, str, str]]:
    """(network, what, command) of the landscape between the networks that these runs leave."""
    for network in TRAINED:
        sgd, second = (
            f"{folder(network, 'modern --baseline')}/seed-{seed}/model.safetensors" for seed in (0, 1)
        )
        pruned = f"{folder(network, 'modern')}/seed-0/model.safetensors"
        on = f"--model {network} --data cifar10_jpeg --folder runs/gpu/{network}"
        yield (
            network,
            "path",
            (f"espalier landscape path {sgd} {pruned} --control {sgd} {second} --curve bezier {on}-path"),
        )
        yield network, "projection", f"espalier landscape project {sgd} {pruned} {on}-project"
        yield network, "plane", f"espalier landscape plane {sgd} {second} {pruned} {on}-plane"


def commands() -> list[list[str]]:
    """Every command of this page as words."""
    return [shlex.split(command) for rows in (trainings(), pairs()) for _, _, command in rows]


def section(_: Any) -> str:
    head = ["network", "what", "outcome", "command"]
    rows = [[n, what, "not run", f"`{command}`"] for n, what, command in (*trainings(), *pairs())]
    return "\n\n".join(
        [
            "None of this has run: it takes days on two cores of a CPU. The paper's statement to be tested is \"no worse than "
            f'SGD at 90 to 98 % zeros"; its schedules are shortened to {EPOCHS} epochs. The comparison of methods from scratch '
            "is a study of its own, `espalier compare results/studies/gpu.yaml -o results/compared/gpu`: not run either; every "
            "one of its methods runs on a small version in the tests.",
            markdown([head, *rows]),
        ]
    )


CHAPTER = Chapter("With a GPU at hand", None, section)
