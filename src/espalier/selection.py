"""Which tensors of a checkpoint take part: scope, then `include` and `exclude` globs."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from espalier._errors import EspalierError, listing, near, near_glob, plural
from espalier.checkpoint import AbstractCheckpoint, TensorInfo
from espalier.checkpoint.content import constants
from espalier.checkpoint.reparametrized import groups_of

Scope = Literal["weights", "paper", "all"]


@dataclass(frozen=True)
class Selection:
    """The prunable tensors of a checkpoint, in file order, tied ones once.

    Args:
        names: full parameter names.
        shapes: name -> shape.
        parameters: every floating entry of the checkpoint but buffers and scales, selected or not, tied ones once; the
            denominator of "zeros / all parameters".
        scope: the scope the names were taken from.
        groups: selected name -> shape of its groups of entries, each of which keeps one: the rows of a weight norm,
            the whole tensor under a spectral norm.
        left_out: floating tensors that are no ordinary weights -> what they are, such as "quantization scales".
        left_out_entries: their entries, by reason.
    """

    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    scope: Scope = "weights"
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    left_out_entries: dict[str, int] = field(default_factory=dict)

    @property
    def left_out_sentence(self) -> str:
        """How many tensors and parameters were left out, and why; "" where none was."""
        if not self.left_out:
            return ""
        reasons = Counter(self.left_out.values())
        kinds = ", ".join(f"{reasons[why]} {why} ({self.left_out_entries[why]:,})" for why in reasons)
        total = sum(self.left_out_entries.values())
        return f"left out: {plural(len(self.left_out), 'tensor')}, {plural(total, 'parameter')}: {kinds}"

    @property
    def entries(self) -> int:
        """Selected entries: the denominator of the sparsity."""
        return sum(self.entries_of(name) for name in self.names)

    def entries_of(self, name: str) -> int:
        """Entries of one selected tensor, a Python int at any size."""
        count = 1
        for size in self.shapes[name]:
            count *= size
        return count


def select(
    checkpoint: AbstractCheckpoint,
    scope: Scope = "weights",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Selection:
    """Choose the tensors to prune.

    Reads at most the first 65,536 entries of each tensor of a file that has an unusual name or shape, to see
    whether it is a mask or a table. Of a module it reads nothing.

    Scopes. "weights": real floating tensors of two or more dimensions that are neither normalization nor
    embedding nor buffer. "paper": every floating non-buffer tensor whose last name component is `weight` or
    `bias`, batch-norm and biases included, as in the published demo (which therefore leaves out
    `in_proj_weight`, `weight_ih_l0` and tokens). "all": every floating non-buffer tensor. No scope holds the
    scales of quantized weights, whose values belong to the integers beside them, or the magnitudes of a weight
    norm, whose zeros switch output units off.

    Args:
        checkpoint: what to choose from.
        scope: which tensors are candidates.
        include: globs on full names (`fnmatch`, case-sensitive; `*` also matches dots); a candidate stays
            when one matches. Empty: all stay. The name of a tied tensor stands for the one it repeats. A
            pattern that matches no candidate, but tensors that were left out for what they seem to be, selects
            those.
        exclude: globs on full names; a candidate that matches one is left out.

    Returns:
        The selection, in the order of the file.

    Raises:
        EspalierError: unknown scope; a pattern that matches no tensor, or none of the scope; nothing left.
    """
    if scope not in get_args(Scope):
        raise EspalierError(f"scope {scope!r} is unknown; use one of {', '.join(get_args(Scope))}")
    infos = dict(checkpoint.infos)
    for name, why in constants(checkpoint).items():
        infos[name] = replace(infos[name], kind="buffer", why=why)
    candidates = [name for name, info in infos.items() if _SCOPES[scope](name, info)]
    names = candidates
    if include:
        kept = _matching(include, candidates, checkpoint, infos, scope, "include")
        names = [name for name in infos if name in kept]
    if exclude:
        dropped = _matching(exclude, candidates, checkpoint, infos, scope, "exclude")
        names = [name for name in names if name not in dropped]
    if not names:
        raise EspalierError(_nothing_left(infos, candidates, scope))
    left_out = {name: info.why for name, info in infos.items() if info.why and info.floating}
    for name in names:
        left_out.pop(name, None)
    entries: Counter[str] = Counter()
    for name, why in left_out.items():
        entries[why] += infos[name].entries
    return Selection(
        names=tuple(names),
        shapes={name: infos[name].shape for name in names},
        parameters=sum(info.entries for name, info in infos.items() if _is_parameter(info) or name in names),
        scope=scope,
        groups=groups_of({name: info.shape for name, info in infos.items()}, names),
        left_out=left_out,
        left_out_entries=dict(entries),
    )


def _prunable(info: TensorInfo) -> bool:
    return info.floating and info.kind not in ("buffer", "scale")


def _is_parameter(info: TensorInfo) -> bool:
    return info.floating and info.kind != "buffer"


def _in_weights(name: str, info: TensorInfo) -> bool:
    return info.floating and info.kind == "weight" and len(info.shape) >= 2


def _in_paper(name: str, info: TensorInfo) -> bool:
    return _prunable(info) and name.rpartition(".")[2] in ("weight", "bias")


def _in_all(name: str, info: TensorInfo) -> bool:
    return _prunable(info)


_SCOPES: dict[Scope, Callable[[str, TensorInfo], bool]] = {
    "weights": _in_weights,
    "paper": _in_paper,
    "all": _in_all,
}


def _matching(
    patterns: Sequence[str],
    candidates: Sequence[str],
    checkpoint: AbstractCheckpoint,
    infos: dict[str, TensorInfo],
    scope: Scope,
    option: str,
) -> set[str]:
    """Candidates that match a pattern; every pattern has to match at least one.

    A pattern that matches only tensors left out for what they seem to be includes those, scales excepted.
    """
    if isinstance(patterns, str):
        raise EspalierError(f"{option}={patterns!r} is one string; pass a list of patterns: [{patterns!r}]")
    found: set[str] = set()
    left_out = {name for name, info in infos.items() if info.why and info.floating}
    for pattern in patterns:
        everywhere = set(_glob(pattern, checkpoint.infos))
        everywhere |= {checkpoint.aliases[alias] for alias in _glob(pattern, checkpoint.aliases)}
        inside = everywhere.intersection(candidates)
        if not inside and option == "exclude" and everywhere & left_out:
            continue
        if not inside and option == "include":
            inside = {name for name in everywhere & left_out if infos[name].kind != "scale"}
        if not everywhere:
            where = "" if checkpoint.path is None else f" of {checkpoint.path}"
            hint = near_glob(pattern, [*dict.fromkeys([*candidates, *checkpoint.aliases, *checkpoint.infos])])
            raise EspalierError(f"{option} pattern {pattern!r} matches no tensor{where}.{hint}")
        if not inside:
            if whys := sorted({info.why for name in everywhere if (info := infos[name]).why}):
                raise EspalierError(
                    f"{option} pattern {pattern!r} matches {listing(sorted(everywhere))}, which no scope selects: "
                    f"{listing(whys)}. Drop the pattern."
                )
            raise EspalierError(
                f"{option} pattern {pattern!r} matches {listing(sorted(everywhere))}, outside scope "
                f"{scope!r}; use a wider scope.{near(pattern, candidates)}"
            )
        found |= inside
    return found


def _glob(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _nothing_left(infos: dict[str, TensorInfo], candidates: Sequence[str], scope: Scope) -> str:
    if candidates:
        count = plural(len(candidates), "tensor")
        return f"the patterns leave nothing of the {count} of scope {scope!r}; relax them"
    floating = [name for name, info in infos.items() if _prunable(info)]
    if not floating:
        count = plural(len(infos), "tensor")
        return f"nothing can be selected: there are no floating-point weights among {count}"
    return f"scope {scope!r} selects nothing; scope 'all' would select {listing(floating)}"
