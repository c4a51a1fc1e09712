"""Speed, memory and size: every goal of the benchmarks beside what was measured."""

from typing import Any

from results.pages._shared import Chapter, load, markdown


def goal_row(goal: dict[str, Any]) -> list[str]:
    """What, what was asked, what came out with its spread over repetitions, and whether that is enough."""
    limit = f"{'≤' if goal['at_most'] else '≥'} {goal['limit']:g}"
    spread = f"{goal['low']:.3g} to {goal['high']:.3g}" if goal["low"] != goal["high"] else ""
    return [goal["what"], limit, f"{goal['measured']:.3g}", spread, "met" if goal["met"] else "**missed**"]


def section(_: Any) -> str:
    result = load("benchmarks")
    if result is None:
        return "Not run."
    parts = [
        "Made by `python -m benchmarks`; ratios are of minima in one run, with their spread over rounds. Machines differ from "
        "part to part, and are shared."
    ]
    for part in result["parts"].values():
        env = part["environment"]
        where = f"torch {env['torch']}, {env['cpu']}, {env['threads']} threads, load before {env['load before']:.1f}"
        rows = [["what", "goal", "measured", "spread", ""], *map(goal_row, part["goals"])]
        parts += [f"{part['about'].rstrip('.')} ({where}):", markdown(rows)]
    return "\n\n".join(parts)


CHAPTER = Chapter("Speed, memory and size", None, section)
