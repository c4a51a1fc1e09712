"""How far can this network be pruned, and why: everything `espalier inspect` has to say, as one object."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espalier._errors import EspalierError, listing, near
from espalier._types import Counts
from espalier.amount import (
    AbstractAmount,
    Amount,
    CosineTarget,
    EffectiveSize,
    Evidence,
    Knee,
    Safe,
    Utopia,
)
from espalier.checkpoint import AbstractCheckpoint
from espalier.curve import Curve
from espalier.kurtosis import bound
from espalier.nulls import Null, balanced_curve, equal_null, gaussian_null, initial_null, sentence
from espalier.optima import utopia
from espalier.profiling import Profile, Progress, profile
from espalier.selection import Selection

SCHEMA = 1
"""Version of `Inspection.to_dict`: raised when a key changes its meaning or goes away."""

WIPED = 0.01
"""Kept fraction of a tensor below which it is reported as (nearly) wiped out."""


SMALL, DOMINANT = 0.01, 1 / 3
"""A tensor with less than this share of the entries and more than this share of the energy is reported."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The answer of one rule, with what it does to each tensor and what it says of the nulls.

    Args:
        amount: the answer.
        kept: entries each tensor keeps under global magnitude pruning.
        cosines: cosine of each tensor with what is kept of it; None for a tensor that is all zero or empty.
        nulls: answer of the same rule for each null model; their `kept` is scaled to the network.
        sentence: how much of the answer is the network and how much is arithmetic.
    """

    amount: Amount
    kept: Counts
    cosines: dict[str, float | None]
    nulls: dict[str, Amount]
    sentence: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the weights alone say about how far they can be pruned.

    Args:
        path: file or folder; None for what lives in memory.
        profile: curves, scales and kurtoses of the network and of each tensor.
        choices: key -> the answer of each rule: utopia, safe, cosine, effective, knee, then those asked for.
        nulls: null models, by name: gaussian, equal, and initial if a checkpoint was given.
        floor: share of its own entries every tensor keeps at `floor_amount`.
        floor_amount: the largest global sparsity at which every tensor still does.
        balanced_utopia: utopia sparsity after every tensor is divided by its rms.
        warnings: what a person should know before pruning; every (nearly) wiped-out tensor is named.
        notes: how to read the numbers.
    """

    path: str | None
    profile: Profile
    choices: dict[str, Choice]
    nulls: dict[str, Null]
    floor: float
    floor_amount: Amount
    balanced_utopia: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def curve(self) -> Curve:
        """Cosine-sparsity curve of the network."""
        return self.profile.curve

    @property
    def amounts(self) -> dict[str, Amount]:
        """Key -> the answer of each rule."""
        return {key: choice.amount for key, choice in self.choices.items()}

    def kept_fraction(self, key: str, name: str) -> float | None:
        """Share of a tensor's entries kept at the amount `key`; None for an empty tensor."""
        entries = self.profile.tensors[name].entries
        return self.choices[key].kept[name] / entries if entries else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the schema is `SCHEMA` and only ever gains keys.

        Sparsities and kept fractions are fractions; undefined numbers are None. `curve` and the curves of the
        nulls hold 101 evenly spaced sparsities and the optimum.
        """
        return {
            "schema": SCHEMA,
            "checkpoint": self.path,
            "selection": {
                "scope": self.profile.selection.scope,
                "tensors": len(self.profile.tensors),
                "entries": self.profile.entries,
                "zeros": self.profile.zeros,
                "parameters": self.profile.selection.parameters,
                "left_out": dict(self.profile.selection.left_out),
            },
            "exact": self.profile.exact,
            "curve": _curve_dict(self.curve),
            "amounts": {key: _choice_dict(choice) for key, choice in self.choices.items()},
            "tensors": [self._tensor_dict(name) for name in self.profile.tensors],
            "kurtosis": _kurtosis_dict(self.profile),
            "nulls": {
                null.name: {"description": null.description, "curve": _curve_dict(null.curve)}
                for null in self.nulls.values()
            },
            "floor": {"kept_fraction": self.floor, **_amount_dict(self.floor_amount)},
            "balanced": {"utopia": self.balanced_utopia},
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def _tensor_dict(self, name: str) -> dict[str, Any]:
        tensor = self.profile.tensors[name]
        return {
            "name": name,
            "shape": list(self.profile.selection.shapes[name]),
            "entries": tensor.entries,
            "zeros": tensor.zeros,
            "rms": tensor.rms,
            "kurtosis": tensor.kurtosis,
            "amounts": {
                key: {
                    "kept": choice.kept[name],
                    "kept_fraction": self.kept_fraction(key, name),
                    "cosine": choice.cosines[name],
                }
                for key, choice in self.choices.items()
            },
        }


def standard_rules() -> dict[str, AbstractAmount]:
    """The rules every inspection reports, by key."""
    return {
        "utopia": Utopia(),
        "safe": Safe(),
        "cosine": CosineTarget(),
        "effective": EffectiveSize(),
        "knee": Knee(),
    }


def inspect(
    checkpoint: AbstractCheckpoint,
    selection: Selection,
    *,
    rules: Mapping[str, AbstractAmount] | None = None,
    streaming: bool | None = None,
    initial: AbstractCheckpoint | None = None,
    floor: float = 0.01,
    progress: Progress | None = None,
) -> Inspection:
    """Read the selected weights once and say how far they can be pruned, and why.

    Args:
        checkpoint: the trained network.
        selection: which tensors of it.
        rules: further rules by key; a standard key (`standard_rules`) replaces that rule.
        streaming: bounded memory instead of exact curves; None decides by size (see `profile`).
        initial: the checkpoint the training began with, as a further null model; same names and shapes.
        floor: share of its own entries every tensor should keep, in (0, 1].
        progress: called after each piece read.

    Returns:
        The inspection.

    Raises:
        EspalierError: unfit weights (see `profile`), or an initial checkpoint of another network.
    """
    if not 0 < floor <= 1:
        raise EspalierError(f"the floor must lie in (0, 1]; got {floor}")
    if initial is not None:
        _check_same(selection, initial)
    weights = profile(checkpoint, selection, streaming=streaming, progress=progress)
    models = [gaussian_null(weights), equal_null(weights)]
    if initial is not None:
        models.append(initial_null(profile(initial, selection, streaming=streaming, progress=progress)))
    nulls = {null.name: null for null in models}
    chosen = standard_rules() | dict(rules or {})
    choices = {key: _choose(key, rule, weights, nulls) for key, rule in chosen.items()}
    balanced = balanced_curve(weights)
    balanced_utopia = (balanced.entries - utopia(balanced)) / balanced.entries
    return Inspection(
        path=None if checkpoint.path is None else str(checkpoint.path),
        profile=weights,
        choices=choices,
        nulls=nulls,
        floor=floor,
        floor_amount=_floor_amount(weights, floor),
        balanced_utopia=balanced_utopia,
        warnings=_warnings(weights, choices),
        notes=(*checkpoint.notes, *_notes(weights, choices, balanced_utopia)),
    )


def dominating(entries: Mapping[str, int], energies: Mapping[str, float]) -> list[str]:
    """A warning for each small tensor that holds a large share of the energy, which often is no weight.

    Args:
        entries: entries of each selected tensor.
        energies: sum of the squares of its entries.
    """
    count, total = sum(entries.values()), math.fsum(energies.values())
    return [
        f"tensor {name!r} holds {energies[name] / total:.0%} of the energy in {entries[name] / count:.2%} of the "
        f"selected entries, so the cosine says little of the other tensors; if it is no weight, leave it out with "
        f"exclude"
        for name in entries
        if entries[name] < SMALL * count and energies[name] > DOMINANT * total
    ]


def _check_same(selection: Selection, initial: AbstractCheckpoint) -> None:
    for name in selection.names:
        if name not in initial.infos:
            raise EspalierError(
                f"the initial checkpoint has no tensor {name!r}; it must be of the same network."
                f"{near(name, initial.infos)}"
            )
        if initial.infos[name].shape != selection.shapes[name]:
            raise EspalierError(
                f"tensor {name!r} has shape {selection.shapes[name]} but {initial.infos[name].shape} in the "
                f"initial checkpoint; it must be of the same network"
            )


def _choose(key: str, rule: AbstractAmount, weights: Profile, nulls: Mapping[str, Null]) -> Choice:
    amount = rule.choose(weights)
    kept = weights.kept_at(amount.kept)
    cosines = {
        name: tensor.curve.cosine(kept[name]) if tensor.rms > 0 else None
        for name, tensor in weights.tensors.items()
    }
    answers = {name: _for_null(rule, null, weights.entries) for name, null in nulls.items()}
    compared = {name: (nulls[name].description, answer.sparsity) for name, answer in answers.items()}
    return Choice(amount, kept, cosines, answers, sentence(key, amount.sparsity, compared))


def _for_null(rule: AbstractAmount, null: Evidence, entries: int) -> Amount:
    """The rule's answer for a null, whose entries are virtual: `kept` is scaled to the network."""
    answer = rule.choose(null)
    return Amount(
        rule=answer.rule,
        sparsity=answer.sparsity,
        cosine=answer.cosine,
        kept=entries - round(answer.sparsity * entries),
        reason=answer.reason,
        regime=answer.regime,
    )


