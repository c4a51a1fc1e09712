"""How the functions of networks are shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from espalier.report.landscape_figures import COLORS, write_png
from espalier.report.page import Page, Section, Table, new_figure, svg, write_page
from espalier.report.text import dump, percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.landscape.embedding import Embedding
    from espalier.landscape.functions import Functions

HEADS = ("pair", "a", "b", "agreement", "95 % interval", "JS divergence", "logit cosine", "mean CKA")
NETWORK_HEADS = ("network", "accuracy", "95 % interval", "loss")


@dataclass(frozen=True)
class Result:
    """The comparison of one command.

    Args:
        functions: the networks side by side.
        embedding: with the pruned family of the first; None if it was not asked for.
        subset: which examples.
    """

    functions: "Functions"
    embedding: "Embedding | None"
    subset: str


def as_json(result: Result) -> str:
    """Everything as one JSON object, the distance matrix too."""
    found, picture = result.functions, result.embedding
    pairs = [{"a": p.a, "b": p.b, **vars(p.similarity), "cka": dict(p.cka)} for p in found.pairs]
    networks = [
        {"name": name, "accuracy": e.accuracy, "interval": e.interval, "loss": e.loss, "n": e.n}
        for name, e in found.evaluations.items()
    ]
    embedded = (
        None
        if picture is None
        else {
            "networks": [
                {
                    "name": name,
                    "group": group,
                    "sparsity": sparsity,
                    "accuracy": accuracy,
                    "position": position,
                }
                for name, group, sparsity, accuracy, position in zip(
                    picture.names,
                    picture.groups,
                    picture.sparsities,
                    picture.accuracies,
                    picture.positions.tolist(),
                    strict=True,
                )
            ],
            "distances": picture.distances.tolist(),
            "perplexity": picture.perplexity,
            "faithfulness": picture.faithfulness,
        }
    )
    return dump(
        {
            "data": result.subset,
            "networks": networks,
            "pairs": pairs,
            "cka": {"inputs": found.cka_inputs, "estimator": _estimator(found)},
            "embedding": embedded,
        }
    )


def as_text(result: Result) -> str:
    """Networks, pairs, layers, and what the picture is worth."""
    found = result.functions
    parts = [
        table(NETWORK_HEADS, _networks(found), numeric=range(1, 4)),
        "",
        table(HEADS, _pairs(found), numeric=(0, *range(3, 8))),
    ]
    if found.cka_inputs:
        heads, rows = _layers(found)
        parts += ["", table(heads, rows, numeric=range(1, len(heads)))]
    return "\n".join([*parts, "", *(f"note: {note}" for note in _notes(result))])


def write(result: Result, png: Path | None, html: Path | None) -> None:
    """The picture and the page that were asked for; the picture is the t-SNE if there is one, else CKA."""
    picture = result.embedding
    if png is not None:
        write_png(cka_figure(result.functions) if picture is None else figure(picture), png)
    if html is None:
        return
    heads, rows = _layers(result.functions)
    sections = [
        Section(
            "Side by side",
            points=_notes(result),
            table=Table(HEADS, _pairs(result.functions), frozenset((0, *range(3, 8)))),
        ),
        Section("Networks", table=Table(NETWORK_HEADS, _networks(result.functions), frozenset(range(1, 4)))),
    ]
    if result.functions.cka_inputs:
        sections.append(
            Section(
                "Linear CKA by layer",
                figure=svg(cka_figure(result.functions)),
                caption="1: equal up to rotation and scale; 0: unrelated.",
                table=Table(heads, rows, frozenset(range(1, len(heads)))),
            )
        )
    if picture is not None:
        sections.append(
            Section(
                "Predictions of many networks",
                figure=svg(figure(picture)),
                caption="Left: t-SNE, whose distances mean little. Right: the real distances, in the same order.",
            )
        )
    write_page(
        Page("Functions of networks", ", ".join(result.functions.evaluations), sections=sections), html
    )


def figure(picture: "Embedding") -> "Figure":
    """t-SNE of the predictions, and the matrix of real distances."""
    drawn, only = new_figure(13, 5.6)
    only.remove()
    left, right = drawn.subplots(1, 2)
    groups = list(dict.fromkeys(picture.groups))
    for group, color in zip(groups, COLORS, strict=False):
        chosen = [i for i, one in enumerate(picture.groups) if one == group]
        x, y = picture.positions[chosen].T
        if group == "network":
            left.plot(x, y, "*", color="#222222", markersize=13, label="given", zorder=4)
            for i in chosen:
                left.annotate(
                    picture.names[i],
                    picture.positions[i],
                    xytext=(7, 5),
                    textcoords="offset points",
                    fontsize=8,
                )
            continue
        shade = 0.25 + 0.75 * np.asarray([picture.sparsities[i] for i in chosen])
        left.plot(x, y, "-", color=color, linewidth=0.6, alpha=0.5)
        left.scatter(
            x, y, s=26, color=color, alpha=shade, label=f"pruned, {group} (darker: sparser)", zorder=3
        )
    left.set(title="t-SNE of the predictions", xticks=[], yticks=[])
    left.legend(frameon=False, fontsize=8)
    shown = right.imshow(picture.distances, cmap="viridis_r")
    starts = [i for i, g in enumerate(picture.groups) if i == 0 or g != picture.groups[i - 1]]
    right.set_xticks(starts, [picture.groups[i] for i in starts], fontsize=8)
    right.set_yticks(starts, [picture.groups[i] for i in starts], fontsize=8)
    right.set_title("real distance of the predictions")
    drawn.colorbar(shown, ax=right)
    return drawn


def cka_figure(found: "Functions") -> "Figure":
    """CKA over the layers, one line a pair."""
    layers = list(dict.fromkeys(layer for pair in found.pairs for layer in pair.cka))
    drawn, axes = new_figure(max(7.0, 0.42 * len(layers)), 4.2)
    for pair, color in zip(found.pairs, [*COLORS] * len(found.pairs), strict=False):
        axes.plot(
            range(len(layers)),
            [pair.cka.get(layer, np.nan) for layer in layers],
            "o-",
            color=color,
            label=f"{pair.a} – {pair.b}",
        )
    axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel=f"linear CKA ({_estimator(found)})", ylim=(min(0.0, *axes.get_ylim()), 1.03))
    axes.legend(frameon=False, fontsize=8)
    return drawn


def _estimator(found: "Functions") -> str:
    return "biased" if found.biased else "unbiased"


def _networks(found: "Functions") -> list[tuple[str, ...]]:
    return [
        (
            name,
            percent(e.accuracy, 2),
            f"{percent(e.interval[0])} – {percent(e.interval[1])}",
            f"{e.loss:.4f}",
        )
        for name, e in found.evaluations.items()
    ]


def _pairs(found: "Functions") -> list[tuple[str, ...]]:
    return [
        (
            str(number),
            p.a,
            p.b,
            percent(p.similarity.agreement, 2),
            " – ".join(percent(end) for end in p.similarity.interval),
            f"{p.similarity.divergence:.4f}",
            f"{p.similarity.logit_cosine:.4f}",
            f"{np.mean(list(p.cka.values())):.4f}" if p.cka else "–",
        )
        for number, p in enumerate(found.pairs, 1)
    ]


def _layers(found: "Functions") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    layers = list(dict.fromkeys(layer for pair in found.pairs for layer in pair.cka))
    heads = ("CKA: layer", *(f"pair {number}" for number in range(1, len(found.pairs) + 1)))
    return heads, [
        (layer, *(f"{p.cka[layer]:.4f}" if layer in p.cka else "–" for p in found.pairs)) for layer in layers
    ]


def _notes(result: Result) -> list[str]:
    found, picture = result.functions, result.embedding
    notes = [f"{result.subset}; every network with its own batch-norm statistics, eval mode"]
    if found.cka_inputs:
        notes.append(
            f"linear CKA with the {_estimator(found)} estimator of HSIC on {found.cka_inputs:,} inputs"
        )
    if picture is not None:
        notes.append(
            f"t-SNE of {len(picture.names)} networks, perplexity {picture.perplexity:.3g}: its distances have a rank "
            f"correlation of {picture.faithfulness:.2f} with the real ones, so read those from the matrix"
        )
    return notes
