"""Do SGD and gRDA share a valley? In words and tables."""

from collections.abc import Mapping
from typing import Any

from results._common import summary
from results.landscape.networks import CONTROL, RUNS
from results.pages._shared import Table, markdown, percent

STABLE = 0.02
"""Rise of the error up to which Frankle et al. (2020) call two networks linearly connected; they count it from the mean
of the ends, which here are unequal: half of their difference would be in it."""
ENDS = [name for name in RUNS if name != "SGD"]


def points(value: float) -> str:
    """A difference of accuracies in points."""
    return f"{100 * value:.2f}"


def said(names: list[str]) -> str:
    """Names as a list in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def above(way: Mapping[str, Any], split: str) -> float:
    """How far the error on the way rises above its worse end."""
    errors = [1 - point[split]["accuracy"] for point in way["points"]]
    return float(max(errors) - max(errors[0], errors[-1]))


def ends_apart(way: Mapping[str, Any]) -> float:
    """Test error at the end of a way minus that at its start."""
    return float(way["points"][0]["test"]["accuracy"] - way["points"][-1]["test"]["accuracy"])


def run_rows(runs: Mapping[str, Any]) -> Table:
    rows = [["network", "zeros %", "test accuracy % (95 % interval)", "test loss", "distance from the start"]]
    for name in ("start", *RUNS):
        if (run := runs.get(name)) is None:
            rows.append([name, "not run", "", "", ""])
            continue
        low, high = run["interval"]
        rows.append(
            [
                name,
                percent(run["sparsity"], 1),
                f"{percent(run['accuracy'])} ({percent(low, 1)} to {percent(high, 1)})",
                f"{run['loss']:.3f}",
                f"{run['distance_from_start']:.2f}",
            ]
        )
    return rows


def way_rows(ways: Mapping[str, Any]) -> Table:
    rows = [
        [
            "from SGD to",
            "way",
            "barrier: train loss",
            "train error",
            "test loss",
            "test error",
            "test error above the worse end",
            "length / distance",
        ]
    ]
    for end in ENDS:
        for kind, word in (("line", "straight"), ("bezier", "trained curve")):
            way = ways.get(f"{kind}, {end}")
            if way is None:
                rows.append([end, word, "not run", "", "", "", "", ""])
                continue
            barrier = way["barrier"]
            rows.append(
                [
                    end,
                    word,
                    f"{barrier['train']['loss']['height']:.3f}",
                    points(barrier["train"]["error"]["height"]),
                    f"{barrier['test']['loss']['height']:.3f}",
                    points(barrier["test"]["error"]["height"]),
                    points(above(way, "test")),
                    f"{way['arc_length']:.1f} / {way['distance']:.1f}",
                ]
            )
    return rows


def valley(ways: Mapping[str, Any]) -> str:
    """The answer in words, by how far the test error rises on the straight line."""
    lines = {end: above(ways[f"line, {end}"], "test") for end in ENDS if f"line, {end}" in ways}
    if CONTROL not in lines or len(lines) < 2:
        return "Whether they share a valley is not known yet: the control or gRDA was not run."
    joined = [end for end in lines if lines[end] < STABLE]
    apart = [end for end in lines if end not in joined]
    parts = [
        "**Do they share a valley?** On the straight line from SGD the test error rises above that of the worse end by "
        + said([f"{points(rise)} points on the way to {end}" for end, rise in lines.items()])
        + ". By the mark of Frankle et al. (2020), 2 points,"
    ]
    if not apart:
        parts.append("all of them lie in one valley: gRDA with SGD, and the control too.")
    elif not joined:
        parts.append(
            "none of them is joined to SGD by a straight line: gRDA is not, and neither is a second run of SGD."
        )
    else:
        parts.append(
            f"{said(joined)} {'is' if len(joined) == 1 else 'are'} joined to SGD by a straight line, {said(apart)} "
            f"{'is' if len(apart) == 1 else 'are'} not."
        )
    beside = [
        f"{points(abs(rise - lines[CONTROL]))} points {'higher' if rise > lines[CONTROL] else 'lower'} to {end}"
        for end, rise in lines.items()
        if end != CONTROL
    ]
    if apart:
        parts.append(f"Beside that of the control the wall is {said(beside)}.")
    higher = {end: ends_apart(ways[f"line, {end}"]) for end in joined if end != CONTROL}
    if higher := {end: by for end, by in higher.items() if by >= STABLE}:
        parts.append(
            "Without a wall between them the ends still lie at different heights: the error is "
            + said([f"{points(by)} points higher at {end} itself" for end, by in higher.items()])
            + ", so gRDA ends on the slope of the valley and not at its bottom."
        )
    curves = {end: above(ways[f"bezier, {end}"], "test") for end in ENDS if f"bezier, {end}" in ways}
    if curves:
        parts.append(
            "Along the trained curve it rises by "
            + said([f"{points(rise)} to {end}" for end, rise in curves.items()])
            + (
                ": the curve leads to the control as well, so that there is one to gRDA says nothing of gRDA."
                if apart and curves.get(CONTROL, 1.0) < STABLE
                else "."
            )
        )
    return " ".join(parts)


def starts(found: Mapping[str, Any]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Rise of the test error on the line, and share in the leading eigenspace, by end; one pair a start."""
    pieces = [{"ways": found.get("ways", {}), "projection": found.get("curvature", {}).get("projection")}]
    pieces += found.get("repeats", {}).values()
    return [
        (
            {end: above(piece["ways"][f"line, {end}"], "test") for end in ENDS},
            {
                share["name"].removesuffix(" - SGD"): share["share"]
                for share in piece["projection"]["shares"][: len(ENDS)]
            },
        )
        for piece in pieces
        if piece["projection"] and all(f"line, {end}" in piece["ways"] for end in ENDS)
    ]


