"""What the masks of networks have in common, and what hangs together in each: overlap, fans, dead units."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

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
        sources: inputs of the layer: as many as each unit reads, times the groups of the convolution.
        no_incoming: units with no kept incoming weight here.
        no_outgoing: sources with no kept weight to any unit here: units of the layer before that are lost on this one.
        fan_in: mean number of inputs a unit still reads.
        smallest_fan_in: that of the unit with fewest.
    """

    name: str
    entries: int
    kept: int
    units: int
    inputs: int
    sources: int
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
        chance: what independent random masks that keep as much in each tensor share on average, to read the
            other against: the mean to second order in the spread of the intersection.
        lost: fraction of what the first keeps that the second does not; 0 if the first keeps none.
        churn: fraction of all entries that one of the two keeps and the other does not.
    """

    name: str
    jaccard: float
    chance: float
    lost: float
    churn: float


def connectivity(masks: Masks, groups: Mapping[str, int] | None = None) -> tuple[Layer, ...]:
    """Kept weights, fans and dead units, tensor by tensor.

    A convolution kernel counts as one connection as long as one of its entries is kept. What is said of a layer
    looks at that layer alone: with skip connections a unit without outgoing weights in one may feed another.

    Args:
        masks: of tensors with two or more dimensions; others are left out.
        groups: of grouped convolutions by tensor name, see `groups_of`: the shape of a weight does not tell, though
            `grouped_perhaps` sees where it matters. Without it every layer has one group, so the sources of a
            grouped one are counted once for all groups together. Transposed convolutions have inputs and units swapped.

    Raises:
        EspalierError: there is none, or a number of groups does not divide the units.
    """
    known = groups or {}
    found = [
        _layer(name, masks[name], known.get(name, 1))
        for name, shape in masks.shapes.items()
        if len(shape) >= 2
    ]
    if not found:
        raise EspalierError("topology needs tensors with two or more dimensions, and none is selected")
    return tuple(found)


def groups_of(module: nn.Module) -> dict[str, int]:
    """Weight name -> groups, of the convolutions of a module that have more than one."""
    return {
        f"{name}.weight" if name else "weight": part.groups
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and part.groups > 1
    }


def grouped_perhaps(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Convolutions that look grouped: none has as many units as they read, and one a multiple that fits.

    A guess from shapes alone. The first convolution reads the input, of which no layer tells, and is left out.

    Args:
        shapes: of all weights of a network by name, in its order.
    """
    # A tensor (n, 1, 1) is a scale for each channel.
    kernels = [(name, shape) for name, shape in shapes.items() if len(shape) > 2 and math.prod(shape[1:]) > 1]
    units = {shape[0] for _, shape in kernels}
    return tuple(
        name
        for name, (out, inputs, *_) in kernels[1:]
        if inputs not in units and any(out % g == 0 and g * inputs in units for g in range(2, out + 1))
    )


def overlaps(a: Masks, b: Masks) -> tuple[Overlap, ...]:
    """Overlap, churn, and what is lost, of all tensors together, then of each.

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


def topologies(
    networks: Mapping[str, Masks], groups: Mapping[str, int] | None = None
) -> dict[str, tuple[Layer, ...]]:
    """`connectivity` of several networks of one architecture."""
    return {name: connectivity(masks, groups) for name, masks in networks.items()}


def _layer(name: str, mask: Tensor, groups: int) -> Layer:
    connected = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    fans = connected.sum(1)
    units, inputs = connected.shape
    if groups < 1 or units % groups:
        raise EspalierError(f"{name} has {units} units, which {groups} groups do not divide")
    used = connected.view(groups, units // groups, inputs).any(1)
    return Layer(
        name,
        mask.numel(),
        int(mask.sum()),
        units,
        inputs,
        groups * inputs,
        int((fans == 0).sum()),
        int((~used).sum()),
        float(fans.double().mean()) if units else 0.0,
        int(fans.min()) if units else 0,
    )


def _overlap(name: str, a: Masks, b: Masks) -> Overlap:
    jaccard, lost = a.overlap(b), a.lost(b)
    # The intersection of independent masks is hypergeometric in each tensor; Jaccard is i / (total - i) of its size i.
    mean = spread = 0.0
    for key, shape in a.shapes.items():
        n, one, two = math.prod(shape), a.counts[key], b.counts[key]
        mean += one * two / max(1, n)
        spread += one * two * (n - one) * (n - two) / max(1, n * n * (n - 1))
    total = a.kept + b.kept
    either = total - mean
    chance = mean / either + total * spread / either**3 if either else 1.0
    entries = sum(math.prod(shape) for shape in a.shapes.values())
    churn = (total - 2 * (a & b).kept) / entries if entries else 0.0
    return Overlap(name, jaccard, chance, lost, churn)
