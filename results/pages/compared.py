"""Which method prunes best: what the studies in results/studies say so far."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from espalier.report.compare import SIDES
from espalier.report.plot_compare import Mark, dots, lines
from results.pages._shared import HERE, Chapter, Table, markdown, percent

STUDIES = {"lenet5": "LeNet5 on MNIST", "resnet20": "ResNet-20 on cifar10_jpeg"}
OURS = "target gRDA"
CHOSEN = 0.95  # the sparsity by which tables are ordered
Rows = Sequence[dict[str, Any]]


def cell(row: dict[str, Any] | None) -> str:
    """Accuracy % ± half-width (n), bold where the library cannot tell it from the best; what is missing in words."""
    if row is None:
        return "–"
    if not row["n"]:
        return "failed" if row.get("failures") else "not run"
    text = percent(row["mean"]) + ("" if row["half"] is None else f" ± {percent(row['half'])}")
    return f"{f'**{text}**' if row['tied'] else text} ({row['n']})"


def found(rows: Rows, label: str, sparsity: float | None, teacher: bool = False) -> dict[str, Any] | None:
    wanted = (label, sparsity, teacher)
    return next((r for r in rows if (r["label"], r["sparsity"], r["teacher"]) == wanted), None)


def labels(result: dict[str, Any], teacher: bool = False) -> list[str]:
    """Pruning methods, the best at `CHOSEN` first; those without a run there last, as the study lists them."""
    rows = [r for r in result["rows"] if r["teacher"] == teacher and r["sparsity"] is not None]

    def place(label: str) -> float:
        row = found(rows, label, CHOSEN, teacher)
        return -row["mean"] if row and row["n"] else 0.0

    return sorted(dict.fromkeys(r["label"] for r in rows), key=place)


def core(result: dict[str, Any]) -> list[str]:
    """Methods that the study runs at every sparsity with every seed, if they have run at all."""
    cells = len(result["sparsities"]) * len(result["seeds"])

    def whole(label: str) -> bool:
        rows = [r for r in result["rows"] if r["label"] == label and not r["teacher"]]
        return sum(r["planned"] for r in rows) == cells and any(r["n"] for r in rows)

    return [label for label in labels(result) if whole(label)]


def accuracy_rows(result: dict[str, Any], chosen: Sequence[str], teacher: bool = False) -> Table:
    """Methods by sparsity, the dense control first."""
    asked = result["sparsities"]
    rows = result["rows"]
    dense = [cell(r) for r in rows if r["sparsity"] is None and r["teacher"] == teacher]
    table = [["test accuracy % (runs)", *(f"{percent(s, 0)} % zeros" for s in asked)]]
    table += [["*dense*", *dense[:1], *[""] * (len(asked) - 1)]] if dense else []
    return table + [[label, *(cell(found(rows, label, s, teacher)) for s in asked)] for label in chosen]


def cost_rows(result: dict[str, Any], chosen: Sequence[str]) -> Table:
    """What each method costs at `CHOSEN`, and what it gives over all sparsities."""
    at = f"{percent(CHOSEN, 0)} % zeros"
    table = [
        [
            "method",
            "area under the curve %",
            "sparsity % at 1 point lost",
            f"training FLOPs, {at}",
            "without zeros",
            "seconds",
            "file kB",
        ]
    ]
    curves = {(c["label"], c["teacher"]): c for c in result["curves"]}
    for label in chosen:
        row, curve = found(result["rows"], label, CHOSEN), curves.get((label, False))
        if row is None or not row["n"]:
            continue
        whole = all((found(result["rows"], label, s) or {"n": 0})["n"] for s in result["sparsities"])
        table.append(
            [
                label,
                percent(curve["area"]) if whole and curve and curve["area"] is not None else "–",
                one_point(curve) if whole else "–",
                f"{row['flops']:.3g}",
                f"{row['sparse_flops']:.3g}",
                f"{row['seconds']:.0f}",
                f"{row['bytes'] / 1000:.1f}",
            ]
        )
    return table


def one_point(curve: dict[str, Any] | None) -> str:
    """Where a point is lost against the dense control; which side of what was measured, if not within it."""
    if curve is None or curve["one_point"] is None:
        return "–"
    at = curve["one_point"]
    return SIDES[at["side"]] + percent(at["sparsity"], 1)


def ends(row: dict[str, Any]) -> str:
    """How far a method is behind the best, with the two paired intervals that the library judges by."""
    behind = row["behind"]
    said = [
        f"over {what} {percent(interval[0])} to {percent(interval[1])}"
        for what in ("seeds", "examples")
        if (interval := behind[what]) is not None
    ]
    return f"{percent(behind['mean'])} points ({', '.join(said)}; n = {behind['n']})"


def standing(result: dict[str, Any], sparsity: float, teacher: bool = False, label: str = OURS) -> str:
    """Where a method stands at a sparsity, in words, from the library's own judgement."""
    here = [r for r in result["rows"] if (r["sparsity"], r["teacher"]) == (sparsity, teacher) and r["n"]]
    ours = found(here, label, sparsity, teacher)
    at = f"at {percent(sparsity, 0)} %"
    if ours is None:
        return f"{at} it has not run"
    here.sort(key=lambda r: -r["mean"])
    place = f"{at} it has place {here.index(ours) + 1} of {len(here)}"
    if ours["best"]:
        others = [r for r in here if r is not ours and r["behind"] is not None]
        if not others:
            return f"{at} it is alone so far"
        told = {True: "not told apart from", False: "ahead of", None: "not judged against"}[others[0]["tied"]]
        return f"{place}, {told} the next, {others[0]['label']}, which is behind by {ends(others[0])}"
    best = next(r for r in here if r["best"])
    if ours["behind"] is None:
        return f"{place}; the first, {best['label']}, has no seed in common with it yet"
    told = {True: "not told apart from", False: "behind", None: "with one seed, so not judged against"}[
        ours["tied"]
    ]
    return f"{place}, {told} the first, {best['label']}: less by {ends(ours)}"


