"""Descriptor rings: arithmetic, and loading and storing one descriptor.

A descriptor is four big-endian words: LADR; status in 15:8 and HADR in 7:0; BCNT, the buffer's
length as a twelve-bit two's complement below four ones; RMD3 or TMD3. It is loaded once into a
value, decided upon, and stored back field by field: what the guest changes meanwhile changes
nothing. The byte with OWN is stored last.

A position counts on for ever; `Ring.address` is where it becomes an index. A descriptor is opened
for writing when it is loaded, so a fault comes where the chip would meet it, and storing its
status later cannot fail. Nothing is kept from one frame to the next: each load is translated anew.

Does not do: the ones above BCNT. The chip ignores them; so do we.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from dma.transfer import Direction, Transfer
from nic.busmaster import ADDRESS_SPACE, BusMaster

DESCRIPTOR_LEN: Final = 8  # octets

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

    def address(self, position: int) -> int:
        return (self.base + DESCRIPTOR_LEN * (position % self.entries)) % ADDRESS_SPACE


class Descriptor(NamedTuple):
    """RMD0..2 or TMD0..2, as loaded; and where they came from."""

    status: int  # OWN … ENP
    addr: int  # LanceAddr of the buffer
    length: int  # octets, 1..4096
    view: memoryview

    def store(self, status: int, word3: int | None = None) -> None:
        """Word 3 if there is one, then the status with OWN."""
        if word3 is not None:
            _U16.pack_into(self.view, _WORD3, word3)
        self.view[_STATUS] = status


def bcnt(length: int) -> int:
    """The word that says a buffer's length."""
    return 0xF000 | -length & 0xFFF


class DescriptorRing:
    """A ring as the chip sees it, through the bus."""

    __slots__ = ("_master", "entries", "ring")

    def __init__(self, ring: Ring, master: BusMaster) -> None:
        self.ring = ring
        self.entries = ring.entries
        self._master = master

    def load(self, position: int) -> Descriptor | None:
        """The descriptor at a position, or None: the guest owns it, or there was a memory error."""
        ranges = ((self.ring.address(position), DESCRIPTOR_LEN),)
        views = self._master.open(Transfer(Direction.FROM_DEVICE, ranges))
        if views is None:
            return None
        view = views.segments[0]
        if len(view) != DESCRIPTOR_LEN:  # memory that ends within eight octets
            self._master.refuse()
            return None
        low, status, high, count = _LOAD.unpack_from(view)
        if not status & OWN:
            return None
        return Descriptor(status, high << 16 | low, 4096 - (count & 0xFFF), view)
