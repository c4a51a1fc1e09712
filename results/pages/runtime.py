"""What pruned networks gain on a CPU, beside what else one could do, and the sizes of their files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from espalier.runtime.clock import APART
from results.pages._shared import BARK, GREY, HERE, LEAF, SKY, Chapter, Table, markdown, percent

NETWORKS = {
    "minilm": "MiniLM, 128 tokens",
    "vgg16": "VGG16, 224×224",
    "resnet50": "ResNet-50, 224×224",
    "resnet20": "ResNet-20, 32×32",
}
DENSE, AGAIN = "dense fp32", "dense fp32, again"
OTHERS = {
    "dense bf16": ("s", GREY),
    "torch.compile": ("D", "#bbbbbb"),
    "int8 dynamic": ("^", BARK),
    "onnxruntime, dense": ("o", SKY),
    "onnxruntime, sparse file": ("o", "none"),
}
FREE = ("its products free", "its sparse layers free")
"""Rows that say what no kernel can gain."""
GREENS = {0.8: "#a9cfb4", 0.9: "#5e9c75", 0.95: LEAF}
LOSS = 1.03
"""What the runtime promises: never more than this many times the time of dense."""
SMALL = 0.13
"""The goal for the file, of the dense one, at 90 % zeros."""
Point = dict[str, Any]


def gains(point: Point) -> dict[str, float]:
    """Way -> times dense fp32."""
    return {row["name"]: row["speedup"] for row in point["rows"] if row["name"] not in (DENSE, AGAIN, *FREE)}


def ours(point: Point) -> list[dict[str, Any]]:
    """The rows of Espalier, by sparsity."""
    return sorted((row for row in point["rows"] if "sparsity" in row), key=lambda row: row["sparsity"])


def doubts(point: Point) -> list[str]:
    """Why a point is not to be quoted: what the detector says, and more zeros that took longer than fewer."""
    found = list(point["doubts"])
    for fewer, more in pairwise(ours(point)):
        if more["min"] > APART * fewer["min"]:
            zeros = [f"{percent(row['sparsity'], 0)} %" for row in (more, fewer)]
            found.append(
                f"{zeros[0]} zeros took {more['min'] / fewer['min']:.2f} times as long as {zeros[1]}"
            )
    return found


def place(point: Point) -> str:
    """One point in words."""
    threads = f"{point['threads']} thread{'s' if point['threads'] > 1 else ''}"
    return f"{NETWORKS[point['network']].split(',')[0]}, batch {point['batch']}, {threads}"


def best(point: Point) -> str:
    """The fastest way; those of Espalier are one."""
    every = {DENSE: 1.0, **gains(point)}
    name = max(every, key=lambda way: every[way])
    return "espalier" if name.startswith("espalier") else name


def speed_rows(points: Sequence[Point]) -> Table:
    """A row for each number of threads and batch size of a network; † where the timings are doubtful."""
    ways = list(dict.fromkeys(way for point in points for way in gains(point)))
    ways.sort(key=lambda way: way.startswith("espalier"))
    rows = [["threads", "batch", "dense fp32, ms", *ways]]
    for point in sorted(points, key=lambda point: (point["threads"], point["batch"])):
        found = gains(point)
        dense = point["rows"][0]["min"] * 1e3
        cells = [f"{found[way]:.2f}" if way in found else "–" for way in ways]
        mark = "†" if doubts(point) else ""
        rows.append([str(point["threads"]), f"{point['batch']}{mark}", f"{dense:.3g}", *cells])
    return rows


def goal_rows(points: Sequence[Point]) -> Table:
    """Each goal, what was measured, and whether that meets it."""
    rows = [["times dense fp32", "zeros %", "measured", "goal", ""]]
    for point in points:
        for row in ours(point):
            if row.get("goal"):
                verdict = "met" if row["speedup"] >= row["goal"] else "**missed**"
                doubt = ", doubtful" if doubts(point) else ""
                zeros, measured = percent(row["sparsity"], 0), f"{row['speedup']:.2f}"
                rows.append([place(point), zeros, measured, f"{row['goal']:g}", verdict + doubt])
    return rows


def bound_rows(points: Sequence[Point]) -> Table:
    """What our network gains, and would gain if a part of it took no time."""
    rows = [
        [
            "times dense fp32",
            "measured",
            "with products that take no time",
            "with sparse layers that take none",
        ]
    ]
    for point in points:
        speeds = {row["name"]: row["speedup"] for row in point["rows"]}
        if point["threads"] == 1 and all(name in speeds for name in FREE):
            last = ours(point)[-1]
            where = f"{place(point)}, {percent(last['sparsity'], 0)} % zeros"
            rows.append([where, f"{last['speedup']:.2f}", *(f"{speeds[name]:.2f}" for name in FREE)])
    return rows


def file_rows(files: dict[str, list[dict[str, float]]]) -> Table:
    """Sizes, of the whole file and of the tensors that were pruned."""
    rows = [["sparse file", "zeros %", "bytes", "of the dense file %", "pruned tensors: of dense %"]]
    for name, sizes in files.items():
        for size in sizes:
            share = size["sparse"] / size["dense"]
            tensors = size["sparse, pruned tensors"] / size["dense, pruned tensors"]
            zeros = percent(size["zeros"], 1)
            cells = [f"{size['sparse']:,.0f}", percent(share, 1), percent(tensors, 1)]
            rows.append([NETWORKS[name].split(",")[0], zeros, *cells])
    return rows


def in_words(points: list[dict[str, Any]]) -> Iterator[str]:
    """What follows, goal by goal, each sentence from the numbers."""
    from results.runtime import GOALS

    goals = [(row["speedup"], row["goal"]) for p in points for row in ours(p) if row.get("goal")]
    met = sum(speed >= goal for speed, goal in goals)
    yield f"Goals for speed: {len(goals)} of {len(GOALS)} measured, {met} met, {len(goals) - met} missed."
    sound = [point for point in points if not doubts(point)]
    if every := [(row["speedup"], row["sparsity"], point) for point in sound for row in ours(point)]:
        least, sparsity, point = min(every, key=lambda item: item[0])
        lost = sum(speed < 1 / LOSS for speed, _, _ in every)
        yield (
            f"Never a loss: {'kept' if not lost else f'broken {lost} times'} in {len(every)} measurements; the least is "
            f"{least:.2f} times dense ({place(point)}, {percent(sparsity, 0)} % zeros)."
        )
    if len(sound) < len(points):
        yield f"{len(points) - len(sound)} of {len(points)} points are doubtful and not judged so."
    fastest = Counter(best(point) for point in points)
    named = ", ".join(f"{way} in {count}" for way, count in fastest.most_common())
    yield f"The fastest way of all was, in {len(points)} points: {named}."
    beaten = [
        max(row["speedup"] for row in ours(p)) > gains(p)["dense bf16"]
        for p in points
        if "dense bf16" in gains(p)
    ]
    if beaten:
        yield f"At its highest sparsity the pruned network is faster than dense bf16 in {sum(beaten)} of {len(beaten)}."


def of_files(files: dict[str, list[dict[str, float]]]) -> str:
    """What the goal for files says."""
    whole = [
        size
        for name, sizes in files.items()
        for size in sizes
        if name != "minilm" and size["sparsity"] == 0.9
    ]
    small = sum(size["sparse"] <= SMALL * size["dense"] for size in whole)
    return (
        f"Files at 90 % zeros take at most {percent(SMALL, 0)} % of dense for {small} of {len(whole)} networks that are pruned "
        "as a whole; of MiniLM only the encoder is."
    )


def missing(result: dict[str, Any]) -> list[str]:
    """Points that were not run."""
    from results.runtime import ORDER

    there = {(p["network"], p["threads"], p["batch"]) for p in result["points"]}
    return [
        place({"network": name, "threads": threads, "batch": batch})
        for name, threads, batch in ORDER
        if (name, threads, batch) not in there
    ]


def section(result: dict[str, Any]) -> str:
    points = result["points"]
    parts = []
    if points:
        machine = points[0]["machine"]
        parts += [
            f"On {machine['processor']} with {machine['vectors']}, torch {machine['torch']}; least time of rounds in turn.",
            " ".join(in_words(points)),
            markdown(goal_rows(points)),
        ]
    for name, title in NETWORKS.items():
        if own := [point for point in points if point["network"] == name]:
            reasons = {way: why for point in own for way, why in point["not run"].items()}
            parts += [f"{title}, in times dense fp32:", markdown(speed_rows(own))]
            parts += [f"Not run: {way} ({why})." for way, why in reasons.items()]
    if len(bounds := bound_rows(points)) > 1:
        parts += [
            "What no kernel can gain: our network, and the same with a part of it left out. What remains without products "
            "are copies and biases beside them; without sparse layers, attention, norms and pointwise functions.",
            markdown(bounds),
        ]
    if doubtful := [f"- {place(point)}: {'; '.join(doubts(point))}" for point in points if doubts(point)]:
        parts += ["† Doubtful, and not to be quoted:", "\n".join(doubtful)]
    if lacking := missing(result):
        parts.append(f"Timings not run: {'; '.join(lacking) if points else 'all'}.")
    parts += [of_files(result["files"]), markdown(file_rows(result["files"]))]
    if points:
        parts.append("![Times dense fp32 of the ways to run a pruned network](runtime.png)")
    return "\n\n".join(parts)


def figure(result: dict[str, Any]) -> None:
    """A panel for each network: what each way gains, by threads and batch."""
    shown = [name for name in NETWORKS if any(point["network"] == name for point in result["points"])]
    if not shown:
        return
    whole = Figure(figsize=(10, 1.2 + 2.6 * ((len(shown) + 1) // 2)))
    panels = whole.subplots((len(shown) + 1) // 2, 2, squeeze=False, sharex=True).flatten()
    for name, axes in zip(shown, panels):
        own = [point for point in result["points"] if point["network"] == name]
        own.sort(key=lambda point: (-point["threads"], -point["batch"]))
        for y, point in enumerate(own):
            _draw(axes, y, point)
        labels = [f"{p['threads']} thr., batch {p['batch']}{' †' if doubts(p) else ''}" for p in own]
        axes.set_yticks(range(len(own)), labels, fontsize=8)
        axes.set_title(NETWORKS[name], fontsize=10, loc="left")
        axes.set_ylim(-0.6, len(own) - 0.4)
        _dress(axes)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(shown) - 2) : len(shown)]:
        axes.set_xlabel("times dense fp32", fontsize=9)
        axes.tick_params(labelbottom=True)
    known = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    whole.legend(known.values(), known, loc="upper center", ncols=5, frameon=False, fontsize=8)
    whole.tight_layout(rect=(0, 0, 1, 1 - 0.5 / whole.get_figheight()))
    whole.savefig(HERE / "runtime.png", dpi=130, bbox_inches="tight")


def _draw(axes: Any, y: int, point: Point) -> None:
    found = gains(point)
    for way, (marker, color) in OTHERS.items():
        if way in found:
            edge = SKY if color == "none" else color
            axes.plot(
                [found[way]],
                [y],
                marker,
                color=color,
                markeredgecolor=edge,
                markersize=5,
                label=way,
                zorder=4,
            )
    rows = ours(point)
    speeds = [row["speedup"] for row in rows]
    axes.plot(speeds, [y] * len(rows), "-", color=LEAF, linewidth=1, alpha=0.5, zorder=1)
    for row in rows:
        label = f"espalier, {percent(row['sparsity'], 0)} % zeros"
        axes.plot(
            [row["speedup"]], [y], "o", color=GREENS[row["sparsity"]], markersize=8, label=label, zorder=3
        )
        if row.get("goal"):
            axes.plot(
                [row["goal"]],
                [y - 0.32],
                "|",
                color=GREENS[row["sparsity"]],
                markersize=9,
                markeredgewidth=2,
                label="goal of that color",
            )


def _dress(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.grid(True, axis="x", color="#e7ece8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


CHAPTER = Chapter("Pruned networks on a CPU", "runtime", section, figure)
