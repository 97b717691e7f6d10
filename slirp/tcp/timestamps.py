"""The timestamps option of one connection (RFC 7323): our clock, and what we echo.

The clock is milliseconds from an offset of the connection's own, so that a guest cannot read the
host's uptime from it. `recent` is TS.Recent, which PAWS and the echo need; the connection decides
which segments may move it. Where the guest's SYN had no timestamps, `length` is 0 and nothing is
sent.

Does not do: choose the offset (slirp.tcp.initial), decide when TS.Recent moves.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from slirp.tcp.seq import HALF, MASK

OPTION_LEN: Final = 12  # bytes in every segment, once negotiated: two NOPs and the option
PAWS_IDLE: Final = 24 * 86400.0  # seconds after which TS.Recent says nothing, RFC 7323 §5.5
ECHO_MAX: Final = 60_000  # milliseconds; an echo older than that says nothing of the round trip

_pack: Final = Struct("!III").pack  # RFC 7323 appendix A
_HEAD: Final = 0x0101080A


class Timestamps:
    """Whether timestamps are on, and their numbers."""

    __slots__ = ("length", "offset", "recent")

    def __init__(self, offset: int, *, on: bool = False) -> None:
        self.length = OPTION_LEN if on else 0  # bytes of the option in a segment
        self.offset = offset
        self.recent = 0  # TS.Recent

    def turn(self, first: int | None) -> None:
        """Negotiated: `first` is the TSval of the guest's SYN, None where it has none."""
        self.length = 0 if first is None else OPTION_LEN
        if first is not None:
            self.recent = first

    def is_old(self, tsval: int, silence: float) -> bool:
        """Is it from before TS.Recent, of a guest that was heard `silence` seconds ago? (PAWS)"""
        return (tsval - self.recent) & MASK >= HALF and silence < PAWS_IDLE

    def clock(self, now: float) -> int:
        """TSval at this instant."""
        return (int(now * 1000) + self.offset) & MASK

    def option(self, now: float) -> bytes:
        """The option of a segment that leaves now; empty while timestamps are off."""
        if not self.length:
            return b""
        return _pack(_HEAD, (int(now * 1000) + self.offset) & MASK, self.recent)

    def pair(self, now: float) -> tuple[int, int] | None:
        """(TSval, TSecr) for an option list, or None while timestamps are off."""
        return (self.clock(now), self.recent) if self.length else None

    def round_trip(self, tsecr: int, now: float) -> float | None:
        """Seconds since the segment that is echoed left; None where that cannot be."""
        elapsed = (self.clock(now) - tsecr) & MASK
        return elapsed / 1000 if elapsed < ECHO_MAX else None
