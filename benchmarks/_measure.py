"""Ratios measured in one run: candidates take turns, so what else the machine does hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One number that was promised, beside what was measured.

    Args:
        what: the quantity.
        limit: what was promised.
        measured: what the least times give.
        low: least over the rounds.
        high: greatest over the rounds.
        at_most: whether `limit` is an upper bound; a lower one otherwise.
    """

    what: str
    limit: float
    measured: float
    low: float
    high: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether `measured` is on the right side of the limit."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Part:
    """What one benchmark found: its goals, and everything else it measured, ready for JSON."""

    goals: list[Goal]
    measured: dict[str, Any] = field(default_factory=dict)


Times = dict[str, list[float]]
"""Candidate -> seconds, round by round."""


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, wait: Callable[[], None] = lambda: None
) -> Times:
    """Wall time of every candidate once a round; one round before that is not timed.

    `wait` is called before each clock reading, for devices that work on their own.
    """
    times: Times = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(rounds):
        for name, work in candidates.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            times[name].append(time.perf_counter() - start)
    return times


def spread(seconds: list[float]) -> dict[str, float]:
    """Least, middle and greatest, in seconds."""
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def table(times: Times) -> dict[str, dict[str, float]]:
    """`spread` of every candidate."""
    return {name: spread(seconds) for name, seconds in times.items()}


def ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Ratio of the least times, and the least and greatest ratio of a round."""
    rounds = [a / b for a, b in zip(over, under, strict=True)]
    return min(over) / min(under), min(rounds), max(rounds)
