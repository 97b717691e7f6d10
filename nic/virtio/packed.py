"""A packed virtqueue from the device's side: virtio 1.2 §2.8.

One ring of descriptors for both directions, and a word of events for each side. A descriptor is

    address 64, length 32, id 16, flags 16 bits

and it is available when its AVAIL flag is the reader's wrap counter and its USED flag is not; the
counters begin with 1 and turn over each time round the ring. A buffer is one descriptor (or an
indirect one), or several in a row with NEXT, the last of which has the id. A used buffer takes as
many places as it had when it was available, and is written into the first of these with both flags
as the device's counter is; length, id and flags are one word of 64 bits, so none is seen without
the others.

`push` notes and `publish` writes: the places behind the first, and the first one last, behind a
barrier, so that the driver sees all of a turn's buffers or none.

Events: offset and wrap counter 16 bits, flags 16: tell always, never, or at that place (EVENT_IDX).

Where a ring goes on its base says. A front-end may not know better than the first one, or the one
of the last start; then the ring itself is asked, if it can tell (nic/virtio/whereabouts.py).

A driver can make a descriptor available that was not used yet; more than the ring has are never
out at once, and that breaks the ring.

Does not do: see nic/virtio/split.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dma.iovec import Range
from nic.virtio.chain import (
    CHAIN_MAX,
    DESCRIPTOR_LEN,
    DESCRIPTORS,
    DEVICE,
    INDIRECT,
    LENGTH_MASK,
    NEXT,
    WRITE,
    Areas,
    BrokenRing,
    Chain,
    Opener,
    Wrote,
    check_pieces,
    no_bytes,
    one_way,
    room_of,
    table_words,
)
from nic.virtio.features import Features
from nic.virtio.fence import fence
from nic.virtio.whereabouts import place_of

AVAIL: Final = 1 << 7
USED: Final = 1 << 15
FLAGS_AT: Final = 48  # bits of a descriptor's second word
ID_AT: Final = 32

EVENT_LEN: Final = 4  # bytes
OFFSET: Final = 0  # 16-bit words of an event
FLAGS: Final = 1
ENABLE: Final = 0
DISABLE: Final = 1
DESC: Final = 2
WRAP_BIT: Final = 1 << 15
INDEX_MASK: Final = WRAP_BIT - 1
PLAIN: Final = AVAIL | USED | NEXT | WRITE | INDIRECT  # flags that decide
_new = tuple.__new__  # of a NamedTuple, in half the time
FIRST_BASE: Final = WRAP_BIT | WRAP_BIT << 16


class PackedRing:
    """One ring. `way` is chain.WRITE for buffers that the device writes, 0 for those it reads."""

    __slots__ = (
        "_device", "_driver", "_features", "_is_new", "_next", "_number", "_opener", "_out",
        "_pushed", "_table", "_used", "_used_wrap", "_waived", "_way", "_wrap", "lengths", "size",
        "wrote",
    )  # fmt: skip

    def __init__(
        self, size: int, features: Features, opener: Opener, way: int, base: int = FIRST_BASE
    ) -> None:
        self.size = size
        self.lengths = (DESCRIPTOR_LEN * size, EVENT_LEN, EVENT_LEN)
        self.wrote: Wrote | None = None
        self._features = features
        self._opener = opener
        self._way = way
        self._next, self._wrap = _place(base)
        self._used, self._used_wrap = _place(base >> 16)
        if max(self._next, self._used) >= size:
            raise BrokenRing(f"goes on at {base:#x} in a ring of {size}")
        self._is_new = True  # no area was ever bound
        self._number = 0  # buffers taken
        self._out = 0  # descriptors taken and not given back
        self._pushed: list[tuple[Chain, int]] = []
        self._waived = False
        self._table = self._driver = self._device = memoryview(b"")

    def bind(self, areas: Areas | None) -> None:
        if areas is None:
            self._table = self._driver = self._device = memoryview(b"")
            return
        self._table = areas.descriptors.cast("Q")
        self._driver = areas.driver.cast("H")
        self._device = areas.device.cast("H")
        if self._is_new:
            self._is_new = False
            self._find_place()

    def _find_place(self) -> None:
        """The base may be an old one, or none."""
        at, wrap = self._used, self._used_wrap
        if (at, wrap) != (self._next, self._wrap):
            return  # of a back-end that stopped as it should
        words = self._table[1:].tolist()[::2]
        flags = AVAIL | USED if wrap else 0
        if (at, wrap) == (0, 1) or words[at] >> FLAGS_AT & (AVAIL | USED) == flags:
            self._next, self._wrap = place_of(words) or (at, wrap)
            self._used, self._used_wrap = self._next, self._wrap

    # What the driver made available

    def take(self) -> Chain | None:
        at = self._next
        word = self._word()
        if word < 0:
            return None
        wrap = self._wrap
        if word >> FLAGS_AT & INDIRECT:
            chain = self._chain(word, 1, self._indirect(self._table[2 * at], word))
        else:
            chain = self._direct(word)
        self._out += chain.span
        if self._out > self.size:
            raise BrokenRing(f"has more descriptors out than there are in a ring of {self.size}")
        self._next = at + chain.span
        if self._next >= self.size:
            self._next -= self.size
            self._wrap = wrap ^ 1
        self._number += 1
        return chain

    def take_room(self, need: int, least: int) -> list[Chain]:
        chains: list[Chain] = []
        pieces = 0
        while need > 0:
            words = self._plain_words(need)
            if words:
                run = self._take_plain(words)
            else:
                chain = self.take()
                if chain is None:
                    break
                run = [chain]
            for chain in run:
                need -= chain.room
                if chain.room < least:
                    raise BrokenRing(f"has a receive buffer of {chain.room} bytes")
                pieces += len(chain.ranges)
            check_pieces(pieces)
            chains += run
        return chains

    def _plain_words(self, need: int) -> list[int]:
        """The second words of buffers of one descriptor that are available, up to the ring's end
        or to one that is not so plain, with room for `need` bytes."""
        words: list[int] = []
        at, table = self._next, self._table
        mark = (AVAIL if self._wrap else USED) | self._way
        stop = min(self.size, at + self.size - self._out) if table else 0
        while need > 0 and at < stop:
            word = table[2 * at + 1]
            if word >> FLAGS_AT & PLAIN != mark or not word & LENGTH_MASK:
                break
            words.append(word)
            need -= word & LENGTH_MASK
            at += 1
        return words

    def _take_plain(self, words: list[int]) -> list[Chain]:
        fence()  # the addresses are read after that
        at, number, wrap, table = self._next, self._number, self._wrap << 15, self._table
        chains: list[Chain] = []
        for word in words:
            length = word & LENGTH_MASK
            number += 1
            ranges = [(table[2 * at], length)]
            identity = word >> ID_AT & 0xFFFF
            chains.append(_new(Chain, (number, at | wrap, identity, 1, ranges, length)))
            at += 1
        self._out += len(words)
        self._number = number
        self._next = at
        if at == self.size:
            self._next, self._wrap = 0, self._wrap ^ 1
        return chains

    def _word(self) -> int:
        """The second word of the next descriptor; -1: it is not available."""
        if not self._table:
            return -1
        word = self._table[2 * self._next + 1]
        flags = word >> FLAGS_AT
        if bool(flags & AVAIL) != self._wrap or bool(flags & USED) == self._wrap:
            return -1
        fence()  # the rest of it is read after it
        return word

    def _indirect(self, addr: int, word: int) -> list[Range]:
        if word >> FLAGS_AT & NEXT:
            raise BrokenRing("has an indirect descriptor with a next one, or without a table")
        words = table_words(self._opener, addr, word & LENGTH_MASK, self._features)
        ranges: list[Range] = []
        for at in range(0, len(words), 2):
            flags = words[at + 1] >> FLAGS_AT
            if flags & INDIRECT:
                raise BrokenRing("has an indirect table inside another")
            self._collect(ranges, words[at], words[at + 1])
        return ranges

    def _direct(self, word: int) -> Chain:
        table, at, most = self._table, self._next, min(self.size, CHAIN_MAX)
        ranges: list[Range] = []
        self._collect(ranges, table[2 * at], word)
        span = 1
        while word >> FLAGS_AT & NEXT:
            span += 1
            at = at + 1 if at + 1 < self.size else 0
            if span > most:
                raise BrokenRing("has a chain that does not end")
            word = table[2 * at + 1]
            if word >> FLAGS_AT & INDIRECT:
                raise BrokenRing("has an indirect descriptor in a chain")
            self._collect(ranges, table[2 * at], word)
        return self._chain(word, span, ranges)

    def _collect(self, ranges: list[Range], addr: int, word: int) -> None:
        one_way(word >> FLAGS_AT, self._way)
        length = word & LENGTH_MASK
        if not length:
            raise no_bytes()
        ranges.append((addr, length))

    def _chain(self, word: int, span: int, ranges: list[Range]) -> Chain:
        at = self._next | self._wrap << 15
        number = word >> ID_AT & 0xFFFF
        return Chain(self._number + 1, at, number, span, ranges, room_of(ranges))

    def rewind(self, chain: Chain) -> None:
        place, wrap = _place(chain.at)
        back = self._next - place
        self._out -= back if back > 0 or wrap == self._wrap else back + self.size
        self._number = chain.number - 1
        self._next, self._wrap = place, wrap

    # What the device gives back

    def push(self, chain: Chain, length: int) -> None:
        self._pushed.append((chain, length))

    def push_filled(self, chains: Sequence[Chain], stored: int) -> None:
        for chain in chains:
            self._pushed.append((chain, min(chain.room, stored)))
            stored -= chain.room

    def publish(self) -> bool:
        if not self._pushed or not self._table:
            return False
        old, table, first = self._used, self._table, (0, 0)
        for count, (chain, length) in enumerate(self._pushed):
            flags = AVAIL | USED if self._used_wrap else 0
            if length:
                flags |= WRITE
            word = length | chain.id << ID_AT | flags << FLAGS_AT
            if count:
                table[2 * self._used + 1] = word
            else:
                first = 2 * self._used + 1, word
            if self.wrote is not None:
                self.wrote(DESCRIPTORS, DESCRIPTOR_LEN * self._used + 8, 8)
            self._out -= chain.span
            self._used += chain.span
            if self._used >= self.size:
                self._used -= self.size
                self._used_wrap ^= 1
        self._pushed.clear()
        fence()
        table[first[0]] = first[1]
        if self.wrote is not None:
            self.wrote(DESCRIPTORS, 8 * first[0], 8)
        fence()
        return self._must_interrupt(old)

    def _must_interrupt(self, old: int) -> bool:
        flags = self._driver[FLAGS] & 3
        if flags != DESC or not self._features.event_idx:
            return flags != DISABLE
        new = self._used
        event, wrap = _place(self._driver[OFFSET])
        if new <= old:
            old -= self.size
        if wrap != self._used_wrap:
            event -= self.size
        return (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF)

    # Who is told

    def want_kick(self) -> bool:
        if not self._table:
            return False
        if self._features.event_idx:
            self._device[OFFSET] = self._next | self._wrap << 15
            self._set_flags(DESC)
        elif self._waived:
            self._set_flags(ENABLE)
        self._waived = False
        fence()
        return self._word() >= 0

    def waive_kick(self) -> None:
        if not self._waived and self._table:
            self._waived = True
            self._set_flags(DISABLE)

    def _set_flags(self, flags: int) -> None:
        self._device[FLAGS] = flags
        if self.wrote is not None:
            self.wrote(DEVICE, 0, EVENT_LEN)

    def base(self) -> int:
        return self._next | self._wrap << 15 | self._used << 16 | self._used_wrap << 31


def _place(value: int) -> tuple[int, int]:
    """Index and wrap counter."""
    return value & INDEX_MASK, value >> 15 & 1
