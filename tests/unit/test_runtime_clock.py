from collections.abc import Callable, Iterator

import pytest

from espalier.runtime.clock import Timing, doubts, interleave, resolution


class FakeClock:
    """A clock that moves only when told, and can be read only in whole steps."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        return self.now if not self.step else self.step * int(self.now / self.step + 1e-9)

    def taking(self, durations: Iterator[float] | float) -> Callable[[], None]:
        def function() -> None:
            self.now += durations if isinstance(durations, float) else next(durations)

        return function


def test_timing_is_minimum_median_and_spread() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0))
    assert (timing.minimum, timing.median) == (1.0, 2.5)
    assert timing.spread == pytest.approx((3.25 - 1.75) / 2.5)
    assert Timing((1.0, 2.0)).spread == 0.0


def test_functions_are_timed_in_turn() -> None:
    clock, order = FakeClock(), []

    def function(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.now += seconds

        return run

    found = interleave({"a": function("a", 1.0), "b": function("b", 2.0)}, rounds=3, clock=clock)
    assert order == ["a", "b"] * 4  # one round to warm up
    assert found["a"].samples == (1.0, 1.0, 1.0) and found["b"].samples == (2.0, 2.0, 2.0)


def test_the_budget_ends_rounds_and_losers_are_dropped() -> None:
    clock = FakeClock()
    functions = {"a": clock.taking(1.0), "b": clock.taking(2.0), "c": clock.taking(9.0)}
    found = interleave(
        functions, rounds=100, budget=30.0, least=2, keep=1.5, always=frozenset({"c"}), clock=clock
    )
    assert len(found["b"].samples) == 2 and len(found["a"].samples) == len(found["c"].samples) == 3


def test_what_is_hopeless_is_dropped_after_the_first_round_and_what_is_warm_is_not_warmed() -> None:
    clock = FakeClock()
    functions = {"a": clock.taking(1.0), "b": clock.taking(2.0), "c": clock.taking(3.0)}
    found = interleave(functions, rounds=5, least=3, keep=1.5, warm=True, clock=clock)
    assert [len(found[name].samples) for name in "abc"] == [5, 3, 1]
    assert clock.now == 5 * 1.0 + 3 * 2.0 + 1 * 3.0


def test_resolution_is_the_smallest_step_seen() -> None:
    clock = FakeClock(step=0.25)

    def reading() -> float:
        clock.now += 0.1
        return clock()

    assert resolution(reading) == pytest.approx(0.25)
    assert resolution(lambda: 1.0, reads=10) == float("inf")


def test_a_quantised_clock_is_refused() -> None:
    clock = FakeClock(step=0.024)
    real = {"dense": clock.taking(0.0301), "ours": clock.taking(0.0007)}
    found = interleave(real, rounds=40, clock=clock)
    found = {name: Timing(tuple(s or 0.024 for s in t.samples)) for name, t in found.items()}
    reasons = " ".join(doubts(found, step=0.024))
    assert "the clock moves in steps of 24 ms" in reasons and "snap to multiples of 24 ms" in reasons


def test_scheduler_slices_are_refused_with_a_fine_clock() -> None:
    slices = tuple(0.024 * k + 1e-5 * i for i, k in enumerate([1, 2, 1, 1, 3, 1, 2, 1, 1, 1]))
    assert "slices" in doubts({"ours": Timing(slices)}, step=1e-9)[0]


def test_a_busy_machine_is_refused() -> None:
    quiet = Timing((1.0, 1.01, 1.02, 1.005, 1.015))
    busy = Timing((1.0, 1.4, 1.7, 1.33, 1.6))
    assert doubts({"a": quiet}, step=1e-9) == ()
    assert doubts({"a": quiet, "b": busy})[0].startswith("the machine is busy: the median of b is 1.40 times")


def test_twins_that_differ_are_refused() -> None:
    timings = {"dense fp32": Timing((1.0,) * 4), "again": Timing((1.11, 1.12, 1.115, 1.13))}
    found = doubts(
        {k: Timing(tuple(s + i / 1e4 for i, s in enumerate(t.samples))) for k, t in timings.items()},
        twins=("dense fp32", "again"),
    )
    assert "measured twice differs from itself by a factor of 1.11" in found[0]