def standings(result: dict[str, Any], teacher: bool = False) -> str:
    """Where the forms of target gRDA stand that the study has."""
    taught = ", taught by the dense parent" if teacher else ""
    forms = sorted(label for label in labels(result, teacher) if label.startswith(OURS))
    return "\n\n".join(
        f"**Where {label} stands{taught}:** "
        + "; ".join(standing(result, s, teacher, label) for s in result["sparsities"])
        + ". (95 % intervals of the paired difference of accuracies.)"
        for label in forms
    )


def section(name: str, result: dict[str, Any]) -> str:
    chosen = labels(result)
    parts = [
        f"{result['title']}: {result['runs']} of {result['runs'] + result['missing']} runs done; mean ± half-width of the "
        "95 % Student interval (n runs). Bold: the best at its sparsity and whatever two paired 95 % intervals, over seeds "
        "and over test examples, do not tell from it; of methods with one run nothing is said. Dashes are not part of the "
        "study.",
        standings(result),
        markdown(accuracy_rows(result, chosen)),
    ]
    if taught := labels(result, teacher=True):
        parts += ["With the dense parent as teacher:", standings(result, teacher=True)]
        parts += [markdown(accuracy_rows(result, taught, teacher=True))]
    failures = [
        f"{r['label']} at {r['sparsity']}: {f}" for r in result["rows"] for f in r.get("failures", ())
    ]
    if failures:
        parts.append("Failed runs are in no mean: " + "; ".join(failures) + ".")
    emptied = [
        f"{r['label']} at {r['sparsity']}: {what}" for r in result["rows"] for what in r.get("emptied", ())
    ]
    if emptied:
        parts.append("Runs with tensors that lost every weight: " + "; ".join(emptied) + ".")
    parts += [
        markdown(cost_rows(result, chosen)),
        "The area is over all sparsities of the table; the point is lost against the dense control, linear between "
        "sparsities of the table. FLOPs: all that the training computed, but not what scores that read data (saliency, OBD, "
        "SNIP, GraSP, SynFlow, WoodFisher) computed besides; without zeros: without products with zero weights, which no "
        "hardware here skips. Seconds are wall clock of the training on cores that other work shared. What the harness adds around a "
        "training is not recorded.",
        f"Made anew by `python -m results.compared {name}` when more runs have come in.",
        f"![Which method prunes best, {STUDIES[name]}](compared-{name}.png)",
    ]
    return "\n\n".join(parts)


def marks(result: dict[str, Any]) -> list[Mark]:
    """What has run without a teacher."""
    return [
        Mark(
            row["label"],
            row["sparsity"],
            row["mean"],
            None if row["interval"] is None else (row["interval"][0], row["interval"][1]),
            bool(row["tied"]),
            row["n"],
        )
        for row in result["rows"]
        if row["n"] and not row["teacher"] and row["sparsity"] is not None
    ]


def figure(name: str, result: dict[str, Any]) -> None:
    whole = Figure(figsize=(14, 6))
    left, right = whole.subplots(1, 2)
    known = marks(result)
    dense = [row for row in result["rows"] if row["sparsity"] is None and row["n"] and not row["teacher"]]
    lines(left, known, {row["label"]: row["mean"] for row in dense})
    left.legend(fontsize=7, ncols=2, loc="lower left", framealpha=0.9)
    dots(right, [mark for mark in known if mark.sparsity == CHOSEN])
    right.set_title(f"{percent(CHOSEN, 0)} % zeros", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e7ece8")
    whole.tight_layout()
    whole.savefig(HERE / f"compared-{name}.png", dpi=130, bbox_inches="tight")


CHAPTERS = [
    Chapter(
        f"Which method prunes best? {title}",
        f"compared-{name}",
        partial(section, name),
        partial(figure, name),
    )
    for name, title in STUDIES.items()
]
