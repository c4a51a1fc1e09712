"""LeNet5 as in the authors' demonstration of "What Makes a Good Prune?"."""

import torch.nn.functional as F
from torch import Tensor, nn

from espalier.models.narrower import channels


class LeNet5(nn.Module):
    """conv 1-6 (5x5, padding 2), conv 6-16 (5x5), linear 400-120-84-10; ReLU, max-pool 2: 61,706 parameters.

    Input (B, 1, 28, 28), output logits (B, classes). Initialisation is torch's default.

    Args:
        classes: number of logits.
        width: factor on channels and hidden units, rounded; see `width_for`.

    Raises:
        EspalierError: the width is not positive.
    """

    def __init__(self, classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth = (channels(count, width) for count in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(25 * second, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc3 = nn.Linear(fourth, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]
