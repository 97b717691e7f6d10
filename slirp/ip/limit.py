"""How many errors a port is told per second: a token bucket (RFC 1812 §4.3.2.8).

A guest that floods a destination which nothing leads to is told so ERRORS_PER_SECOND times a
second, ERRORS_AT_ONCE in a row, and then counts for nothing until a token is there. The figures are
Linux's own for all ICMP that a host originates (net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst); a
traceroute with its sixteen probes at once stays below. Errors that come from outside are passed on
without a limit: whoever made them has one.

Does not do: sending, or choosing what to drop.
"""

from __future__ import annotations

from typing import Final

ERRORS_PER_SECOND: Final = 1000.0
ERRORS_AT_ONCE: Final = 50


class TokenBucket:
    """`take` is allowed `burst` times in a row and `rate` times a second."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, now: float, rate: float = ERRORS_PER_SECOND, burst: int = ERRORS_AT_ONCE):
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at = now

    def take(self, now: float) -> bool:
        """May one pass?"""
        gained = (now - self._filled_at) * self._rate
        self._tokens = min(self._burst, self._tokens + max(0.0, gained))
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
