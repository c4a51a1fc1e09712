"""The control that every comparison of scores includes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from espalier._types import LazyTensors, Tensors
from espalier.scores._base import AbstractScore, Evidence


@dataclass(frozen=True)
class Random(AbstractScore):
    r"""Keep entries at random: \(s \sim U[0, 1)\), independent of the weights.

    Each parameter has its own stream, seeded by the SHA-256 of (seed, name): scores depend neither on the
    order of the parameters nor on which others are selected, nor on the device. The global generator is not
    touched.

    Args:
        seed: any integer; the same seed gives the same scores. None takes that of the run, so that its runs differ.
    """

    seed: int | None = None

    def scores(self, evidence: Evidence) -> Tensors:
        """Uniform numbers, one tensor at a time."""
        weights = evidence.weights
        seed = evidence.seed if self.seed is None else self.seed

        def load(name: str) -> Tensor:
            # Drawn on the CPU, because generators of other devices give other streams.
            generator = torch.Generator().manual_seed(_seed_of(seed, name))
            weight = weights[name]
            return torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)

        return LazyTensors(list(weights), load)


def _seed_of(seed: int, name: str) -> int:
    """A 63-bit seed from the seed of the score and the name of the parameter."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