def _floor_amount(weights: Profile, floor: float) -> Amount:
    kept = weights.kept_for_floor(floor)
    return Amount(
        rule="floor",
        sparsity=weights.sparsity(kept),
        cosine=weights.curve.cosine(kept),
        kept=kept,
        reason=f"largest global sparsity at which every tensor keeps at least {floor:g} of its entries",
        regime="needs fine-tuning",
    )


def _warnings(weights: Profile, choices: Mapping[str, Choice]) -> tuple[str, ...]:
    found = [f"{key}: {text}" for key, choice in choices.items() for text in choice.amount.warnings]
    energies = {name: tensor.rms**2 * tensor.entries for name, tensor in weights.tensors.items()}
    found += dominating({name: tensor.entries for name, tensor in weights.tensors.items()}, energies)
    for name, tensor in weights.tensors.items():
        if tensor.entries == 0:
            found.append(f"tensor {name!r} has no entries")
        elif not tensor.rms > 0:
            found.append(f"tensor {name!r} is all zero already")
        else:
            shares = {key: choice.kept[name] / tensor.entries for key, choice in choices.items()}
            bad = [
                f"{choices[key].kept[name]} of {tensor.entries} entries ({share:.4f}) at {key}"
                for key, share in shares.items()
                if share < WIPED
            ]
            if bad:
                found.append(f"tensor {name!r} would be (nearly) wiped out: it keeps {', '.join(bad)}")
    return tuple(found)


