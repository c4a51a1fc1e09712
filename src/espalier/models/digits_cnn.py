"""A small convolutional network for 8x8 digits, for demonstrations and tests."""

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions (16, 32, 64 channels) with batch norm, one max-pool, average pool, linear.

    Input (B, 1, 8, 8), output logits (B, classes); 25,978 parameters for 10 classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 16), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64), nn.AvgPool2d(2)
        )
        self.linear = nn.Linear(64 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.linear(self.features(x).flatten(1))  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
