"""How the questions measure: ways to do one thing, turn about, and the median of the rounds.

Ways that are compared run in one process and in turns, each for a few milliseconds per round, so
that whatever else the machine does meets all of them. The clock is the process's CPU time, threads
and kernel included, unless waiting is what is asked about. Ratios are taken within a round, and
their median over the rounds: they move far less than the times.

Does not do: decide what is equal. Each question sees to it that its ways leave the same bytes.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Final, NamedTuple, TypeVar

Way = Callable[[], object]
Item = TypeVar("Item")


class Effort(NamedTuple):
    """How long a question may measure."""

    rounds: int
    run_for: float  # seconds, per way and round
    is_tiny: bool = False  # the smallest and the largest size only

    def some(self, values: Sequence[Item]) -> Sequence[Item]:
        """The sizes to measure at."""
        return (values[0], values[-1]) if self.is_tiny else values


EARNEST: Final = Effort(21, 0.01)
QUICK: Final = Effort(3, 0.003)
TINY: Final = Effort(1, 0.0, is_tiny=True)


class Times:
    """Of each way, µs per call in each round."""

    def __init__(self, rounds: Mapping[str, Sequence[float]]) -> None:
        self._rounds = rounds

    def us(self, way: str) -> float:
        return median(self._rounds[way])

    def ratio(self, way: str, base: str) -> float:
        """How many times as long as `base`."""
        pairs = zip(self._rounds[way], self._rounds[base], strict=True)
        return median(a / b for a, b in pairs)


def turn_about(
    ways: Mapping[str, Way],
    effort: Effort,
    *,
    per_call: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Run the ways in turns. A call does its thing `per_call` times."""
    counts = {name: _count(way, effort.run_for, clock) for name, way in ways.items()}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    with _without_collector():
        for _ in range(effort.rounds):
            for name in order:
                took = _time(ways[name], counts[name], clock)
                rounds[name].append(took * 1e6 / (counts[name] * per_call))
            order.append(order.pop(0))  # nobody always comes first
    return Times(rounds)


def _count(way: Way, run_for: float, clock: Callable[[], float]) -> int:
    """Calls that take about that long."""
    way()
    took = max(_time(way, 1, clock), 1e-7)
    if took * 10 < run_for:
        took = max(_time(way, 10, clock) / 10, 1e-7)
    return max(1, int(run_for / took))


def _time(way: Way, count: int, clock: Callable[[], float]) -> float:
    begun = clock()
    for _ in range(count):
        way()
    return max(clock() - begun, 1e-9)


@contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line that lies closest (least squares)."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - x_mean) ** 2 for x in xs)


def crossing(xs: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Where a ratio passes 1, between two x on a logarithmic scale; None: nowhere."""
    points = list(zip(xs, ratios, strict=True))
    for (x0, r0), (x1, r1) in pairwise(points):
        if (r0 - 1) * (r1 - 1) <= 0 and r0 != r1:
            part = math.log(r0) / (math.log(r0) - math.log(r1))
            return math.exp(math.log(x0) + part * (math.log(x1) - math.log(x0)))
    return None


def progress(text: str) -> None:
    """A line that is written over, where somebody looks on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
