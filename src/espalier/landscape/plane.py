"""Loss over a plane of weight space: through three networks, through the origin, or along random directions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.landscape.path import Progress
from espalier.landscape.points import Space, inner, length
from espalier.landscape.records import Records
from espalier.landscape.surface import Height, Surface
from espalier.train.state import tensors_digest

_FLAT = 1e-6  # a third network closer to the line than this share of its distance spans no plane
_MARGIN = 0.2  # of the extent, beyond the outermost network


@dataclass(frozen=True)
class Mark:
    """Where a network lies.

    Args:
        x: coordinate along the first direction.
        y: along the second.
        residual: Euclidean distance of the network from the plane; 0 for those that span it.
    """

    x: float
    y: float
    residual: float


@dataclass(frozen=True, eq=False)
class Plane:
    """Points origin + x u + y v.

    Args:
        kind: "three", "radial" or "random".
        origin: vector (d,).
        u: first direction, vector (d,).
        v: second direction, vector (d,).
        x: smallest and largest first coordinate of the grid.
        y: of the second.
        marks: networks by name.
        axes: what the coordinates are, for labels.
    """

    kind: Literal["three", "radial", "random"]
    origin: Tensor
    u: Tensor
    v: Tensor
    x: tuple[float, float]
    y: tuple[float, float]
    marks: Mapping[str, Mark] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")

    def at(self, x: float, y: float) -> Tensor:
        """The point with these coordinates, vector (d,)."""
        return self.origin + x * self.u + y * self.v


def through(networks: Mapping[str, Tensor]) -> Plane:
    r"""The plane through three networks (Garipov et al. 2018, section 3).

    :math:`u = (b - a)/\|b - a\|` and v, the normalized part of c - a orthogonal to u (Gram-Schmidt, in
    float64), so both coordinates are Euclidean distances. The grid reaches a fifth of the extent beyond
    the three on each side; further networks are projected.

    Args:
        networks: name -> vector (d,), at least three; the first three span the plane.

    Raises:
        EspalierError: fewer than three, or they lie on one line.
    """
    if len(networks) < 3:
        raise EspalierError(f"a plane through networks needs three of them, got {len(networks)}")
    first, second, third = list(networks)[:3]
    origin = networks[first]
    u = _unit(networks[second] - origin, f"{first} and {second} have the same weights")
    v = _orthogonal(networks[third] - origin, u, f"{first}, {second} and {third} lie on one line")
    return _spanned(
        "three", origin, u, v, networks, ("distance along the first two", "distance from their line")
    )


def radial(end: Tensor, start: Tensor, others: Mapping[str, Tensor] | None = None) -> Plane:
    r"""The plane through the origin, a trained network and its start ("What Makes a Good Prune?", Figure 4).

    :math:`u = w_{end}/\|w_{end}\|`, v the normalized part of the start orthogonal to it; pruned and fine-tuned
    networks are projected, with their distance from the plane beside them.

    Args:
        end: trained network, vector (d,).
        start: the network before training, vector (d,).
        others: name -> network to project.

    Raises:
        EspalierError: one is zero, or they are multiples of each other.
    """
    u = _unit(end, "the trained network has no weights but zeros")
    v = _orthogonal(
        start, u, "start and end are multiples of each other, so with the origin they lie on one line"
    )
    marks = {"origin": torch.zeros_like(end), "start": start, "end": end, **(others or {})}
    return _spanned("radial", torch.zeros_like(end), u, v, marks, ("along the trained network", "across"))


def random_plane(
    space: Space,
    center: Tensor,
    *,
    directions: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    reach: float = 1.0,
    name: str = "network",
) -> Plane:
    """Two random directions around a network, filter-normalized; the coordinates are multiples of them.

    Args:
        space: of the network.
        center: the network at (0, 0), vector (d,).
        directions: the directions; None draws them for the center. To compare a pruned network with its parent
            give it those of the parent (`plane.u, plane.v`).
        seed: of the directions.
        reach: the grid spans [-reach, reach] in both.
        name: of the network.

    Raises:
        EspalierError: the reach is not positive.
    """
    if not 0 < reach < math.inf:
        raise EspalierError(f"the reach of a plane must be positive, got {reach}")
    u, v = directions or (
        filter_normalized(space, center, 2 * seed),
        filter_normalized(space, center, 2 * seed + 1),
    )
    ends = (-reach, reach)
    return Plane("random", center, u, v, ends, ends, {name: Mark(0, 0, 0)}, ("first direction", "second"))


def filter_normalized(space: Space, network: Tensor, seed: int) -> Tensor:
    r"""A random direction whose filters are as long as those of a network (Li et al. 2018, section 4).

    Entries are standard Gaussian; each filter f (slice along dimension 0 of a tensor with two or more) becomes
    :math:`\delta_f \|w_f\| / \|\delta_f\|`; biases and batch-norm parameters, the tensors with fewer
    dimensions, stay where they are (0). A filter that is all zero gets no direction. The numbers are drawn on
    the CPU, so they are the same on every device.

    Args:
        space: of the network.
        network: vector (d,).
        seed: of the direction.

    Returns:
        Vector (d,).
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for weight in space.weights(network).values():
        if weight.ndim < 2:
            parts.append(torch.zeros(weight.numel(), dtype=torch.float64, device=network.device))
            continue
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(network.device)
        rows, goal = noise.flatten(1), weight.double().flatten(1)
        scale = goal.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
        parts.append((rows * scale).reshape(-1))
    return torch.cat(parts).to(network.dtype)


