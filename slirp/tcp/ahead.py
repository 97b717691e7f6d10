"""Bytes that arrived ahead of their turn: which they are, never what they hold.

Where the guest's segments come out of order, the relay keeps copies of those ahead of RCV.NXT and
this keeps their ranges: it decides what is new (a kept range never overlaps another, nor bytes
that were passed on), how far RCV.NXT jumps when a gap closes, and which SACK blocks to report, the
range of the latest segment first (RFC 2018 §4).

Bounded three ways, because a guest can send bytes one by one with a gap after each, and a fourth
for all connections together: `Shelf` is what the relay has left. At a bound the segment is not kept
and the guest sends it again in its turn.
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.seq import MASK

AHEAD_RANGES_MAX: Final = 32
AHEAD_OCTETS_MAX: Final = 1 << 20
AHEAD_SEGMENTS_MAX: Final = 1024  # copies that the relay holds

Span = tuple[int, int]  # [left, right) in sequence space


class Shelf:
    """The room that many connections share for bytes ahead of their turn; the relay keeps count.

    It may go below zero, by one segment: a connection asks only whether there is any. A shelf may
    be part of a larger one, and is full when either is.
    """

    __slots__ = ("_size", "_whole", "left")

    def __init__(self, size: int, whole: Shelf | None = None) -> None:
        self._size = size  # bytes
        self.left = size
        self._whole = whole

    def resize(self, size: int) -> None:
        """It has so much room from now on; what is on it stays."""
        self.left += size - self._size
        self._size = size

    def is_full(self) -> bool:
        """Is there no room at all?"""
        return self.left <= 0 or (self._whole is not None and self._whole.is_full())

    def charge(self, size: int) -> None:
        """So many bytes are taken; negative: given back."""
        self.left -= size
        if self._whole is not None:
            self._whole.charge(size)


class Ahead:
    """The ranges kept ahead of one connection's RCV.NXT."""

    __slots__ = ("_shelf", "fin_seq", "octets", "ranges", "segments")

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        self.ranges: list[Span] = []  # disjoint, the latest first
        self.octets = 0
        self.segments = 0
        self.fin_seq: int | None = None  # where the guest's FIN stands, when it came early

    def add(self, start: int, stop: int, rcv_nxt: int) -> Span | None:
        """Keep the first run of [start, stop) that is not kept yet: that run, or None."""
        lo = (start - rcv_nxt) & MASK
        hi = lo + ((stop - start) & MASK)
        for left, right in self._offsets(rcv_nxt):
            if left <= lo < right:
                lo = right
            elif lo < left < hi:
                hi = left
        if lo >= hi:
            self._renew((start - rcv_nxt) & MASK, rcv_nxt)
            return None
        if self._is_full(hi - lo):
            return None
        self.octets += hi - lo
        self.segments += 1
        span = (rcv_nxt + lo) & MASK, (rcv_nxt + hi) & MASK
        self._join(span)
        return span

    def _offsets(self, rcv_nxt: int) -> list[Span]:
        """The ranges in order, as distances from RCV.NXT."""
        return sorted(
            ((left - rcv_nxt) & MASK, (right - rcv_nxt) & MASK) for left, right in self.ranges
        )

    def _is_full(self, more: int) -> bool:
        return (
            len(self.ranges) >= AHEAD_RANGES_MAX
            or self.segments >= AHEAD_SEGMENTS_MAX
            or self.octets + more > AHEAD_OCTETS_MAX
            or (self._shelf is not None and self._shelf.is_full())
        )

    def _join(self, span: Span) -> None:
        """Put a new span in front, grown by the ranges that it touches."""
        start, stop = span
        rest = []
        for left, right in self.ranges:
            if right == start:
                start = left
            elif left == stop:
                stop = right
            else:
                rest.append((left, right))
        self.ranges = [(start, stop), *rest]

    def _renew(self, offset: int, rcv_nxt: int) -> None:
        """Move the range that holds a duplicate to the front (RFC 2018 §4)."""
        for index, (left, right) in enumerate(self.ranges):
            if (left - rcv_nxt) & MASK <= offset < (right - rcv_nxt) & MASK:
                self.ranges.insert(0, self.ranges.pop(index))
                return

    def gap(self, rcv_nxt: int) -> int:
        """Bytes from RCV.NXT to the first kept range; MASK where there is none."""
        return min(((left - rcv_nxt) & MASK for left, _ in self.ranges), default=MASK)

    def advance(self, rcv_nxt: int) -> int:
        """RCV.NXT after the kept bytes that are in order now; those leave."""
        for index, (left, right) in enumerate(self.ranges):
            if left == rcv_nxt:
                del self.ranges[index]
                self.octets -= (right - left) & MASK
                rcv_nxt = right
                break
        if not self.ranges:
            self.segments = 0
        return rcv_nxt

    def reaches_beyond(self, seq: int, rcv_nxt: int) -> bool:
        """Whether anything kept lies beyond `seq`."""
        limit = (seq - rcv_nxt) & MASK
        return any((right - rcv_nxt) & MASK > limit for _, right in self.ranges)
