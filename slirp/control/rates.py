"""Bytes per second of each flow, from two looks at it.

`Rates` remembers what each flow had moved when somebody looked last; the next look within
REMEMBERED_FOR gives the rate between the two. A flow that is new to it has its average so far.

Does not do: count, or look by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

REMEMBERED_FOR: Final = 60.0  # seconds; after that a look says nothing about now
LEAST: Final = 0.05  # seconds between two looks that make a rate; sooner, the last one stands
COUNTED: Final = ("octets_to_guest", "octets_to_host")


class _Look:
    __slots__ = ("at", "counts", "rates")

    def __init__(self, at: float, counts: tuple[int, ...], rates: tuple[float, ...]) -> None:
        self.at = at
        self.counts = counts
        self.rates = rates


class Rates:
    """What was seen of flows, by id; as many as there were flows at the last look."""

    def __init__(self) -> None:
        self._looks: dict[str, _Look] = {}

    def added(self, flows: Iterable[dict[str, Any]], now: float) -> Iterator[dict[str, Any]]:
        """The same flows, those that count bytes with `octets_per_s_…`."""
        seen: dict[str, _Look] = {}
        for flow in flows:
            if COUNTED[0] in flow:
                look = seen[flow["id"]] = self._look(flow, now)
                for name, rate in zip(COUNTED, look.rates, strict=True):
                    flow[name.replace("octets", "octets_per_s", 1)] = round(rate)
            yield flow
        self._looks = seen

    def _look(self, flow: dict[str, Any], now: float) -> _Look:
        counts = tuple(flow[name] for name in COUNTED)
        last = self._looks.get(flow["id"])
        if last is not None and now - last.at < LEAST:
            return last
        if last is None or now - last.at > REMEMBERED_FOR:
            last = _Look(now - max(flow["age"], LEAST), (0,) * len(counts), ())
        passed = now - last.at
        pairs = zip(counts, last.counts, strict=True)
        return _Look(now, counts, tuple(max(0, new - old) / passed for new, old in pairs))
