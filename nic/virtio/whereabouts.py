"""Where a packed ring is, as its descriptors show it.

A split ring has its index in memory; a packed one has not, and a front-end whose back-end died can
only give the base of the last start (QEMU does). But while each buffer is one descriptor (single,
or an indirect table) and buffers are used in order, the flags of a ring, AVAIL and USED of each
descriptor, can have no more than two orders, with the wrap counter w of the first place that is
not used yet:

    used in this round (w w) · available (w !w) · used in the last round (!w !w)
    available for the next round (!w w) · used (w w) · available (w !w)

each part of any length, none included. A ring that is in neither has had chains, of whose
descriptors all but the first keep the flags that the driver gave them; then nothing is known.

Does not do: chains; buffers that were used out of order (nic/vhost_user/inflight.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

AVAIL: Final = 1 << 7
USED: Final = 1 << 15
_BOTH: Final = AVAIL | USED
FLAGS_AT: Final = 48  # bits of a descriptor's second word


def place_of(words: Sequence[int]) -> tuple[int, int] | None:
    """Index and wrap counter of the first descriptor that is not used, by the second words of all
    descriptors; None: nobody can tell."""
    size = len(words)
    runs = [
        (flags, sum(1 for _ in run)) for flags, run in groupby(w >> FLAGS_AT & _BOTH for w in words)
    ]
    for wrap, available, following in ((1, AVAIL, USED), (0, USED, AVAIL)):
        used, before = (_BOTH, 0) if wrap else (0, _BOTH)
        for order in ((used, available, before), (following, used, available)):
            lengths = _match(runs, order)
            if lengths is not None:
                first = lengths[0] + (lengths[1] if order[1] == used else 0)
                return (first, wrap) if first < size else (0, wrap ^ 1)
    return None


def _match(runs: Sequence[tuple[int, int]], order: Sequence[int]) -> list[int] | None:
    """The lengths of the parts, where the runs are in this order."""
    lengths = [0] * len(order)
    at = 0
    for flags, length in runs:
        while at < len(order) and order[at] != flags:
            at += 1
        if at == len(order):
            return None
        lengths[at] = length
        at += 1
    return lengths
