"""Words for pruning methods, as recipes and studies use them."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from espalier._errors import EspalierError, near
from espalier.cli.names import allocation, look_up

if TYPE_CHECKING:
    from espalier.methods import AbstractMethod
    from espalier.scores import AbstractScore


def method(
    name: str, options: Mapping[str, Any], where: Callable[[str], str] = lambda field: ""
) -> "AbstractMethod":
    """A method by its word and what it is built with.

    Args:
        name: the word.
        options: by name; `allocation`, `score` and `schedule` are words themselves.
        where: place of a field ("name" or an option) for messages, such as "recipe.yaml, line 7: ".
    """
    table = _table()
    try:
        builder = look_up("method", name, table)
    except EspalierError as error:
        raise EspalierError(f"{where('name')}{error}") from None
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "nothing"
            raise EspalierError(
                f"{where(option)}method {name} takes no {option!r}; it takes {takes}.{near(option, known)}"
            )
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise EspalierError(f"{where('name')}method {name} needs {option!r}")
    values = {}
    for option, value in options.items():
        try:
            values[option] = _value(option, value, known[option].annotation)
        except (EspalierError, TypeError) as error:
            raise EspalierError(f"{where(option)}{option}: {error}") from None
    try:
        return builder(**values)
    except (EspalierError, TypeError) as error:
        raise EspalierError(f"{where('name')}method {name}: {error}") from None


def words() -> list[str]:
    """The words there are."""
    return list(_table())


def score(word: str) -> "AbstractScore":
    """What makes a weight worth keeping."""
    from espalier import scores

    name, _, seed = word.partition("=")
    table: dict[str, Callable[[], AbstractScore]] = {
        "magnitude": scores.Magnitude,
        "random": lambda: scores.Random(_number(seed, "the seed of random", int) if seed else None),
        "saliency": scores.Saliency,
        "obd": scores.OBD,
        "hessian-obd": scores.HessianOBD,
        "woodfisher": scores.WoodFisher,
        "snip": scores.SNIP,
        "grasp": scores.GraSP,
        "synflow": scores.SynFlow,
    }
    return look_up("score", name, table)()


def _value(option: str, value: Any, kind: Any) -> Any:
    """An option of a file as what the library takes.

    Args:
        option: its name.
        value: as YAML has it.
        kind: the type it is declared with.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    from espalier.optim import Polynomial
    from espalier.recipe import wrong_value

    if option == "allocation" and isinstance(value, str):
        word, _, floor = value.partition(" floor=")
        return allocation(word, _number(floor or "0", "a floor", float))
    if option in ("score", "start") and isinstance(value, str):
        return score(value)
    if option == "schedule":
        known = {"cubic": 3.0, "linear": 1.0}
        return Polynomial(known[value] if value in known else _number(value, "a schedule", float))
    try:
        taken = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise EspalierError(wrong_value(error.errors()[0])) from None
    if isinstance(value, bool) and not isinstance(taken, bool):
        raise EspalierError(f"it is a number, got {value}")
    if type(value) is int and isinstance(taken, float):
        return value  # 1 and 1.0 name different runs
    return taken


def _number(word: Any, what: str, kind: Callable[[str], Any]) -> Any:
    if isinstance(word, int | float) and not isinstance(word, bool):
        return word
    try:
        return kind(word)
    except (TypeError, ValueError):
        raise EspalierError(f"{what} must be a number, got {word!r}") from None


def _table() -> "dict[str, Callable[..., AbstractMethod]]":
    from espalier import methods
    from espalier.allocate import UniformPlus
    from espalier.directional import DirectionalPruning
    from espalier.methods import AbstractMethod, Threshold
    from espalier.optim import Lasso, LinearLaw, PowerLaw, TimePowerLaw

    def grda(
        c: float,
        mu: float,
        in_time: bool = False,
        paper: bool = False,
        momentum: bool = False,
        settle: float = 0.9,
        min_kept: float = 0.0,
        freeze_below: float | None = None,
    ) -> AbstractMethod:
        law = (TimePowerLaw if in_time else PowerLaw)(c, mu)
        return Threshold(
            law,
            paper=paper,
            momentum=momentum,
            settle=settle,
            min_kept=min_kept,
            freeze_below=freeze_below,
        )

    def rda(penalty: float, momentum: bool = False, settle: float = 0.9) -> AbstractMethod:
        return Threshold(LinearLaw(penalty), momentum=momentum, settle=settle)

    def lasso(penalty: float, momentum: bool = True, settle: float = 0.9) -> AbstractMethod:
        return Threshold(Lasso(penalty), momentum=momentum, settle=settle)

    return {
        "dense": methods.Dense,
        "one-shot": methods.OneShot,
        "gradual": methods.Gradual,
        "magnitude-v2": partial(methods.Gradual, allocation=UniformPlus()),
        "movement": methods.MovementPruning,
        "lottery": methods.Iterative,
        "acdc": methods.ACDC,
        "target-grda": methods.TargetGRDA,
        "grda": grda,
        "rda": rda,
        "lasso": lasso,
        "str": methods.STR,
        "st3": methods.ST3,
        "l0": methods.L0,
        "variational-dropout": methods.VariationalDropout,
        "set": methods.SET,
        "rigl": methods.RigL,
        "lc": methods.LC,
        "directional": DirectionalPruning,
    }
