"""A clock that stands still until told otherwise: time is an argument everywhere."""

from __future__ import annotations


class Clock:
    """Monotonic seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def advance(self, seconds: float) -> float:
        """Later by so much; the new instant."""
        assert seconds >= 0.0, "time does not run backwards"
        self.now += seconds
        return self.now

    def until(self, instant: float) -> float:
        """At that instant, unless it has passed already."""
        self.now = max(self.now, instant)
        return self.now
