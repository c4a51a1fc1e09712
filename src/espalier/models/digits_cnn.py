"""A small convolutional network for 8x8 digits, for demonstrations and tests."""

from torch import Tensor, nn

from espalier.models.narrower import channels


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions (16, 32, 64 channels) with batch norm, one max-pool, average pool, linear.

    Input (B, 1, 8, 8), output logits (B, classes); 25,978 parameters for 10 classes.

    Args:
        classes: number of logits.
        width: factor on the channels, rounded; see `width_for`.

    Raises:
        EspalierError: the width is not positive.
    """

    def __init__(self, classes: int = 10, *, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (channels(count, width) for count in (16, 32, 64))
        self.features = nn.Sequential(
            *_block(1, first),
            *_block(first, second),
            nn.MaxPool2d(2),
            *_block(second, third),
            nn.AvgPool2d(2),
        )
        self.linear = nn.Linear(third * 4, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.linear(self.features(x).flatten(1))  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
