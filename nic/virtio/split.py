"""A split virtqueue from the device's side: virtio 1.2 §2.7.

Three parts, each contiguous: a table of descriptors; the available ring, where the driver puts the
heads of chains; the used ring, where the device puts them back with the bytes it wrote.

    available: flags, idx, ring[size], used_event          16 bits each
    used:      flags, idx, ring[size] of (id, len), avail_event    16; id and len 32

Indices run on through 65,535; an entry's place is the index modulo the size, a power of two. The
driver's index is believed as far as the size: one that is further ahead of what was read, or of
what was shown as used, breaks the ring; so no more than the ring holds is ever out. A head is read
once, and so is each word of a descriptor.

Who tells whom: with EVENT_IDX each side writes the index whose passing it wants to be told of
(`avail_event`, `used_event`); without it, flag bit 0 says "do not". A device that is busy asks for
nothing and looks by itself; before it rests it asks, and looks once more (`want_kick`).

A ring begins at the index that it is given, or where the used ring stands if that is some buffers
before: a front-end that connects again may say what the driver has made available by now (Cloud
Hypervisor does), and the buffers in between would be nobody's for ever.

`push` notes and `publish` shows: elements first, the index behind a barrier, and then the look at
whether the driver wants to be told. What is pushed while the ring lies nowhere waits until it does.

Does not do: legacy guests of another byte order; hosts that are big-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nic.virtio.chain import (
    CHAIN_MAX,
    DESCRIPTOR_LEN,
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
    follow,
    no_bytes,
    one_way,
    room_of,
    table_words,
)
from nic.virtio.features import Features
from nic.virtio.fence import fence

NO_KICK: Final = 1  # used.flags
NO_INTERRUPT: Final = 1  # available.flags
WRAP: Final = 0xFFFF
FLAGS: Final = 0  # 16-bit words of both rings
IDX: Final = 1
ENTRIES: Final = 2
MANY: Final = (NEXT | INDIRECT) << 32  # in a descriptor's second word
DIRECTION: Final = WRITE << 32
_new = tuple.__new__  # of a NamedTuple, in half the time


class SplitRing:
    """One ring. `way` is chain.WRITE for buffers that the device writes, 0 for those it reads."""

    __slots__ = (
        "_avail",
        "_avail_event",
        "_elements",
        "_features",
        "_is_new",
        "_late",
        "_mask",
        "_next",
        "_number",
        "_opener",
        "_published",
        "_pushed",
        "_seen",
        "_table",
        "_used",
        "_waived",
        "_way",
        "lengths",
        "size",
        "wrote",
    )

    def __init__(
        self, size: int, features: Features, opener: Opener, way: int, base: int = 0
    ) -> None:
        if size & (size - 1):
            raise BrokenRing(f"has a split ring of {size} descriptors, no power of two")
        self.size = size
        self.lengths = (DESCRIPTOR_LEN * size, 6 + 2 * size, 6 + 8 * size)  # with the events
        self.wrote: Wrote | None = None  # told of each write into the used ring
        self._mask = size - 1
        self._features = features
        self._opener = opener
        self._way = way
        self._next = base & WRAP  # where the next head is read
        self._seen = self._next  # the driver's index, as it was last read
        self._number = 0  # heads read
        self._pushed = self._published = 0
        self._waived = False
        self._is_new = True  # no area was ever bound
        self._late: list[tuple[int, int]] = []  # what was pushed while there was none
        self._table = self._avail = self._used = self._elements = memoryview(b"")
        self._avail_event = memoryview(b"")

    def bind(self, areas: Areas | None) -> None:
        if areas is None:
            self._table = self._avail = self._used = self._elements = memoryview(b"")
            return
        entries_end = 4 + 8 * self.size
        self._table = areas.descriptors.cast("Q")
        self._avail = areas.driver.cast("H")
        self._used = areas.device[:4].cast("H")
        self._elements = areas.device[4:entries_end].cast("Q")
        self._avail_event = areas.device[entries_end:].cast("H")
        if self._is_new:
            self._is_new = False
            self._pushed = self._published = used = self._used[IDX]
            if self._next - used & WRAP <= self.size:
                self._next = self._seen = used
        late, self._late = self._late, []
        for number, length in late:
            self._put(number, length)

    # What the driver made available

    def take(self) -> Chain | None:
        at = self._next
        if at == self._seen and not self._look():
            return None
        head = self._avail[ENTRIES + (at & self._mask)]
        self._next = at + 1 & WRAP
        self._number += 1
        ranges = self._chain(head)
        return Chain(self._number, at, head, 1, ranges, room_of(ranges))

    def take_room(self, need: int, least: int) -> list[Chain]:
        chains: list[Chain] = []
        avail, table, mask, way = self._avail, self._table, self._mask, self._way
        at, number, pieces = self._next, self._number, 0
        while need > 0:
            if at == self._seen:
                self._next = at
                if not self._look():
                    break
            head = avail[ENTRIES + (at & mask)]
            word = table[2 * head + 1] if head <= mask else MANY
            if word & MANY or word & DIRECTION != way << 32:
                ranges = self._chain(head)  # which knows what is wrong
                room = room_of(ranges)
                pieces += len(ranges) - 1
                check_pieces(pieces)
            else:
                room = word & LENGTH_MASK
                ranges = [(table[2 * head], room)]
            if room < least:
                raise BrokenRing(f"has a receive buffer of {room} bytes")
            number += 1
            chains.append(_new(Chain, (number, at, head, 1, ranges, room)))
            at = at + 1 & WRAP
            need -= room
        self._next, self._number = at, number
        check_pieces(len(chains) + pieces)
        return chains

    def _look(self) -> bool:
        """Read the driver's index; is there anything?"""
        if not self._avail:
            return False
        seen = self._avail[IDX]
        ahead = seen - self._next & WRAP
        if ahead > self.size:
            raise BrokenRing(f"is {ahead} buffers ahead in a ring of {self.size}")
        out = seen - self._published & WRAP
        if out > self.size:
            raise BrokenRing(f"has {out} buffers out in a ring of {self.size}")
        self._seen = seen
        if ahead:
            fence()  # what the index stands for is read after it
        return ahead > 0

    def _chain(self, head: int) -> list[tuple[int, int]]:
        if head >= self.size:
            raise BrokenRing(f"has head {head} in a ring of {self.size}")
        word = self._table[2 * head + 1]
        if not word >> 32 & (NEXT | INDIRECT):  # mostly
            one_way(word >> 32, self._way)
            length = word & LENGTH_MASK
            if not length:
                raise no_bytes()
            return [(self._table[2 * head], length)]
        ranges = follow(self._table, head, self._way, min(self.size, CHAIN_MAX))
        if ranges and ranges[-1][1] < 0:
            addr, length = ranges.pop()
            words = table_words(self._opener, addr, -length, self._features)
            inside = follow(words, 0, self._way, CHAIN_MAX)
            if inside and inside[-1][1] < 0:
                raise BrokenRing("has an indirect table inside another")
            ranges += inside
        return ranges

    def rewind(self, chain: Chain) -> None:
        self._number = chain.number - 1
        self._next = chain.at

    # What the device gives back

    def push(self, chain: Chain, length: int) -> None:
        if self._elements:
            self._put(chain.id, length)
        else:
            self._late.append((chain.id, length))

    def _put(self, number: int, length: int) -> None:
        slot = self._pushed & self._mask
        self._elements[slot] = number | length << 32
        if self.wrote is not None:
            self.wrote(DEVICE, 4 + 8 * slot, 8)
        self._pushed = self._pushed + 1 & WRAP

    def push_filled(self, chains: Sequence[Chain], stored: int) -> None:
        elements = self._elements
        if self.wrote is not None or not elements:
            for chain in chains:
                self.push(chain, min(chain.room, stored))
                stored -= chain.room
            return
        mask, at = self._mask, self._pushed
        for _, _, head, _, _, room in chains:
            elements[at & mask] = head | (room if room < stored else stored) << 32
            stored -= room
            at += 1
        self._pushed = at & WRAP

    def publish(self) -> bool:
        old, new = self._published, self._pushed
        if old == new or not self._used:
            return False
        fence()
        self._used[IDX] = new
        self._published = new
        if self.wrote is not None:
            self.wrote(DEVICE, 2, 2)
        fence()
        if self._features.event_idx:
            event = self._avail[ENTRIES + self.size]
            return (new - event - 1 & WRAP) < (new - old & WRAP)
        return not self._avail[FLAGS] & NO_INTERRUPT

    # Who is told

    def want_kick(self) -> bool:
        if not self._used:
            return False
        if self._features.event_idx:
            self._avail_event[0] = self._next
            if self.wrote is not None:
                self.wrote(DEVICE, 4 + 8 * self.size, 2)
        elif self._waived:
            self._set_flags(0)
        self._waived = False
        fence()
        return self._look()

    def waive_kick(self) -> None:
        if not self._waived and self._used:
            self._waived = True
            if not self._features.event_idx:  # else a kick comes once, when the index is passed
                self._set_flags(NO_KICK)

    def _set_flags(self, flags: int) -> None:
        self._used[FLAGS] = flags
        if self.wrote is not None:
            self.wrote(DEVICE, 0, 2)

    def base(self) -> int:
        return self._next
