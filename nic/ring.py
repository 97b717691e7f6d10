"""Descriptor rings: arithmetic, and loading and storing one descriptor.

A descriptor is four big-endian words: LADR; status in 15:8 and HADR in 7:0; BCNT, the buffer's
length as a twelve-bit two's complement below four ones; RMD3 or TMD3. It is loaded once into a
value, decided upon, and stored back field by field: what the guest changes meanwhile changes
nothing. The byte with OWN is stored last, and read before anything else: a guest in another
process gives a descriptor back while we look, its address first and OWN last, and whoever reads in
the same order finds the old address with the new OWN.

A position counts on for ever; `Ring.address` is where it becomes an index. A descriptor is opened
for writing when it is loaded, so a fault comes where the chip would meet it, and storing its
status later cannot fail. Nothing is kept from one frame to the next: each load is translated anew.

Later chips of the family have other descriptors (nic/pcnet_memory.py): a `Ring` says how long one
is, and a `DescriptorRing` is given what parses it.

Does not do: the ones above BCNT. The chip ignores them; so do we.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from dma.transfer import Direction, Transfer
from nic.busmaster import ADDRESS_SPACE, BusMaster

DESCRIPTOR_LEN: Final = 8  # bytes
PAGE_LEN: Final = 4096  # bytes: within so many, aligned, all is reachable or nothing
RUN_FIRST: Final = 4  # descriptors opened together first; then twice as many each time

# RMD1 and TMD1, the high byte
OWN: Final = 1 << 7
ERR: Final = 1 << 6
FRAM: Final = 1 << 5  # receive
OFLO: Final = 1 << 4
CRC: Final = 1 << 3
BUFF: Final = 1 << 2
MORE: Final = 1 << 4  # transmit
ONE: Final = 1 << 3
DEF: Final = 1 << 2
STP: Final = 1 << 1
ENP: Final = 1 << 0

# TMD3
TMD3_BUFF: Final = 1 << 15
TMD3_UFLO: Final = 1 << 14
TMD3_LCOL: Final = 1 << 12
TMD3_LCAR: Final = 1 << 11
TMD3_RTRY: Final = 1 << 10

_STATUS: Final = 2  # offset of the byte with OWN
_WORD3: Final = 6
_LOAD: Final = struct.Struct(">HBBH")
_U16: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Ring:
    """Where a ring lies."""

    base: int  # LanceAddr, a multiple of 8
    entries: int  # power of two, 1..128
    step: int = DESCRIPTOR_LEN  # bytes of a descriptor
    space: int = ADDRESS_SPACE  # bytes that the chip can address

    def address(self, position: int) -> int:
        return (self.base + self.step * (position % self.entries)) % self.space


class Descriptor(NamedTuple):
    """RMD0..2 or TMD0..2, as loaded; and where they came from."""

    status: int  # OWN … ENP
    addr: int  # LanceAddr of the buffer
    length: int  # bytes, 1..4096
    view: memoryview

    def store(self, status: int, word3: int | None = None) -> None:
        """Word 3 if there is one, then the status with OWN."""
        if word3 is not None:
            _U16.pack_into(self.view, _WORD3, word3)
        self.view[_STATUS] = status


def bcnt(length: int) -> int:
    """The word that says a buffer's length."""
    return 0xF000 | -length & 0xFFF


def parse_descriptor(view: memoryview) -> Descriptor | None:
    """Eight bytes in the Am7990's form; None: the guest owns it."""
    if not view[_STATUS] & OWN:
        return None
    low, status, high, count = _LOAD.unpack_from(view)
    return Descriptor(status, high << 16 | low, 4096 - (count & 0xFFF), view)


Parse = Callable[[memoryview], Descriptor | None]


class DescriptorRing:
    """A ring as the chip sees it, through the bus."""

    __slots__ = ("_master", "_parse", "_step", "entries", "ring")

    def __init__(self, ring: Ring, master: BusMaster, parse: Parse = parse_descriptor) -> None:
        self.ring = ring
        self.entries = ring.entries
        self._step = ring.step
        self._master = master
        self._parse = parse

    def load(self, position: int) -> Descriptor | None:
        """The descriptor at a position, or None: the guest owns it, or there was a memory error."""
        view = self._open(self.ring.address(position), self._step)
        return None if view is None else self._parse(view)

    def walk(self, position: int, stop: int) -> Iterator[Descriptor]:
        """The descriptors from `position` to before `stop`, until one that the guest owns.

        Opens several at a time, which costs hardly more than one. Never beyond the page of the
        first: where that one can be reached, the others can, so a fault comes no earlier.
        """
        count, step = RUN_FIRST, self._step
        while position < stop:
            addr = self.ring.address(position)
            to_page_end = (PAGE_LEN - addr % PAGE_LEN) // step
            to_wrap = self.entries - position % self.entries
            count = min(count, stop - position, to_page_end, to_wrap)
            run = self._open(addr, count * step)
            if run is None:
                return
            for start in range(0, count * step, step):
                descriptor = self._parse(run[start : start + step])
                if descriptor is None:
                    return
                yield descriptor
            position += count
            count *= 2

    def _open(self, addr: int, length: int) -> memoryview | None:
        views = self._master.open(Transfer(Direction.FROM_DEVICE, ((addr, length),)))
        if views is None:
            return None
        view = views.segments[0]
        if len(view) != length:  # a path that cuts within a page
            self._master.refuse()
            return None
        return view
