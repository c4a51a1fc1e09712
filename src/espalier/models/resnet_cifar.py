"""The ResNets for 32x32 images of He et al., "Deep residual learning ..." (2015), section 4.2."""

import torch.nn.functional as F
from torch import Tensor, nn

from espalier._errors import EspalierError
from espalier.models.narrower import channels


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm; a shortcut without parameters ("option A")."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.added:
            # Subsample, and put the new channels, all zero, half before and half after the old ones.
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2: convolution, three stages of n blocks (16, 32, 64 channels), pool, linear.

    Input (B, 3, 32, 32), output logits (B, classes). Names in the state dict are those of the widespread
    public checkpoints (`conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`), which load strictly. Convolutions
    and the linear layer start from the normal initialisation of He et al. (fan-in).

    Args:
        depth: 20, 32, 44, 56, 110, or any other 6n + 2.
        classes: number of logits.
        width: factor on the channels, rounded; see `width_for`.

    Raises:
        EspalierError: the depth is not 6n + 2, or the width not positive.
    """

    def __init__(self, depth: int = 20, classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise EspalierError(f"a CIFAR ResNet has depth 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        first, second, third = (channels(count, width) for count in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, 1, blocks)
        self.layer2 = _stage(first, second, 2, blocks)
        self.layer3 = _stage(second, third, 2, blocks)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1))
    )
