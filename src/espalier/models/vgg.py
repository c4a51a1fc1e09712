"""VGG16 for 32x32 images: Simonyan and Zisserman, "Very deep convolutional networks ..." (2014), configuration D."""

from torch import Tensor, nn

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with biases in five stages, each ending in a max-pool 2; three linear layers.

    The network of "Directional pruning of deep neural networks" (Chao et al., 2020), which follows Garipov et
    al., "Loss surfaces, mode connectivity ..." (2018): no batch norm; the two hidden linear layers have 512
    units, not the 4096 of ImageNet, and dropout before each. 15,245,130 parameters for 10 classes.

    Input (B, 3, 32, 32), output logits (B, classes). Convolutions start from the normal initialization of He
    et al. (fan-out) with zero biases, linear layers from torch's default.

    Args:
        classes: number of logits.
        dropout: probability, in [0, 1].
    """

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in _WIDTHS:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(512, 512), nn.ReLU(inplace=True)),
            *(nn.Dropout(dropout), nn.Linear(512, 512), nn.ReLU(inplace=True)),
            nn.Linear(512, classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]
