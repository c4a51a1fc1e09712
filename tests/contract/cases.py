"""Modules that masks must hold on: one of each kind of parameter people train, with an input and a loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TiedLinear(nn.Module):
    """An embedding whose weight is also the output layer's, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(self.embed(tokens))))
        return out


class Attention(nn.Module):
    """Its weights are `in_proj_weight` and `out_proj.weight`: no module attribute called `weight` for the "
    "first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return out


class Recurrent(nn.Module):
    """Weights called `weight_ih_l0`, kept flat by the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


class LowRank(nn.Module):
    """A frozen linear layer with a trained low-rank addition, mergeable into its weight."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return out

    def merge(self) -> None:
        with torch.no_grad():
            self.base.weight += self.up @ self.down


@dataclass(frozen=True)
class Case:
    """A module to build, what it eats, and the names that pruning must reach.

    Args:
        build: makes the module.
        batch: makes an input.
        names: parameters that the scope selects.
        scope: of the selection.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    names: tuple[str, ...]
    scope: str = "weights"

    def module(self, seed: int = 0) -> nn.Module:
        """The module in train mode, the same for the same seed; the global generator is left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()

    def loss(self, module: nn.Module, seed: int = 0) -> Tensor:
        """Mean squared output against a fixed target that no module fits."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            batch = self.batch()
        output = module(batch.to(next(module.parameters()).dtype) if batch.is_floating_point() else batch)
        return F.mse_loss(output.float(), torch.full_like(output, 0.5, dtype=torch.float32))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1))


def _transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(4, 3, 2, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 1))


def _embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 4))


CASES: dict[str, Case] = {
    "cnn with batch norm": Case(_cnn, lambda: torch.randn(6, 2, 6, 6), ("0.weight", "5.weight")),
    "tied weights": Case(
        TiedLinear,
        lambda: torch.randint(0, 12, (5, 3)),
        ("embed.weight", "body.weight", "body.bias"),
        scope="all",
    ),
    "multihead attention": Case(
        Attention,
        lambda: torch.randn(2, 5, 8),
        ("attention.in_proj_weight", "attention.out_proj.weight"),
    ),
    "lstm": Case(
        Recurrent,
        lambda: torch.randn(3, 4, 6),
        ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1", "lstm.weight_hh_l1"),
    ),
    "depthwise convolution": Case(_depthwise, lambda: torch.randn(3, 4, 6, 6), ("0.weight", "2.weight")),
    "transposed convolution": Case(_transposed, lambda: torch.randn(3, 4, 5, 5), ("0.weight", "2.weight")),
    "embedding": Case(
        _embedding, lambda: torch.randint(0, 10, (7,)), ("0.weight", "1.weight", "1.bias"), scope="all"
    ),
    "low-rank addition": Case(
        lambda: LowRank(nn.Linear(6, 5)), lambda: torch.randn(4, 6), ("down", "up", "base.weight")
    ),
}
