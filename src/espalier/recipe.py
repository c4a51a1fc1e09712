"""A training run in a file: YAML, checked field by field, errors with their line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from espalier._errors import EspalierError, near
from espalier.train.training import Training

T = TypeVar("T", bound=BaseModel)

PACKAGED = Path(__file__).parent / "recipes"
"""Where the recipes of the package lie."""


class Strict(BaseModel):
    """Fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` names a seed twice: {', '.join(map(str, seeds))}")
    return seeds


def _without_seed(training: Any) -> Any:
    if isinstance(training, dict) and "seed" in training:
        raise ValueError("`training` has a `seed`, which no run would use; give the file a list `seeds`")
    return training


Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]
SeedlessTraining = Annotated[Training, BeforeValidator(_without_seed)]


class DataRecipe(Strict):
    """Which data.

    Args:
        name: as on the command line: digits, torchvision:NAME, a folder, a hub name.
        validation: fraction of the training examples held out to decide on, in [0, 1).
        limit: at most so many examples of each split.
        normalization: of the channels; default is the data set's own (see `espalier.data`).
    """

    name: str
    validation: float = Field(default=0.1, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    normalization: Literal["default", "imagenet", "cifar10", "cifar100"] = "default"


class MethodRecipe(BaseModel):
    """Which method; what else it takes depends on it.

    Args:
        name: dense, one-shot, gradual, target-grda, grda, rda, lasso, ...
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """What the method is built with."""
        return dict(self.__pydantic_extra__ or {})


class Recipe(Strict):
    """A whole run, but for where the files lie.

    Args:
        title: one line for people.
        source: where its numbers come from.
        model: as on the command line: lenet5, resnet20, vgg16, wrn28x10, torchvision:NAME, package.module:function.
        data: what it is trained on.
        training: epochs, rates, schedule; the fields of `espalier.Training` but its seed.
        method: how zeros come about.
        sparsity: to reach, in [0, 1); null where the method decides by itself.
        scope: which parameters are pruned, as in `espalier.select`.
        include: globs on parameter names; only these.
        exclude: globs on parameter names; not these.
        teacher: train towards the network one starts from as well; needs a start.
        seeds: one run each; a seed decides initial weights, data order, augmentation and dropout.
    """

    title: str
    source: str = ""
    model: str
    data: DataRecipe
    training: SeedlessTraining
    method: MethodRecipe
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    scope: Literal["weights", "paper", "all"] = "weights"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    teacher: bool = False
    seeds: Seeds = (0,)


class YamlFile(Generic[T]):
    """A YAML file checked field by field, with the place of each of its fields.

    Args:
        path: the file.
        kind: what it describes.

    Attributes:
        value: the content.

    Raises:
        EspalierError: the file cannot be read, is not YAML, or has unknown, missing or wrong fields; names the
            field and its line.
    """

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path, self.kind = path, kind
        try:
            text = path.read_text(encoding="utf-8")
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            values = yaml.safe_load(text)
        except OSError as error:
            raise EspalierError(f"{path} cannot be read: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            what = getattr(error, "problem", None) or "it is not text"
            raise EspalierError(f"{path}, {where}this is not YAML: {what}") from None
        if (twice := next(_repeated(self._root), None)) is not None:
            raise EspalierError(f"{path}, line {twice.start_mark.line + 1}: {twice.value!r} is given twice")
        if not isinstance(values, dict):
            needed = [name for name, field in kind.model_fields.items() if field.is_required()]
            raise EspalierError(
                f"{path} is not a {kind.__name__.lower()}: it must be a mapping with {', '.join(needed)}"
            )
        try:
            self.value = kind.model_validate(values)
        except ValidationError as error:
            raise EspalierError("; ".join(self._said(e) for e in error.errors()[:3])) from None

    def at(self, *field: str | int) -> str:
        """The place of a field, or of what should hold it: "recipe.yaml, line 7"."""
        node, line = self._root, 1
        for part in field:
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = (node.value[part], node.value[part])
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return f"{self.path}, line {line}"

    def _said(self, error: Any) -> str:
        """One error of pydantic in our words."""
        field = tuple(error["loc"])
        name = ".".join(str(part) for part in field)
        if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _fields(self.kind, field[:-1])
            return f"{self.at(*field)}: unknown field {name!r}.{near(str(field[-1]), known)}"
        if error["type"] in ("missing", "missing_argument"):
            return f"{self.at(*field)}: the field {name!r} is missing"
        if error["type"] == "value_error":
            return f"{self.at(*field)}: {error['msg'].removeprefix('Value error, ')}"
        known = re.findall("'([^']*)'", error["msg"]) if error["type"] == "literal_error" else []
        meant = near(str(error["input"]), known)
        return f"{self.at(*field)}: {name}: {wrong_value(error)}{'.' if meant else ''}{meant}"


def wrong_value(error: Any) -> str:
    """What pydantic says of a value, and the value."""
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Keys that stand twice in one mapping, of which YAML would keep the last without a word."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def _fields(kind: Any, parents: Sequence[str | int]) -> Sequence[str]:
    """Names that a part of a file may have."""
    for part in parents:
        if isinstance(part, int):
            kind = get_args(kind)[0]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
    found = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return list(found)


def packaged() -> dict[str, Path]:
    """The recipes of the package by name."""
    return {path.stem: path for path in sorted(PACKAGED.glob("*.yaml"))}


def find_recipe(word: str) -> YamlFile[Recipe]:
    """A recipe by the name of one of the package's, or by its path.

    Raises:
        EspalierError: there is none; suggests near names.
    """
    known = packaged()
    if word in known:
        return YamlFile(known[word], Recipe)
    if not Path(word).is_file():
        raise EspalierError(
            f"no recipe {word!r}: neither a file nor one of {', '.join(known)}.{near(word, known)}"
        )
    return YamlFile(Path(word), Recipe)
