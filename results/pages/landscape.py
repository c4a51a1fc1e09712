"""What lies around and between trained and pruned networks: two chapters a network."""

from functools import partial

from results.pages import landscape_figures, landscape_pruning, landscape_valley
from results.pages._shared import Chapter

NETWORKS = {"lenet5-mnist": "LeNet5 on MNIST", "resnet20-prepared": "ResNet-20 on cifar10_jpeg"}

CHAPTERS = [
    chapter
    for name, title in NETWORKS.items()
    for chapter in (
        Chapter(
            f"Do SGD and gRDA share a valley? {title}",
            f"landscape-{name}",
            partial(landscape_valley.section, name),
            partial(landscape_figures.valley, name),
        ),
        Chapter(
            f"What pruning does to the landscape: {title}",
            f"landscape-{name}",
            partial(landscape_pruning.section, name),
            partial(landscape_figures.pruning, name),
        ),
    )
]
