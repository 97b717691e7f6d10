"""Sequence numbers: integers modulo 2^32, compared by their distance (RFC 9293 §3.4).

Two numbers can be compared when they lie less than 2^31 apart, which every window keeps. An
ordinary `<` between them is wrong once in 4 GiB, so nobody writes one: `distance` tells how far one
lies after another, and where only "at or after" or "how far from this edge" is asked, on the path
that every segment takes, `(a - b) & MASK` is written out.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000


def distance(later: int, earlier: int) -> int:
    """How far `later` lies after `earlier`; negative where it lies before."""
    d = (later - earlier) & MASK
    return d - 0x100000000 if d >= HALF else d
