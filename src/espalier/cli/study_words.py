"""A study in YAML as what the library compares: its words replaced by networks, data, methods and ranges."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier._errors import EspalierError, near
from espalier.cli import names

if TYPE_CHECKING:
    from espalier.compare import Contender, Network, Range, Study, Tuning
    from espalier.recipe import YamlFile
    from espalier.study import RangeEntry, StudyRecipe

SMALLER = "smaller-dense"


def gather(file: "YamlFile[StudyRecipe]", root: Path | None) -> "tuple[Study, Tuning | None]":
    """The study that a file describes, its words replaced by networks, data and methods."""
    from espalier.compare import Study
    from espalier.compare.cell import STOPS

    asked = file.value
    networks = tuple(_network(file, i, root) for i in range(len(asked.networks)))
    for i, network in enumerate(networks):
        if network.name in [other.name for other in networks[:i]]:
            raise EspalierError(
                f"{file.at('networks', i)}: two networks are called {network.name!r}: give one another name"
            )
    contenders = tuple(_contender(file, i) for i in range(len(asked.methods)))
    seen: set[tuple[str, float | None]] = set()
    for i, contender in enumerate(contenders):
        sparsities: tuple[float | None, ...] = contender.sparsities or (None, *asked.sparsities)
        named = {(contender.label, sparsity) for sparsity in sparsities}
        if seen & named:
            raise EspalierError(
                f"{file.at('methods', i)}: two methods are called {contender.label!r}: give one a label"
            )
        seen |= named
    for i, given in enumerate(asked.sparsities):
        if not 0 < given < 1:
            raise EspalierError(f"{file.at('sparsities', i)}: a sparsity lies in (0, 1), got {given:g}")
    for i, network in enumerate(networks):
        if True in asked.teachers and network.parent is None:
            raise EspalierError(
                f"{file.at('networks', i)}: teachers includes true, and {network.name} starts from scratch: give it a "
                "start, or leave the teacher out"
            )
    if asked.training.stop_below is not None:
        raise EspalierError(f"{file.at('training', 'stop_below')}: {STOPS}")
    tuning = _tuning(file, contenders)
    if tuning is not None and any(tuning.space(contender) for contender in contenders):
        for i, entry in enumerate(asked.networks):
            if not entry.data.validation:
                raise EspalierError(
                    f"{file.at('networks', i, 'data')}: tuning chooses by the validation split, and validation: 0 "
                    "leaves none: give it a share such as 0.1, or leave the tuning out"
                )
    study = Study(
        asked.title,
        networks,
        contenders,
        asked.sparsities,
        asked.seeds,
        asked.training,
        asked.teachers,
        asked.scope,
    )
    return study, tuning


def _ranges(entries: "Mapping[str, RangeEntry]") -> "dict[str, Range]":
    from espalier.compare import Range

    return {name: Range(entry.low, entry.high, entry.log) for name, entry in entries.items()}


def _tuning(file: "YamlFile[StudyRecipe]", contenders: "Sequence[Contender]") -> "Tuning | None":
    """How methods are tuned; ranges that one of them cannot take are refused here."""
    from espalier.compare import Tuning, check_space

    asked = file.value
    if asked.tuning is None:
        for i, contender in enumerate(contenders):
            if contender.ranges:
                raise EspalierError(
                    f"{file.at('methods', i, 'tune')}: {contender.label} has ranges, but the study has no tuning: say "
                    "how many trials, as in tuning: {trials: 8}"
                )
        return None
    try:
        tuning = Tuning(asked.tuning.trials, _ranges(asked.tuning.common), asked.tuning.storage)
    except EspalierError as error:
        raise EspalierError(f"{file.at('tuning', 'common')}: {error}") from None
    for i, contender in enumerate(contenders):
        try:
            training = replace(asked.training, **contender.changes)
            check_space(contender, training, tuning.space(contender))
        except EspalierError as error:
            raise EspalierError(f"{file.at('methods', i, 'tune')}: {error}") from None
    return tuning


def _network(file: "YamlFile[StudyRecipe]", index: int, root: Path | None) -> "Network":
    """One entry of `networks`; data and checkpoints are read when a run needs them, and once."""
    import copy
    from functools import cache

    import torch
    from torch import nn

    from espalier.checkpoint import open_checkpoint
    from espalier.compare import Network
    from espalier.data import Dataset
    from espalier.models import width_for
    from espalier.selection import select
    from espalier.train.state import tensors_digest

    entry = file.value.networks[index]
    if ":" not in entry.model or entry.model.startswith("torchvision:"):  # others build whatever they like
        try:
            with torch.device("meta"):
                names.network(entry.model, 10)
        except EspalierError as error:
            raise EspalierError(f"{file.at('networks', index, 'model')}: {error}") from None
        except Exception:
            pass  # a network that looks at its own weights cannot be built without any; its name is right

    @cache
    def data() -> Dataset:
        return names.dataset(root=root, word=entry.data.name, **entry.data.model_dump(exclude={"name"}))

    at = file.at("networks", index, "start")
    start = None if entry.start is None else file.path.parent / os.path.expandvars(entry.start)
    if start is not None and "$" in str(start):
        raise EspalierError(
            f"{at}: {entry.start} has a variable that is not set: set it, or write the path out"
        )
    if start is not None and not start.exists():
        raise EspalierError(f"{at}: there is no {start}")

    @cache
    def trained() -> nn.Module:
        return names.model(entry.model, len(data().classes), open_checkpoint(start), str(start)).model  # type: ignore[arg-type]

    def build(seed: int) -> nn.Module:
        if start is not None:
            return copy.deepcopy(trained())
        return names.fresh(lambda: names.network(entry.model, len(data().classes)), seed)

    def smaller(seed: int, sparsity: float) -> nn.Module:
        make = names.narrower(entry.model, len(data().classes))
        if make is None:
            raise EspalierError(f"no narrower version of {entry.model} is known: leave {SMALLER} out")
        whole = open_checkpoint(make(1.0))
        selection = select(whole, file.value.scope)
        width = width_for(make, selection.parameters - round(sparsity * selection.entries))
        return names.fresh(lambda: make(width), seed)

    source: dict[str, Any] = {"model": entry.model, "data": entry.data.model_dump()}
    if start is not None:  # its weights, so that another checkpoint under its name makes other runs
        source |= {"start": start.name, "weights": tensors_digest(open_checkpoint(start))}
    parent = None if start is None else trained
    return Network(entry.name or entry.model, build, data, parent, smaller, source)


def _contender(file: "YamlFile[StudyRecipe]", index: int) -> "Contender":
    """One entry of `methods`."""
    from espalier.cli.method_names import method
    from espalier.compare import Contender

    entry = file.value.methods[index]
    changes = _changes(file, index)
    label = entry.label or entry.name
    only = entry.only.model_dump()
    for part, values in only.items():
        for i, value in enumerate(values or ()):
            if value not in getattr(file.value, part):
                raise EspalierError(
                    f"{file.at('methods', index, 'only', part, i)}: {value} is none of the study's {part}"
                )
    smaller = entry.name == SMALLER
    name = "dense" if smaller else entry.name
    found = method(name, entry.options, lambda field: f"{file.at('methods', index, field)}: ")
    try:
        return Contender(label, found, changes, smaller, **only, ranges=_ranges(entry.tune))
    except EspalierError as error:
        raise EspalierError(f"{file.at('methods', index)}: {error}") from None


def _changes(file: "YamlFile[StudyRecipe]", index: int) -> dict[str, Any]:
    """A method's own fields of the training; refuses those that there are not, and values they do not take."""
    from pydantic import TypeAdapter, ValidationError

    changes = file.value.methods[index].training
    known = type(file.value.training).__dataclass_fields__
    for field in changes:
        if field not in known:
            raise EspalierError(
                f"{file.at('methods', index, 'training', field)}: unknown field 'training.{field}'.{near(field, known)}"
            )
    try:
        whole = TypeAdapter(type(file.value.training)).validate_python(
            {**vars(file.value.training), **changes}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = file.at("methods", index, "training", *first["loc"])
        field = "".join(f"training.{part}: " for part in first["loc"])
        raise EspalierError(f"{where}: {field}{first['msg'].removeprefix('Value error, ')}") from None
    # YAML takes 5e-4, without a point, for a string.
    return {
        name: getattr(whole, name) if isinstance(value, str) else value for name, value in changes.items()
    }
