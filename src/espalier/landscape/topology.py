"""What the masks of networks have in common, and what hangs together in each: overlap, churn, fans, dead units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from espalier._errors import EspalierError
from espalier.masks import Masks


@dataclass(frozen=True)
class Layer:
    """The kept weights of one tensor, whose dimension 0 is its units and dimension 1 what they read.

    Args:
        name: of the tensor.
        entries: its entries.
        kept: those that are not zero.
        units: outputs (dimension 0).
        inputs: what each unit reads (dimension 1; of a grouped convolution, the inputs of a group).
        no_incoming: units with no kept incoming weight here.
        no_outgoing: inputs with no kept weight to any unit here: units of the layer before that are lost on this one.
        fan_in: mean number of inputs a unit still reads.
        smallest_fan_in: that of the unit with fewest.
    """

    name: str
    entries: int
    kept: int
    units: int
    inputs: int
    no_incoming: int
    no_outgoing: int
    fan_in: float
    smallest_fan_in: int


@dataclass(frozen=True)
class Overlap:
    """The masks of two networks, of one tensor or of all.

    Args:
        name: of the tensor; "all" for all together.
        jaccard: kept by both over kept by either; 1 if neither keeps any.
        chance: that number for independent random masks of the same sizes, to read it against.
        churn: fraction of what the first keeps that the second does not; 0 if the first keeps none.
    """

    name: str
    jaccard: float
    chance: float
    churn: float


def connectivity(masks: Masks) -> tuple[Layer, ...]:
    """Kept weights, fans and dead units, tensor by tensor.

    A convolution kernel counts as one connection as long as one of its entries is kept. What is said of a layer
    looks at that layer alone: with skip connections a unit without outgoing weights in one may feed another.

    Args:
        masks: of tensors with two or more dimensions; others are left out.

    Raises:
        EspalierError: there is none.
    """
    found = [_layer(name, masks[name]) for name, shape in masks.shapes.items() if len(shape) >= 2]
    if not found:
        raise EspalierError("topology needs tensors with two or more dimensions, and none is selected")
    return tuple(found)


def overlaps(a: Masks, b: Masks) -> tuple[Overlap, ...]:
    """Overlap and churn of all tensors together, then of each.

    Raises:
        EspalierError: the masks are of different networks.
    """
    together = _overlap("all", a, b)
    each = [_overlap(name, Masks({name: a[name]}), Masks({name: b[name]})) for name in a]
    return (together, *each)


def dead_units(layers: Sequence[Layer]) -> dict[str, int]:
    """Layers with dead units -> how many, with no incoming or no outgoing weights there."""
    return {
        one.name: one.no_incoming + one.no_outgoing for one in layers if one.no_incoming + one.no_outgoing
    }


def topologies(networks: Mapping[str, Masks]) -> dict[str, tuple[Layer, ...]]:
    """`connectivity` of several networks."""
    return {name: connectivity(masks) for name, masks in networks.items()}


def _layer(name: str, mask: Tensor) -> Layer:
    connected = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    fans = connected.sum(1)
    units, inputs = connected.shape
    return Layer(
        name,
        mask.numel(),
        int(mask.sum()),
        units,
        inputs,
        int((fans == 0).sum()),
        int((~connected.any(0)).sum()),
        float(fans.double().mean()) if units else 0.0,
        int(fans.min()) if units else 0,
    )


def _overlap(name: str, a: Masks, b: Masks) -> Overlap:
    jaccard, churn = a.overlap(b), a.churn(b)
    # Expected sizes of intersection and union, tensor by tensor, for independent masks with these counts.
    both = sum(a.counts[key] * b.counts[key] / max(1, a[key].numel()) for key in a)
    either = a.kept + b.kept - both
    return Overlap(name, jaccard, both / either if either else 1.0, churn)