def _notes(weights: Profile, choices: Mapping[str, Choice], balanced: float) -> tuple[str, ...]:
    notes = [choices["utopia"].sentence]
    if weights.selection.left_out:
        notes.append(weights.selection.left_out_sentence)
    notes.append(
        "these answers see the weights only: moving scale between layers or folding batch-norm leaves the "
        "function of the network as it is and changes them; with every tensor divided by its rms utopia "
        f"would be {balanced:.3f}"
    )
    notes.append(
        "a high cosine does not promise accuracy: evaluate the pruned network, and fine-tune it where the "
        "amount says so"
    )
    undefined = [name for name, tensor in weights.tensors.items() if tensor.kurtosis is None]
    if undefined:
        notes.append(
            f"kurtosis is undefined for constant, one-element and empty tensors, left out of the kurtosis of "
            f"kurtoses: {listing(undefined)}"
        )
    if not weights.exact:
        notes.append(
            f"streamed: cosines of the network are good to {weights.curve.error:.1e}, and kept counts per "
            f"tensor to the share of one histogram bin"
        )
    if weights.zeros:
        notes.append(
            f"{weights.zeros} of {weights.entries} selected entries are zero already (sparsity "
            f"{weights.zeros / weights.entries:.4f}); they count as pruned"
        )
    return tuple(notes)


def _curve_dict(curve: Curve) -> dict[str, Any]:
    best = (curve.entries - utopia(curve)) / curve.entries
    sparsity, cosine = curve.points(101, extra=[best])
    return {"sparsity": sparsity.tolist(), "cosine": cosine.tolist(), "error": curve.error}


def _amount_dict(amount: Amount) -> dict[str, Any]:
    return {
        "rule": amount.rule,
        "sparsity": amount.sparsity,
        "cosine": amount.cosine,
        "kept": amount.kept,
        "reason": amount.reason,
        "regime": amount.regime,
        "band": None if amount.band is None else list(amount.band),
        "band_cosine": None if amount.band_cosine is None else list(amount.band_cosine),
        "warnings": list(amount.warnings),
    }


def _choice_dict(choice: Choice) -> dict[str, Any]:
    nulls = {name: {"sparsity": a.sparsity, "cosine": a.cosine} for name, a in choice.nulls.items()}
    return _amount_dict(choice.amount) | {"nulls": nulls, "sentence": choice.sentence}


def _kurtosis_dict(weights: Profile) -> dict[str, Any]:
    defined = sum(tensor.kurtosis is not None for tensor in weights.tensors.values())
    return {
        "network": weights.kurtosis,
        "of_kurtoses": weights.kurtosis_of_kurtoses,
        "of_kurtoses_bound": bound(defined),
        "tensors": defined,
    }