@dataclass(frozen=True, eq=False)
class Grid:
    """A plane as measured.

    Args:
        plane: what was measured.
        x: first coordinates, ascending.
        y: second coordinates, ascending.
        heights: row by row: `heights[j][i]` at (x[i], y[j]).
    """

    plane: Plane
    x: tuple[float, ...]
    y: tuple[float, ...]
    heights: tuple[tuple[Height, ...], ...]

    def values(
        self, what: Literal["loss", "error"] = "loss", split: Literal["train", "test"] = "train"
    ) -> Tensor:
        """Float64 (len(y), len(x))."""
        rows = [[getattr(getattr(height, split), what) for height in row] for row in self.heights]
        return torch.tensor(rows, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.plane.kind,
            "x": list(self.x),
            "y": list(self.y),
            "axes": list(self.plane.axes),
            "marks": {name: vars(mark) for name, mark in self.plane.marks.items()},
            "heights": [[height.record() for height in row] for row in self.heights],
        }


def measure_plane(
    surface: Surface,
    plane: Plane,
    *,
    points: int | tuple[int, int] = 25,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Grid:
    """Loss and accuracy on a grid: 25 x 25 costs exactly 625 evaluations, whatever batch norm needs.

    Args:
        surface: the module and the data.
        plane: of the module's parameter space.
        points: a side, or (columns, rows); each at least 2.
        folder: where each point is kept as soon as it is measured, so that a killed run goes on; a folder of
            another plane, grid or other data is refused.
        progress: called after each point with how many are done, and of how many.

    Raises:
        EspalierError: fewer than 2 points a side, or the folder holds something else.
    """
    columns, rows = (points, points) if isinstance(points, int) else points
    if min(columns, rows) < 2:
        raise EspalierError(f"a grid needs at least 2 points a side, got {columns} x {rows}")
    x, y = _spread(plane.x, columns), _spread(plane.y, rows)
    networks = tensors_digest({"origin": plane.origin, "u": plane.u, "v": plane.v})
    spec = {"plane": plane.kind, "networks": networks, "x": x, "y": y, "data": surface.spec}
    records, heights = Records(folder, spec), []
    for index in range(columns * rows):
        record = records.get(index)
        if record is None:
            record = dict(surface(plane.at(x[index % columns], y[index // columns])).record())
            records.add(index, record)
        heights.append(Height.from_record(record))
        if progress is not None:
            progress(index + 1, columns * rows)
    lines = tuple(tuple(heights[j * columns : (j + 1) * columns]) for j in range(rows))
    return Grid(plane, x, y, lines)


@dataclass(frozen=True)
class Difference:
    """How far two surfaces over the same grid are apart, |a - b| point by point.

    The maximum hangs on one point, usually a far corner: read the median first.

    Args:
        largest: maximum over the grid.
        mean: over the grid.
        median: over the grid.
        scale: median of |a|, to read the others against.
        points: that were finite in both; the others are left out.
        of: points of the grid.
    """

    largest: float
    mean: float
    median: float
    scale: float
    points: int
    of: int


def difference(
    a: Grid, b: Grid, what: Literal["loss", "error"] = "loss", split: Literal["train", "test"] = "train"
) -> Difference:
    """Compare two surfaces measured over the same coordinates.

    Raises:
        EspalierError: the grids differ, or no point is finite in both.
    """
    if (a.x, a.y) != (b.x, b.y):
        raise EspalierError("the two surfaces have different grids: measure both over the same coordinates")
    one, two = a.values(what, split), b.values(what, split)
    finite = one.isfinite() & two.isfinite()
    if not bool(finite.any()):
        raise EspalierError("no point of the two surfaces is finite in both: take a smaller reach")
    gap = (one - two)[finite].abs()
    return Difference(
        float(gap.max()),
        float(gap.mean()),
        float(gap.median()),
        float(one[finite].abs().median()),
        int(finite.sum()),
        finite.numel(),
    )


def _spanned(
    kind: Literal["three", "radial"],
    origin: Tensor,
    u: Tensor,
    v: Tensor,
    networks: Mapping[str, Tensor],
    axes: tuple[str, str],
) -> Plane:
    """The plane with its networks marked, and a grid around those that span it (the first three)."""
    marks = {name: _mark(w - origin, u, v) for name, w in networks.items()}
    spanning = list(marks.values())[:3]
    return Plane(
        kind, origin, u, v, _range([m.x for m in spanning]), _range([m.y for m in spanning]), marks, axes
    )


def _mark(offset: Tensor, u: Tensor, v: Tensor) -> Mark:
    x, y = inner(offset, u), inner(offset, v)
    left = length(offset.double() - x * u.double() - y * v.double())
    # What rounding of float32 directions leaves is no distance.
    return Mark(x, y, left if left > _FLAT * max(length(offset), 1e-30) else 0.0)


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


def _spread(ends: tuple[float, float], count: int) -> tuple[float, ...]:
    return tuple(ends[0] + (ends[1] - ends[0]) * i / (count - 1) for i in range(count))


def _unit(vector: Tensor, problem: str) -> Tensor:
    if not (size := length(vector)):
        raise EspalierError(f"{problem}: there is no plane")
    return vector / size


def _orthogonal(vector: Tensor, u: Tensor, problem: str) -> Tensor:
    """The unit vector along the part of a vector that is orthogonal to u; projected twice against rounding."""
    left = vector.double()
    for _ in range(2):
        left = left - (left * u.double()).sum() * u.double()
    if (size := length(left)) <= _FLAT * length(vector):
        raise EspalierError(f"{problem}: there is no plane")
    return (left / size).to(u.dtype)
