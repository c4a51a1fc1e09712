"""What every page of the results shares."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier._errors import plural

HERE = Path(__file__).parents[1]
LEAF, BARK, SKY, GREY = "#2f6b46", "#9a4a12", "#4477aa", "#777777"
Table = list[list[str]]


@dataclass(frozen=True)
class Chapter:
    """One result: the JSON file it is read from (None: nothing was measured), and what is written and drawn of it."""

    title: str
    name: str | None
    section: Callable[[Any], str]
    figure: Callable[[Any], None] | None = None


def load(name: str) -> Any | None:
    """A result, or None."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}"


def spread(found: dict[str, Any], show: Callable[[float], str] = percent) -> str:
    """Mean ± standard deviation, where there is more than one run."""
    return show(found["mean"]) + (f" ± {show(found['sd'])}" if "sd" in found else "")


def markdown(rows: Table) -> str:
    """Rows of text as a Markdown table; the first is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def grouped(amounts: dict[str, float]) -> list[tuple[float, list[str]]]:
    """Rules whose answers lie within two hundredths of the first share a label."""
    groups: list[tuple[float, list[str]]] = []
    for rule, at in sorted(amounts.items(), key=lambda item: item[1]):
        if groups and at - groups[-1][0] < 0.02:
            groups[-1][1].append(rule)
        else:
            groups.append((at, [rule]))
    return groups


def made(result: dict[str, Any]) -> str:
    env = result["environment"]
    hardware = env["cuda"] or f"{env['cpu']}, {plural(env['threads'], 'thread')}"
    return f"Made by `{result['command']}` (torch {env['torch']}, {hardware})."