def repeat_rows(each: list[tuple[dict[str, float], dict[str, float]]]) -> tuple[Table, str]:
    """Both measures over all starts, and what may be said of their paired differences to the control."""
    rows = [["from SGD to", "test error above the worse end, points", "share in the leading directions"]]
    words = []
    for end in ENDS:
        rise, share = (summary([measures[i][end] for measures in each]) for i in (0, 1))
        rows.append(
            [
                end,
                f"{points(rise['mean'])} ± {points(rise['sd'])}",
                f"{share['mean']:.4f} ± {share['sd']:.4f}",
            ]
        )
        if end == CONTROL:
            continue
        for i, what in enumerate(("rise", "share")):
            gap = summary([measures[i][end] - measures[i][CONTROL] for measures in each])
            scale, unit = (100, " points") if i == 0 else (1, "")
            low, high = scale * gap["low"], scale * gap["high"]
            found = "larger" if low > 0 else "smaller" if high < 0 else "not surely different"
            words.append(f"{what} to {end} {found} ({low:+.3g} to {high:+.3g}{unit})")
    return rows, f"Beside the control, 95 % intervals of the mean paired difference: {said(words)}."


def share_rows(projection: Mapping[str, Any]) -> Table:
    rows = [["vector", "length", "share", "times chance"]]
    for share in projection["shares"]:
        rows.append([share["name"], f"{share['norm']:.2f}", f"{share['share']:.4f}", f"{share['ratio']:.1f}"])
    return rows


def flat(projection: Mapping[str, Any]) -> str:
    """What the shares say of the claim that gRDA moves where the loss is flat."""
    shares = {share["name"]: share for share in projection["shares"]}
    control = shares[f"{CONTROL} - SGD"]
    sparse = [shares[f"{end} - SGD"] for end in ENDS if end != CONTROL]
    low, high = control["interval"]
    parts = [
        f"A random direction has {control['baseline']:.4f} of its length in the {projection['k']} leading directions "
        f"(95 % of them between {low:.4f} and {high:.4f}); "
        + said([f"{s['name']} has {s['share']:.4f} ({s['ratio']:.1f} times that)" for s in sparse])
        + f"; the control has {control['share']:.4f} ({control['ratio']:.1f} times), SGD's own weights "
        f"{shares['SGD']['share']:.4f}."
    ]
    below = [s["name"] for s in sparse if s["share"] < control["share"]]
    if len(below) == len(sparse):
        parts.append(
            "From this start gRDA leaves SGD by flatter directions than a second run of SGD does, as the paper has it."
        )
    elif below:
        parts.append(
            f"Of gRDA, {said(below)} leaves SGD by flatter directions than the control, the other does not."
        )
    else:
        parts.append(
            "From this start gRDA leaves SGD by no flatter directions than a second run of SGD does."
        )
    above_chance = [s["name"] for s in sparse if s["share"] > s["interval"][1]]
    if above_chance:
        parts.append(
            f"More of {said(above_chance)} lies in them than of nearly all random directions: the share is small, but not "
            "smaller than chance would give."
        )
    return " ".join(parts)


def spectrum_rows(curvature: Mapping[str, Any], densities: Mapping[str, Any]) -> Table:
    rows = [["network", "largest eigenvalues", "tenth", "how many above 1", "trace"]]
    for name in RUNS:
        pairs = curvature.get(f"leading, {name}")
        if pairs is None:
            rows.append([name, "not run", "", "", ""])
            continue
        density = densities.get(name)
        counts = (
            [next(rest for cut, *rest in density["above"] if cut == 1), density["trace"]] if density else []
        )
        values = pairs["values"]
        rows.append(
            [
                name,
                ", ".join(f"{value:.3g}" for value in values[:3]),
                f"{values[-1]:.3g}",
                *([counted(mean, error) for mean, error in counts] or ["not run"] * 2),
            ]
        )
    return rows


def counted(mean: float, error: float) -> str:
    """An estimate by quadrature, or that it says nothing."""
    text = f"{mean:.3g} ± {error:.2g}"
    return text if error < mean / 2 else f"not resolved ({text})"


