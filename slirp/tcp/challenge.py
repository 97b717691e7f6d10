"""How many ACKs a second answer segments that may be forged (RFC 5961 §7).

An ACK to whoever sends nonsense tells them nothing they could use, but costs a frame; so they are
counted, by the second.

Does not do: tell which segments those are (slirp.tcp.connection).
"""

from __future__ import annotations

from typing import Final

PER_SECOND: Final = 10


class Challenges:
    """The allowance of one connection."""

    __slots__ = ("_begun_at", "_count")

    def __init__(self, now: float) -> None:
        self._begun_at = now
        self._count = 0

    def allow(self, now: float) -> bool:
        """One more?"""
        if now - self._begun_at >= 1.0:
            self._begun_at = now
            self._count = 0
        self._count += 1
        return self._count <= PER_SECOND
