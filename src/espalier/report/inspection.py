"""How an inspection is shown: terminal, JSON, HTML."""

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.report.page import Card, Page, Section, Table, write_page
from espalier.report.plot_inspection import curve_figure, kept_figure, scale_figure
from espalier.report.plot_text import braille_curve
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from espalier.inspection import Choice, Inspection

SHOWN = 12
"""Tensors of the terminal table; JSON and HTML hold all of them."""

AMOUNT_HEADS = ("amount", "sparsity", "cosine", "null", "regime", "why")


def as_json(found: "Inspection") -> str:
    """The whole inspection as one JSON object, by the documented schema."""
    return dump(found.to_dict())


def as_text(found: "Inspection") -> str:
    """Amounts, curve, the tensors that suffer most, warnings and notes."""
    profile = found.profile
    selection = profile.selection
    sparsity, cosine = found.curve.points(121)
    marks = {
        letter: (found.choices[key].amount.sparsity, found.choices[key].amount.cosine)
        for letter, key in _letters(found).items()
    }
    lines = [
        f"{found.path or 'module'}: {len(profile.tensors)} tensors selected (scope {selection.scope}), "
        f"{profile.entries:,} of {selection.parameters:,} parameters, "
        + ("exact" if profile.exact else f"streamed, cosine within {found.curve.error:.1e}"),
        "",
        amounts_text(found),
        "",
        "cosine to the parent over sparsity ("
        + ", ".join(f"{letter} {key}" for letter, key in _letters(found).items())
        + ")",
        braille_curve(sparsity.tolist(), cosine.tolist(), marks),
        "",
        _kurtosis_line(found),
        "",
        *_tensor_lines(found),
        *(["", *(f"warning: {text}" for text in found.warnings)] if found.warnings else []),
        "",
        *(f"note: {text}" for text in found.notes),
    ]
    return "\n".join(lines)


def amounts_text(found: "Inspection") -> str:
    """The amounts as a table, with the one line one needs to read it."""
    rows = [_amount_row(key, choice) for key, choice in found.choices.items()]
    return "\n".join(
        [
            table(AMOUNT_HEADS, rows, numeric=(1, 2, 3), wrap=(5,)),
            "",
            "null: what the same rule says of Gaussian weights with the same scale in each tensor.",
            f"with every tensor keeping at least {percent(found.floor)} of its entries: "
            f"{percent(found.floor_amount.sparsity)} (cosine {found.floor_amount.cosine:.4f})",
        ]
    )


def write_html(found: "Inspection", path: Path) -> None:
    """A self-contained page with plots."""
    write_page(page(found), path)


def page(found: "Inspection") -> Page:
    """The page, for those who put it beside another."""
    profile = found.profile
    amounts = found.choices
    cards = [
        Card(
            key,
            percent(amounts[key].amount.sparsity),
            f"cosine {amounts[key].amount.cosine:.3f} · {amounts[key].amount.regime}",
        )
        for key in ("cosine", "effective", "utopia", "safe")
    ]
    figures = [
        Section(
            "The curve",
            figure=curve_figure(found),
            caption="Cosine between the network and what is left of it when the smallest weights are removed. The "
            "shaded band is nearly as good by the utopia rule's own measure. Where the dashed null lies on the line, "
            "the answer is arithmetic, not knowledge about this network.",
        ),
        Section(
            "What it does to each tensor",
            figure=kept_figure(found),
            caption="Share of each tensor that one global threshold keeps, at each amount.",
        ),
        Section(
            "Scale and shape of each tensor",
            figure=scale_figure(found),
            caption="Tensors of smaller scale lose first; heavier tails (higher kurtosis) lose less cosine.",
        ),
    ]
    return Page(
        title="How far can it be pruned?",
        subtitle=f"{found.path or 'module'} — {len(profile.tensors)} tensors, {profile.entries:,} of "
        f"{profile.selection.parameters:,} parameters selected (scope {profile.selection.scope})",
        cards=cards,
        sections=[
            *([Section("Warnings", warnings=found.warnings)] if found.warnings else []),
            Section(
                "Amounts",
                table=Table(
                    AMOUNT_HEADS,
                    [_amount_row(key, choice) for key, choice in amounts.items()],
                    frozenset({1, 2, 3}),
                ),
            ),
            Section(
                "What is the network, what is arithmetic",
                points=[choice.sentence for choice in amounts.values() if _says_something(choice)],
            ),
            *figures,
            Section(
                "Tensors",
                paragraphs=[_kurtosis_line(found)],
                table=Table(
                    _tensor_heads(found), _tensor_rows(found, list(profile.tensors)), frozenset(range(2, 30))
                ),
            ),
            Section("How to read this", points=found.notes),
        ],
    )


def _letters(found: "Inspection") -> dict[str, str]:
    """One letter per amount for the terminal curve; the last drawn is the first listed, which stays on top."""
    letters = "ABDFGHIJLMN"
    keys = list(found.choices)
    own = {"utopia": "U", "safe": "S", "cosine": "C", "effective": "E", "knee": "K"}
    spare = iter(letters)
    return {own.get(key) or next(spare): key for key in reversed(keys)}


def _amount_row(key: str, choice: "Choice") -> tuple[str, ...]:
    amount = choice.amount
    return (
        key,
        percent(amount.sparsity),
        f"{amount.cosine:.4f}",
        percent(choice.nulls["gaussian"].sparsity),
        amount.regime,
        amount.reason,
    )


def _says_something(choice: "Choice") -> bool:
    """A sparsity that was given is the same for every null; what it says of them is nothing."""
    return any(abs(null.sparsity - choice.amount.sparsity) > 1e-4 for null in choice.nulls.values())


def _kurtosis_line(found: "Inspection") -> str:
    profile = found.profile
    network = "undefined" if profile.kurtosis is None else f"{profile.kurtosis:.2f}"
    second = "undefined" if profile.kurtosis_of_kurtoses is None else f"{profile.kurtosis_of_kurtoses:.2f}"
    return f"kurtosis of the network {network} (a Gaussian has 3), kurtosis of the tensors' kurtoses {second}"


def _tensor_lines(found: "Inspection") -> list[str]:
    """The tensors that keep least at utopia."""
    names = sorted(found.profile.tensors, key=lambda name: found.kept_fraction("utopia", name) or 0.0)
    rest = f"; the other {len(names) - SHOWN} are in --json and --html" if len(names) > SHOWN else ""
    heads, rows = _tensor_heads(found), _tensor_rows(found, names[:SHOWN])
    title = f"share kept of each tensor at each amount, fewest at utopia first{rest}"
    return [title, table(heads, rows, numeric=range(2, len(heads)))]


def _tensor_heads(found: "Inspection") -> tuple[str, ...]:
    return ("tensor", "shape", "entries", "rms", "kurtosis", *found.choices)


def _tensor_rows(found: "Inspection", names: list[str]) -> list[tuple[str, ...]]:
    rows = []
    for name in names:
        tensor = found.profile.tensors[name]
        shares = [found.kept_fraction(key, name) for key in found.choices]
        rows.append(
            (
                name,
                "×".join(map(str, found.profile.selection.shapes[name])),
                f"{tensor.entries:,}",
                f"{tensor.rms:.3g}",
                "–" if tensor.kurtosis is None else f"{tensor.kurtosis:.2f}",
                *("–" if share is None else percent(share) for share in shares),
            )
        )
    return rows
