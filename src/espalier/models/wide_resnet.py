"""The wide residual networks for 32x32 images of Zagoruyko and Komodakis, "Wide residual networks" (2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from espalier._errors import EspalierError


class WideBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, with dropout between the convolutions: figure 1 (d) of the paper.

    Where the shape changes, a 1x1 convolution of what the first norm and ReLU give is the shortcut, as in the
    authors' code.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias) if changes else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return x + self.conv2(y)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN of depth 6n + 4: convolution, three stages of n blocks, norm, ReLU, pool, linear.

    Stages have 16k, 32k and 64k channels, k the widening factor. WRN-28-10 has 36,479,194 parameters for 10
    classes. Input (B, 3, 32, 32), output logits (B, classes). Convolutions and the linear layer start from the
    normal initialization of He et al. (fan-in), biases from zero.

    "Directional pruning of deep neural networks" (Chao et al., 2020) trains the variant of Garipov et al. (2018)
    with `bias=True`, which also gives the last norm their momentum of 0.9: 36,489,290 parameters for 10 classes,
    36,546,980 for 100. That one also has the stride in a
    block's second convolution, which costs more and changes no count, and shortcuts of the raw input; these two
    are as Zagoruyko and Komodakis have them here.

    Args:
        depth: 16, 22, 28, 40, or any other 6n + 4.
        widening: k, at least 1.
        classes: number of logits.
        dropout: probability between the convolutions of a block, in [0, 1).
        bias: whether convolutions have biases, and the last norm a momentum of 0.9 instead of 0.1.

    Raises:
        EspalierError: the depth is not 6n + 4, the widening factor below 1, or the probability out of range.
    """

    def __init__(
        self,
        depth: int = 28,
        widening: int = 10,
        classes: int = 10,
        *,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise EspalierError(f"a wide ResNet has depth 6n + 4 (16, 22, 28, 40), got {depth}")
        if widening < 1:
            raise EspalierError(f"a wide ResNet has a widening factor of at least 1, got {widening}")
        if not 0 <= dropout < 1:
            raise EspalierError(f"dropout is a probability in [0, 1), got {dropout}")
        widths = [16 * widening, 32 * widening, 64 * widening]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=bias)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                WideBlock(inputs, outputs, stride, dropout, bias),
                *(WideBlock(outputs, outputs, 1, dropout, bias) for _ in range(blocks - 1)),
            )
            for inputs, outputs, stride in zip([16, *widths], widths, (1, 2, 2))
        )
        self.bn = nn.BatchNorm2d(widths[-1], momentum=0.9 if bias else 0.1)
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]
