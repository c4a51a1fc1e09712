"""Weight norm and spectral norm, recognized by the names and shapes that they give their tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]

MAGNITUDES = "magnitudes of a weight norm"
VECTORS = "vectors of a spectral norm"

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")
_SPECTRAL = re.compile(r"_(orig|bar)$")


@dataclass(frozen=True)
class Norms:
    """The reparametrized weights of a network.

    Args:
        groups: direction or raw weight -> shape of its groups, broadcast against its own. Each group needs a
            nonzero entry: a row of a weight norm is divided by its length, a spectral norm divides by the
            largest singular value.
        magnitudes: names of the magnitudes of weight norms.
        vectors: names of the vectors that estimate singular values.
    """

    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    magnitudes: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()


def find_norms(shapes: Shapes) -> Norms:
    """Find weight norms and spectral norms, in the forms of `torch.nn.utils` and of its parametrizations.

    Args:
        shapes: of every parameter and buffer, by name.
    """
    groups: dict[str, tuple[int, ...]] = {}
    magnitudes, vectors = set(), set()
    for name, shape in shapes.items():
        ones = (1,) * len(shape)
        if magnitude := _magnitude(name, shapes):
            magnitudes.add(magnitude)
            groups[name] = shapes[magnitude] if len(shapes[magnitude]) == len(shape) else ones
        elif found := _singular(name, shapes):
            vectors.update(found)
            groups[name] = ones
    return Norms(groups, frozenset(magnitudes), frozenset(vectors))


def groups_of(shapes: Shapes, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The groups of these names only; see `Norms`."""
    groups = find_norms(shapes).groups
    return {name: groups[name] for name in names if name in groups}


def plain_name(name: str, norms: Norms) -> str:
    """The name that a reparametrized weight has without it: `fc.weight` for `fc.weight_v`."""
    if found := _PARAMETRIZED.search(name):
        return f"{name[: found.start()]}{found[1]}{found[2]}"
    if name in norms.groups or name in norms.magnitudes:
        return re.sub(r"_(orig|bar|v|g)$", "", name)
    return name


def _magnitude(name: str, shapes: Shapes) -> str | None:
    """The magnitude that belongs to a direction, if `name` is one."""
    if name.endswith(".original1") and _PARAMETRIZED.search(name):
        magnitude = name[:-1] + "0"
    elif re.search(r"(^|\.)[^.]*weight[^.]*_v$", name):  # attention has tensors called w_v and w_g
        magnitude = name[:-1] + "g"
    else:
        return None
    if magnitude not in shapes or name[:-1] + "2" in shapes:
        return None
    small, large = shapes[magnitude], shapes[name]
    fits = len(small) == len(large) and all(s in (1, n) for s, n in zip(small, large, strict=True))
    along_one = sum(size != 1 for size in small) <= 1
    return magnitude if (fits and along_one) or small in ((), (1,)) else None


def _singular(name: str, shapes: Shapes) -> list[str]:
    """The vectors of the spectral norm of a raw weight, if `name` is one."""
    if name.endswith(".original") and _PARAMETRIZED.search(name):
        inside = re.compile(re.escape(name.removesuffix("original")) + r"\d+\._[uv]$")
        return [other for other in shapes if inside.match(other)]
    if _SPECTRAL.search(name) and (stem := _SPECTRAL.sub("", name)) + "_u" in shapes:
        return [other for other in (stem + "_u", stem + "_v") if other in shapes]
    return []
