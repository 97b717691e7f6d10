"""A chain of descriptors, which is a buffer that the driver made available; and what breaks a ring.

A ring (nic/virtio/split.py, packed.py) turns what the driver wrote into a `Chain`, once: addresses
and lengths are read one time each, and what the driver writes afterwards changes nothing. Whether
an address is memory shows where it is opened.

Each descriptor is 16 bytes: address 8, length 4, flags and next 2 each, which is read as two words
of 64 bits. A ring's buffers all go one way: a transmit ring has buffers that the device reads, a
receive ring such as it writes. One that is meant for the other way breaks the ring, and so does a
chain of more than `CHAIN_MAX` descriptors, or more than the ring has, which is how a loop ends.

`BrokenRing` is the only thing that a ring raises for what a driver wrote, beside `DmaFault`. There
is no going on after it: the indices can no longer be believed.

Does not do: the rings' own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from dma.iovec import PhysAddr, Range
from nic.virtio.features import Features

NEXT: Final = 1  # flags of a descriptor, virtio 1.2 §2.7.5
WRITE: Final = 2
INDIRECT: Final = 4

DESCRIPTOR_LEN: Final = 16  # bytes
CHAIN_MAX: Final = 1024  # descriptors of one buffer; a frame of 64 KiB needs 19
PIECES_MAX: Final = 1024  # of the buffers for one frame; a call of the kernel's takes as many
SIZE_MAX: Final = 32768  # descriptors of a ring
LENGTH_MASK: Final = 0xFFFFFFFF

DESCRIPTORS: Final = 0  # areas that a device writes into
DEVICE: Final = 2

Wrote = Callable[[int, int, int], None]  # area, offset in it, bytes


class BrokenRing(Exception):
    """The driver wrote something that no driver may write."""


class Chain(NamedTuple):
    """One buffer of the driver's."""

    number: int  # how many buffers of this ring were taken up to it
    at: int  # its place: where the ring would look for it again
    id: int  # what the driver knows it by
    span: int  # descriptors that it takes in the ring
    ranges: list[Range]  # in order, none empty; as many as descriptors were looked at
    room: int  # bytes


class Areas(NamedTuple):
    """Where a ring lies: host views of its three parts."""

    descriptors: memoryview
    driver: memoryview  # split: available ring; packed: the driver's events
    device: memoryview  # split: used ring; packed: the device's events


class Opener(Protocol):
    """How a ring finds an indirect table, and a device its header."""

    def view(self, addr: PhysAddr, length: int, /) -> memoryview:
        """One host view; raises DmaFault."""


class Ring(Protocol):
    """A virtqueue from the device's side."""

    size: int  # descriptors
    lengths: tuple[int, int, int]  # bytes of its areas
    wrote: Wrote | None  # told of each write into one of them

    def bind(self, areas: Areas | None) -> None:
        """The ring lies here from now on; None: nowhere, for now."""

    def take(self) -> Chain | None:
        """The next buffer that is available, in order."""

    def take_room(self, need: int, least: int) -> list[Chain]:
        """Buffers with room for so many bytes, or as many as there are. Fewer than `least` bytes
        of room break the ring, and so do more than PIECES_MAX pieces."""

    def rewind(self, chain: Chain) -> None:
        """This one and those after it were not taken after all."""

    def push(self, chain: Chain, length: int) -> None:
        """The buffer is used: `length` bytes were written."""

    def push_filled(self, chains: Sequence[Chain], stored: int) -> None:
        """These are used: `stored` bytes were written into them, from the first on."""

    def publish(self) -> bool:
        """Show the driver what was pushed; is it to be interrupted?"""

    def want_kick(self) -> bool:
        """Have the driver kick when it makes buffers available; is one there already?"""

    def waive_kick(self) -> None:
        """Kicks are not needed until `want_kick`."""

    def base(self) -> int:
        """Where another device may go on: SET_VRING_BASE takes it."""


def one_way(flags: int, way: int) -> None:
    """Check that a buffer is for this direction: `way` is WRITE or 0."""
    if flags & WRITE != way:
        raise BrokenRing("has a buffer for the other direction in a ring")


def no_bytes() -> BrokenRing:
    """What is wrong with a descriptor without a length."""
    return BrokenRing("has a descriptor of no bytes")


def check_pieces(pieces: int) -> None:
    """Of one frame's receive buffers."""
    if pieces > PIECES_MAX:
        raise BrokenRing(f"has receive buffers in more than {PIECES_MAX} pieces for one frame")


def follow(words: Sequence[int], index: int, way: int, most: int) -> list[Range]:
    """The buffers of a chain in a table of descriptors, each word of which is read once.

    `words` has two for each descriptor. Ends with a descriptor without NEXT, or before one that is
    INDIRECT, whose range is then the last and has a negative length.
    """
    ranges: list[Range] = []
    count = len(words) >> 1
    while True:
        if index >= count:
            raise BrokenRing(f"has descriptor {index} in a table of {count}")
        at = 2 * index
        word = words[at + 1]
        addr, length, flags = words[at], word & LENGTH_MASK, word >> 32
        if flags & INDIRECT:
            if flags & NEXT or not length:
                raise BrokenRing("has an indirect descriptor with a next one, or without a table")
            ranges.append((addr, -length))
            return ranges
        one_way(flags, way)
        if not length:
            raise no_bytes()
        ranges.append((addr, length))
        if not flags & NEXT:
            return ranges
        most -= 1
        if most <= 0:
            raise BrokenRing("has a chain that does not end")
        index = word >> 48


def table_words(opener: Opener, addr: int, length: int, features: Features) -> list[int]:
    """An indirect table, read at once."""
    count, odd = divmod(length, DESCRIPTOR_LEN)
    if not features.indirect:
        raise BrokenRing("has an indirect descriptor, which was not agreed upon")
    if odd or not 0 < count <= CHAIN_MAX:
        raise BrokenRing(f"has an indirect table of {length} bytes")
    return opener.view(PhysAddr(addr), length).cast("Q").tolist()


def room_of(ranges: Sequence[Range]) -> int:
    """Bytes."""
    if len(ranges) == 1:
        return ranges[0][1]
    return sum([length for _, length in ranges])
