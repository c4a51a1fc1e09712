"""How the sparse layers of a network are arranged: what depends on their neighbors and is tried on the whole of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from espalier.runtime.clock import interleave, steady
from espalier.runtime.layers import Layout, Siblings, SparseLinear
from espalier.runtime.plan import Plan
from espalier.runtime.tracing import Example, call

TILES = (64, 128, 256, 512)
"""Positions that go through a kernel at once."""
GAIN = 1.005
"""Another arrangement must make the whole network this many times as fast: more than the noise."""


@dataclass(frozen=True)
class Way:
    """One arrangement of a family of layers.

    Args:
        layout: of their results.
        shared: whether layers with one input are one product.
        whole: whether the largest tile is used: what comes feature-major need not be cut, and not copied. Else
            each layer has the tile that was best for it alone.
    """

    layout: Layout = "rows"
    shared: bool = False
    whole: bool = False


class Family:
    """Layers that are arranged alike: those whose names differ in nothing but numbers.

    Args:
        units: names of layers that can be one product, in the order of the model.
        layers: the layers by their names.
    """

    def __init__(self, units: Sequence[Sequence[str]], layers: Mapping[str, SparseLinear]) -> None:
        self.leaders = [unit[0] for unit in units]
        self.groups = [[layers[name] for name in unit] for unit in units]
        self.siblings = [Siblings(group) if len(group) > 1 else None for group in self.groups]
        self.alone = {layer: layer.choice for group in self.groups for layer in group}

    def ways(self) -> list[Way]:
        """All arrangements, the plain one first."""
        shared = (False, True) if any(self.siblings) else (False,)
        cut = any(choice.tile < max(TILES) for choice in self.alone.values())
        return [
            Way(layout, share, whole)
            for share in shared
            for layout in ("rows", "columns")
            for whole in ((False, True) if cut else (False,))
        ]

    def set(self, way: Way) -> None:
        """Arrange the layers."""
        for leader, group, siblings in zip(self.leaders, self.groups, self.siblings, strict=True):
            together = siblings if way.shared else None
            for member, layer in enumerate(group):
                tile = max(TILES) if way.whole else self.alone[layer].tile
                shared = leader if together else ""
                layer.choice = replace(self.alone[layer], tile=tile, layout=way.layout, shared=shared)
                layer.siblings, layer.member = together, member
            if together:
                together.choice = group[0].choice


def arrange(
    network: nn.Module, example: Example, plan: Plan, together: Sequence[tuple[str, ...]], seconds: float
) -> Plan:
    """Try feature-major results, one product for layers with one input, and larger tiles; keep what helps.

    Family by family, in the order of the model, each time on the whole network.

    Args:
        network: with the sparse layers of the plan; changed in place.
        example: its input.
        plan: what was decided for each layer alone.
        together: names of linear layers that get the very same tensor.
        seconds: for each family, about.

    Returns:
        The plan with what was kept.
    """
    layers = {x.name: m for x in plan.sparse if isinstance(m := network.get_submodule(x.name), SparseLinear)}
    units = [group for group in together if _can_share([layers.get(name) for name in group])]
    inside = {name for group in units for name in group}
    units += [(name,) for name in layers if name not in inside]
    families: dict[str, list[tuple[str, ...]]] = {}
    for unit in units:
        families.setdefault(re.sub(r"\d+", "#", unit[0]), []).append(unit)
    for members in families.values():
        family = Family(members, layers)
        family.set(_best(network, example, family, seconds))
    return plan.with_choices({name: layer.choice for name, layer in layers.items()})


def join(network: nn.Module, plan: Plan) -> None:
    """Make siblings of the layers that a plan computes together."""
    groups: dict[str, list[SparseLinear]] = {}
    for layer in plan.sparse:
        if layer.choice is not None and layer.choice.shared:
            module = network.get_submodule(layer.name)
            assert isinstance(module, SparseLinear)
            groups.setdefault(layer.choice.shared, []).append(module)
    for group in groups.values():
        siblings = Siblings(group)
        for member, module in enumerate(group):
            module.siblings, module.member = siblings, member


def _best(network: nn.Module, example: Example, family: Family, seconds: float) -> Way:
    """The fastest arrangement that runs; the plain one unless another is faster by more than the noise."""

    def run(way: Way) -> None:
        family.set(way)
        call(network, example)

    working = {}
    for way in family.ways():
        try:
            run(way)
        except RuntimeError:  # a model that asks for strides: `view` after the layer
            continue
        working[str(way)] = way
    timings = interleave(
        {name: partial(run, way) for name, way in working.items()},
        rounds=20,
        budget=seconds,
        least=3,
        keep=1.1,
        always=frozenset({str(Way())}),
        warm=True,
        clock=steady(torch.get_num_threads()),
    )
    best = min(working, key=lambda name: timings[name].minimum)
    return working[best] if timings[str(Way())].minimum > GAIN * timings[best].minimum else Way()


def _can_share(layers: Sequence[SparseLinear | None]) -> bool:
    """All sparse, and alike in what one product needs."""
    found = [layer for layer in layers if layer is not None]
    if len(found) < len(layers):
        return False
    alike = {(layer.in_features, layer.bias is None, layer.choice.kernel) for layer in found}
    return len(alike) == 1
