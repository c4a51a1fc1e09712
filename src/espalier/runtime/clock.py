"""Timing that can be believed: interleaved rounds, minima with their spread, and reasons not to conclude."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Clock = Callable[[], float]

NOISY = 1.25
"""A row whose median is this many times its minimum shared the machine with something."""
SHORT = 0.01
"""Seconds under which the state of the caches decides, so that a sample is taken right after an uncounted run."""
APART = 1.05
"""Two measurements of one and the same thing may differ by this factor, not more."""


def steady(threads: int) -> Clock:
    """The clock to decide by: with one thread its processor time, which leaves out what others took of the machine.

    With more threads there is only the clock on the wall.
    """
    return time.thread_time if threads == 1 else time.perf_counter


@dataclass(frozen=True)
class Timing:
    """Repeated durations of one thing, in seconds and in the order they were measured.

    Args:
        samples: at least one.
    """

    samples: tuple[float, ...]

    @property
    def minimum(self) -> float:
        """The shortest: what the machine can do when nothing disturbs it."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """What one may expect here and now."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median; 0.0 for fewer than four samples."""
        if len(self.samples) < 4 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget: float = float("inf"),
    least: int = 2,
    keep: float = float("inf"),
    always: frozenset[str] = frozenset(),
    warm: bool = False,
    clock: Clock = time.perf_counter,
    progress: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time functions in turn (a b c, a b c, ...), so that a machine that drifts is unfair to nobody.

    Each is called once before, uncounted, unless all are `warm`; what takes less than 10 ms also before each
    sample, since it would otherwise pay for the caches that its neighbor in the round left behind.

    Args:
        functions: name -> what to time.
        rounds: samples of each, at most.
        budget: seconds after which no new round begins, once there are `least`.
        least: rounds there are in any case.
        keep: after `least` rounds, what takes more than `keep` times the shortest minimum is measured no further;
            before, what takes more than the square of that.
        always: names that are never dropped.
        warm: whether each has been called already.
        clock: seconds, from any origin.
        progress: called after each round.

    Returns:
        Name -> timing, in the order given; what was dropped has fewer samples.
    """
    if not warm:
        for function in functions.values():
            function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    alive = dict(functions)
    start = clock()
    for done in range(rounds):
        if done >= least and clock() - start > budget:
            break
        for name, function in alive.items():
            if samples[name] and min(samples[name]) < SHORT:
                function()  # what the one before it left in the caches would count as its own time
            before = clock()
            function()
            samples[name].append(clock() - before)
        limit = min(min(samples[name]) for name in alive) * (keep if done + 1 >= least else keep * keep)
        alive = {n: f for n, f in alive.items() if n in always or not min(samples[n]) > limit}
        if progress is not None:
            progress()
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def resolution(clock: Clock = time.perf_counter, changes: int = 20, reads: int = 200_000) -> float:
    """The smallest step in which a clock is seen to move, in seconds; infinite if it is not seen to move."""
    smallest, seen = float("inf"), 0
    last = clock()
    for _ in range(reads):
        now = clock()
        if now > last:
            smallest, seen = min(smallest, now - last), seen + 1
            if seen == changes:
                break
        last = now
    return smallest


def doubts(
    timings: Mapping[str, Timing], *, step: float = 0.0, twins: tuple[str, str] | None = None
) -> tuple[str, ...]:
    """Reasons why nothing may be concluded from these timings; none if they can be believed.

    Looked for: a clock whose step is not small beside what it measures; durations that snap to multiples of a
    step, as when a scheduler hands out the processor in slices; medians far above minima; one and the same
    thing, measured twice in the same rounds, that differs from itself.

    Args:
        timings: name -> timing, measured in the same rounds.
        step: what `resolution` said of the clock.
        twins: two names behind which is the same function.
    """
    found = []
    shortest = min(timing.minimum for timing in timings.values())
    if step > shortest / 100:
        found.append(
            f"the clock moves in steps of {step * 1e3:.3g} ms and the shortest run took {shortest * 1e3:.3g} ms"
        )
    if (slice_ := snapping(timings)) is not None:
        found.append(
            f"times snap to multiples of {slice_ * 1e3:.3g} ms, as when a scheduler hands out slices"
        )
    noisy = [name for name, timing in timings.items() if timing.median > NOISY * timing.minimum]
    if noisy:
        worst = max(noisy, key=lambda name: timings[name].median / timings[name].minimum)
        ratio = timings[worst].median / timings[worst].minimum
        found.append(
            f"the machine is busy: the median of {worst} is {ratio:.2f} times its minimum "
            f"({len(noisy)} of {len(timings)} rows are above {NOISY})"
        )
    if twins is not None:
        a, b = (timings[name].minimum for name in twins)
        if max(a, b) > APART * min(a, b):
            found.append(
                f"{twins[0]} measured twice differs from itself by a factor of {max(a, b) / min(a, b):.2f}"
            )
    return tuple(found)


def snapping(timings: Mapping[str, Timing]) -> float | None:
    """The step to whose multiples the samples snap, or None: one row shows it if it meets two multiples.

    A row snaps if nine of ten samples lie within 3 % of an integer multiple of its minimum, a tenth of them or
    more at the second or a higher multiple; and if the samples of a row are few different numbers.
    """
    for timing in timings.values():
        n, low = len(timing.samples), timing.minimum
        if n < 5 or not low:
            continue
        distinct = sorted({round(sample, 9) for sample in timing.samples})
        if len(distinct) <= n // 2:
            return min((b - a for a, b in pairwise(distinct)), default=low)
        multiples = [round(sample / low) for sample in timing.samples]
        close = sum(abs(sample / low - m) <= 0.03 * m for sample, m in zip(timing.samples, multiples))
        if close >= 0.9 * n and sum(m > 1 for m in multiples) >= max(2, n / 10):
            return low
    return None
