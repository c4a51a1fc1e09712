"""Tensors that are no weights of an ordinary layer: constants of a file, and parameters of one value a channel."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from espalier.checkpoint._base import Kind

Shape = tuple[int, ...]

MASKS = "attention masks"
CONSTANTS = "constant tables"
TABLES = "rotary and position tables"


@dataclass(frozen=True)
class Role:
    """What a tensor is, by its name and shape.

    Args:
        why: what it is, as a plural noun.
        kind: "buffer" holds in files only: a live module knows its buffers.
        names: what the last component of the name that is no number must match.
        fits: what the shape must be.
        path: what another component of the name may match instead.
    """

    why: str
    kind: Kind
    names: re.Pattern[str]
    fits: Callable[[Shape], bool] = lambda shape: True
    path: re.Pattern[str] | None = None

    def matches(self, parts: list[str], shape: Shape) -> bool:
        """True if the name, split at its dots, and the shape are those of the role."""
        inside = self.path is not None and any(self.path.search(part) for part in parts[:-1])
        return self.fits(shape) and (inside or bool(self.names.search(parts[-1])))


def is_vector(shape: Shape) -> bool:
    """True if at most one dimension is larger than 1, as in (1, 1, 1, C)."""
    return sum(size != 1 for size in shape) <= 1


def _is_broadcast(shape: Shape) -> bool:
    return len(shape) >= 3 and is_vector(shape)


ROLES = (
    Role(
        TABLES,
        "buffer",
        re.compile(r"^(cos|sin)(_|$)|_(cos|sin)$|inv_freq|^freqs(_|$)|^rope(_|$)|^rotary(_|$)"),
    ),
    Role(
        "filter banks and windows",
        "buffer",
        re.compile(
            r"^(mel_?)?(fb|fbanks?|filter_?banks?)$|^mel_?(basis|filters|w)$|_basis(_buffer)?$|(^|_)window$", re.I
        ),
        path=re.compile(r"^(i?stft|mel_?scale|(mel_?)?spectrogram|(spectrogram|logmel)_extractor)$", re.I),
    ),
    Role(
        "anchors and grids",
        "buffer",
        re.compile(r"^(cell_)?anchors?$|^anchor_(grid|points)$|^strides?$|^priors?$|^prior_boxes$|^grid$|"
                   r"^relative_(position_index|coords_table)$"),
    ),
    Role(
        "input scaling",
        "buffer",
        re.compile(r"^((pixel|image|img|input|data|rgb)_)?(mean|std)$"),
        is_vector,
    ),
    Role(
        "codebook statistics",
        "buffer",
        re.compile(r"(^|_)cluster_(size|usage)$|(^|_)embed_(avg|sum)$|^_?ema_"),
    ),
    Role(
        "tokens",
        "embedding",
        re.compile(r"(^|_)(cls|class|mask|reg|register|dist|storage|pad|query)_tokens?$|^registers$"),
    ),
    Role(
        "state-space parameters",
        "other",
        re.compile(r"^(A_logs?|dt_bias|log_dt|inv_dt|(log_|inv_)?A_(real|imag))$"),
    ),
    Role("state-space parameters", "other", re.compile(r"^Ds?$"), is_vector),
    Role(
        "time-mixing vectors",
        "other",
        re.compile(r"^time_(mix|mixing|decay|first|faaaa|maa)(_(?!w\d)\w+)?$"),
    ),
    Role(
        "gains",
        "other",
        re.compile(r"gamma|(^|_)gain$|^layer_?scale|(^|_)ls\d?$"),
        lambda shape: len(shape) >= 2 and is_vector(shape),
    ),
    Role("gains", "other", re.compile(r"^(?!.*(weight|kernel|lora|proj)|w\d*$)"), _is_broadcast),
)  # fmt: skip


def role(name: str, shape: Shape, kinds: frozenset[Kind]) -> tuple[Kind, str] | None:
    """Kind and reason of a tensor that is no weight of an ordinary layer, by name and shape; None for others.

    Args:
        name: full name.
        shape: of the tensor.
        kinds: kinds that it may have.
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    for known in ROLES:
        if known.kind in kinds and known.matches(parts, shape):
            return known.kind, known.why
    return None
