"""What pruning does to the landscape of a network, in words and tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from results.pages._shared import Table, markdown, percent
from results.pages.landscape_valley import said


def difference_rows(around: Mapping[str, Any]) -> Table:
    rows = [
        [
            "directions",
            "cosine",
            "pruned",
            "zeros %",
            "largest",
            "mean",
            "median",
            "median loss of the parent",
        ]
    ]
    for name, planes in around.items():
        for entry in planes["pruned"]:
            gap = entry["difference"]["loss"]
            rows.append(
                [
                    name.split()[-1],
                    f"{entry['cosine']:.3f}",
                    entry["score"],
                    percent(entry["sparsity"], 1),
                    *(f"{gap[key]:.3g}" for key in ("largest", "mean", "median", "scale")),
                ]
            )
    return rows


def equal_cosine(around: Mapping[str, Any]) -> str:
    """L1 beside random at equal cosine, by the surfaces around them."""
    by: dict[float, dict[str, list[dict[str, float]]]] = {}
    for planes in around.values():
        for entry in planes["pruned"]:
            by.setdefault(entry["target"], {}).setdefault(entry["score"], []).append(
                entry["difference"]["loss"]
            )
    parts = []
    for cosine, scores in by.items():
        ratios = {
            key: [
                r[key] / max(one[key], 1e-30) for r, one in zip(scores["random"], scores["L1"], strict=True)
            ]
            for key in ("largest", "median")
        }
        closer = sum(ratio > 1 for ratio in ratios["median"])
        parts.append(
            f"At cosine {cosine:g} the surface around L1 is nearer to the parent's than that around random pruning in "
            f"{closer} of {len(ratios['median'])} pairs of directions by the median difference; random over L1: median "
            + ", ".join(f"{ratio:.2f}" for ratio in ratios["median"])
            + ", largest "
            + ", ".join(f"{ratio:.2f}" for ratio in ratios["largest"])
            + "."
        )
    return " ".join(parts)


def family_words(found: Mapping[str, Any]) -> str:
    by = {network["name"]: network for network in found["networks"]}
    begin = "untrained" if "untrained" in by else "start"  # the start may be a trained network
    whole = by[begin]["to_end"]
    half = {}
    for group in ("L1", "random"):
        members = [n for n in found["networks"] if n["group"] == group]
        half[group] = next((n["sparsity"] for n in members if n["to_end"] > whole / 2), None)
    gone = [
        f"{group} {percent(at, 0)} %" if at is not None else f"{group} never" for group, at in half.items()
    ]
    return (
        f"{len(found['networks'])} networks on {found['n']:,} test images; t-SNE keeps the order of the real distances with a "
        f"rank correlation of {found['faithfulness']:.2f} (perplexity {found['perplexity']:g}), so distances are read from the "
        f"numbers: {begin} and end are {whole:.3f} apart, and half of that is passed at {said(gone)} zeros. "
        f"Spearman correlation of accuracy, both families together: with sparsity {found['spearman']['sparsity']:.2f}, with "
        f"cosine {found['spearman']['cosine']:.2f}."
    )


def collapse_rows(found: Mapping[str, Any]) -> tuple[Table, str]:
    """Accuracy of both families at equal cosine, between their two nearest members; and the widest gap."""
    rows = [["cosine", "L1: accuracy %", "random: accuracy %"]]
    curves = {}
    for group in ("L1", "random"):
        members = sorted((n["cosine"], n["accuracy"]) for n in found["networks"] if n["group"] == group)
        curves[group] = [np.array(column) for column in zip(*members, strict=True)]
    lowest = max(curve[0][0] for curve in curves.values())

    def at(group: str, cosine: float) -> float:
        return float(np.interp(cosine, curves[group][0], curves[group][1]))

    for cosine in (0.99, 0.95, 0.9, 0.8, 0.7, 0.6):
        if cosine >= lowest:
            rows.append([f"{cosine:g}", *(percent(at(group, cosine), 1) for group in ("L1", "random"))])
    widest = max(
        (c for c in curves["random"][0] if c >= lowest), key=lambda c: abs(at("L1", c) - at("random", c))
    )
    gap = at("L1", widest) - at("random", widest)
    words = (
        f"At equal cosine the two families are up to {abs(100 * gap):.0f} points apart (at {widest:.2f}, "
        f"{'L1' if gap > 0 else 'random'} the better): "
        + ("cosine alone does not say the accuracy." if abs(gap) > 0.05 else "they lie on one curve.")
    )
    return rows, words


def tuned_rows(found: Mapping[str, Any]) -> Table:
    rows = [
        ["SGD's network, pruned", "accuracy %", "distance to it", "after one epoch: accuracy %", "distance"]
    ]
    by = {network["name"]: network for network in found["networks"]}
    for network in found["networks"]:
        if network["group"].endswith("tuned"):
            before = by.get(network["name"].removesuffix(", tuned"))
            rows.append(
                [
                    network["name"].removesuffix(", tuned"),
                    *(
                        [percent(before["accuracy"], 1), f"{before['to_end']:.3f}"]
                        if before
                        else ["not measured", ""]
                    ),
                    percent(network["accuracy"], 1),
                    f"{network['to_end']:.3f}",
                ]
            )
    return rows


def section(name: str, result: dict[str, Any]) -> str:
    """Second result."""
    found, size = result["parts"], result["sizes"]
    parts = [
        "The network is SGD's of the chapter above; L1 is pruning by magnitude, one-shot, one threshold for all."
    ]
    if family := found.get("family", {}).get("family"):
        parts += [
            "**Predictions.** " + family_words(family) + " " + collapse_rows(family)[1],
            markdown(collapse_rows(family)[0]),
            "Distances are root mean squares over images of that of two probability vectors:",
            markdown(tuned_rows(family)),
        ]
    else:
        parts.append("Predictions of pruned networks: not run.")
    if around := found.get("around"):
        parts += [
            f"**L1 and random at equal cosine**, over filter-normalized planes of {size['around']} x {size['around']} points on "
            f"{size['plane']:,} training images, the same directions for parent and pruned. "
            + equal_cosine(around),
            "Differences of the loss, point by point:",
            markdown(difference_rows(around)),
        ]
    else:
        parts.append("Planes of random directions: not run.")
    parts.append(
        "In the radial slice, the plane through origin, start and end, green is L1 and brown random pruning, a star what "
        "one epoch made of it; all are projected into it."
        if "slice" in found
        else "Radial slice: not run."
    )
    parts.append(f"![After pruning](landscape-{name}-pruning.png)")
    return "\n\n".join(parts)
