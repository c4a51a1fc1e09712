"""A comparison in a file: YAML, checked field by field, errors with their line."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.recipe import DataRecipe, SeedlessTraining, Seeds, Strict


class NetworkEntry(Strict):
    """What is pruned.

    Args:
        name: for tables; the model's by default.
        model: as on the command line.
        data: what it is trained on.
        start: a trained checkpoint to start from, relative to the study's file, with variables such as
            $ESPALIER_DATA; null is from scratch.
    """

    name: str | None = None
    model: str
    data: DataRecipe
    start: str | None = None


class RangeEntry(Strict):
    """Where a tuned number is looked for."""

    low: float
    high: float
    log: bool = False


class OnlyEntry(Strict):
    """The part of a study that a method takes part in; what is not named is all."""

    sparsities: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    teachers: tuple[bool, ...] | None = None


class MethodEntry(BaseModel):
    """A method; what else it takes depends on it.

    Args:
        name: as in a recipe, or smaller-dense for a narrower dense network with as many parameters.
        label: for tables; the name by default; two methods with one label differ in their sparsities.
        training: fields of the training that this method needs otherwise.
        tune: ranges of this method's own numbers, beside the common ones.
        only: the part of the study it takes part in.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    label: str | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    tune: dict[str, RangeEntry] = Field(default_factory=dict)
    only: OnlyEntry = OnlyEntry()

    @property
    def options(self) -> dict[str, Any]:
        """What the method is built with."""
        return dict(self.__pydantic_extra__ or {})


class TuningEntry(Strict):
    """The same number of trials for every method.

    Args:
        trials: for each.
        common: ranges of fields of the training.
        storage: URL of Optuna's database; null is a file beside the runs.
    """

    trials: int = Field(ge=1)
    common: dict[str, RangeEntry] = Field(default_factory=dict)
    storage: str | None = None


class PublishedEntry(Strict):
    """A number of others, drawn beside ours and not rerun.

    Args:
        label: method and network, for the legend.
        sparsity: in [0, 1].
        accuracy: in [0, 1].
        source: where it stands.
    """

    label: str
    sparsity: float = Field(ge=0, le=1)
    accuracy: float = Field(ge=0, le=1)
    source: str


class StudyRecipe(Strict):
    """A whole comparison.

    Args:
        title: one line for people.
        networks: what is pruned.
        training: of every run; the fields of `espalier.Training` but its seed.
        methods: what is compared.
        sparsities: in (0, 1).
        seeds: one run each.
        teachers: false, true or both: whether the dense parent teaches.
        scope: which parameters are pruned.
        tuning: null tunes nothing.
        published: numbers of others.
    """

    title: str
    networks: tuple[NetworkEntry, ...] = Field(min_length=1)
    training: SeedlessTraining
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    sparsities: tuple[float, ...] = Field(min_length=1)
    seeds: Seeds = (0,)
    teachers: tuple[bool, ...] = Field(default=(False,), min_length=1)
    scope: Literal["weights", "paper", "all"] = "weights"
    tuning: TuningEntry | None = None
    published: tuple[PublishedEntry, ...] = ()