def steeper(curvature: Mapping[str, Any]) -> str:
    """Largest eigenvalues of gRDA beside those of SGD."""
    tops = {
        name: curvature[f"leading, {name}"]["values"][0] for name in RUNS if f"leading, {name}" in curvature
    }
    if "SGD" not in tops or len(tops) < 2:
        return ""
    times = [f"{top / tops['SGD']:.1f} times at {name}" for name, top in tops.items() if name != "SGD"]
    words = f"The largest eigenvalue is {tops['SGD']:.3g} at SGD, and of that " + said(times) + "."
    if projection := curvature.get("projection"):
        lengths = {share["name"]: share["norm"] for share in projection["shares"]}
        words += (
            " Curvature depends on the scale of the weights, whose length is "
            + said([f"{lengths[name]:.1f} at {name}" for name in tops])
            + ": what is sharper in these coordinates need not generalize worse."
        )
    return words


def function_rows(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            "networks",
            "agreement % (95 % interval)",
            "Jensen-Shannon, nats",
            "logit cosine",
            "CKA: mean of layers",
            "lowest",
        ]
    ]
    for pair in found["pairs"]:
        cka = {layer: value for layer, value in pair["cka"].items() if value is not None}
        lowest = min(cka, key=cka.__getitem__)
        low, high = pair["interval"]
        rows.append(
            [
                f"{pair['a']} · {pair['b']}",
                f"{percent(pair['agreement'])} ({percent(low, 1)} to {percent(high, 1)})",
                f"{pair['divergence']:.4f}",
                f"{pair['logit_cosine']:.3f}",
                f"{sum(cka.values()) / len(cka):.3f}",
                f"{cka[lowest]:.3f} ({lowest})",
            ]
        )
    return rows


def alike(found: Mapping[str, Any]) -> str:
    """Whether gRDA answers as SGD does, beside the control."""
    by = {(pair["a"], pair["b"]): pair for pair in found["pairs"]}
    control = by["SGD", CONTROL]
    parts = []
    for end in ENDS:
        if end == CONTROL or ("SGD", end) not in by:
            continue
        pair = by["SGD", end]
        apart = pair["interval"][1] < control["interval"][0]
        parts.append(
            f"{end} answers as SGD on {percent(pair['agreement'])} % of the test images, the control on "
            f"{percent(control['agreement'])} %: {'less often' if apart else 'no difference beyond the intervals'}."
        )
    return " ".join(parts)


def section(name: str, result: dict[str, Any]) -> str:
    """First result."""
    found, size = result["parts"], result["sizes"]
    epochs = result["training"].get("epochs", 1)
    parts = [
        f"{epochs} epochs each from one start: SGD, target gRDA at 90 and 95 % on the same batches, and as control a second SGD "
        "run on the batches in another order. One run of each, unless said. Values along ways and on planes are measured on the "
        f"first images of fixed permutations: ways on {size['train']:,} training and {size['test']:,} test images, planes and "
        f"curvature on {size['plane']:,} and {size['curvature']:,} training images; bends are trained on "
        f"{size['curve']:,} training images, {size['epochs']} epochs."
    ]
    start = found.get("networks", {}).get("start")
    if start and start["accuracy"] > 0.5:
        parts.append(
            "The start is a trained network here, not one at random: what follows is about fine-tuning."
        )
    parts += [markdown(run_rows(found.get("networks", {})))]
    if ways := found.get("ways"):
        parts += [
            valley(ways),
            markdown(way_rows(ways)),
            next(iter(ways.values()))["batch_norm"].capitalize() + ".",
        ]
        parts += [
            "Errors in points. A barrier is the largest value on the way minus the mean of its ends, so unequal ends alone "
            "give one; the last but one column, by which is judged here, is what is left above the worse end."
        ]
    else:
        parts.append("Ways: not run.")
    each = starts(found)
    if len(each) > 1:
        rows, words = repeat_rows(each)
        parts += [
            f"**Over {len(each)} starts**, this one and others, mean ± standard deviation. " + words,
            markdown(rows),
        ]
    if functions := found.get("functions", {}).get("functions"):
        parts += [
            alike(functions),
            f"Answers on {functions['inputs']:,} test images, CKA on {functions['cka_inputs']:,}:",
            markdown(function_rows(functions)),
        ]
    else:
        parts.append("Functions: not run.")
    if curvature := found.get("curvature"):
        if projection := curvature.get("projection"):
            parts += [
                "**Is the way to gRDA flat?** " + flat(projection),
                markdown(share_rows(projection)),
            ]
        parts += [
            f"Hessian of the loss on {size['curvature']:,} training images. " + steeper(curvature),
            markdown(table := spectrum_rows(curvature, found.get("density", {}))),
        ]
        if any("not resolved" in cell for row in table for cell in row):
            parts.append(
                "Not resolved: the quadrature sees the bulk of the eigenvalues near zero as a point or two, and beside "
                "eigenvalues so large these can fall on either side of 1."
            )
    else:
        parts.append("Curvature: not run.")
    parts.append(f"![Between SGD and gRDA](landscape-{name}-valley.png)")
    return "\n\n".join(parts)
