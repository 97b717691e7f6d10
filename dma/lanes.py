"""The exchange of a 16-bit bus's two byte lanes: bytes 2i and 2i+1 of a view change places.

Two ways. In place, by numpy's `byteswap`, which needs no second buffer; and in a buffer of 16-bit
words, an `array`, which swaps itself and needs no import. Both cost about 0.4 µs for a full frame
(benchmarks/lanes.py has these and the slower candidates). numpy is imported by the first exchange
in place, so that programs whose guests never ask for one do not pay for it.

Does not do: partial words. Which byte of a word an odd end leaves alone depends on the address,
and addresses are the business of whoever owns the lanes (dma/ledma.py). An odd length is an error.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache


@cache
def _exchange_words() -> Callable[[memoryview], object]:
    from numpy import dtype, frombuffer, uint16

    word = dtype(uint16)
    return lambda view: frombuffer(view, word).byteswap(True)


def exchange_lanes(view: memoryview) -> None:
    """Exchange the bytes of each 16-bit word where they are."""
    if len(view) % 2:
        raise ValueError(f"lane exchange of {len(view)} bytes: half a word has no lanes")
    if view:
        _exchange_words()(view)


def word_buffer(octets: bytes) -> tuple[array[int], memoryview]:
    """A bounce buffer with these bytes: as words, for `.byteswap()`, and as writable bytes."""
    words = array("H", octets)
    return words, memoryview(words).cast("B")
