"""Descriptor rings: arithmetic, and loading and storing one descriptor.

A descriptor is four big-endian words: LADR; status in 15:8 and HADR in 7:0; BCNT, the buffer's
length as a twelve-bit two's complement below four ones; RMD3 or TMD3. It is loaded once into a
value, decided upon, and stored back field by field: what the guest changes meanwhile changes
nothing. The byte with OWN is stored last.

A position counts on for ever; `Ring.address` is where it becomes an index. Each descriptor is
opened for writing when it is first needed, so that a fault comes where the chip would meet it, and
its view is kept for as long as the path says that its translations are the same (busmaster.py).

Does not do: the ones above BCNT. The chip ignores them; so do we.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from dma.transfer import Direction, Transfer
from nic.busmaster import BusMaster, fold

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
        return self.base + DESCRIPTOR_LEN * (position % self.entries)


class Descriptor(NamedTuple):
    """RMD0..2 or TMD0..2, as loaded."""

    status: int  # OWN … ENP
    addr: int  # LanceAddr of the buffer
    length: int  # octets, 1..4096


def bcnt(length: int) -> int:
    """The word that says a buffer's length."""
    return 0xF000 | -length & 0xFFF


class DescriptorRing:
    """A ring as the chip sees it, through the bus."""

    __slots__ = ("_epoch", "_master", "_views", "entries", "ring")

    def __init__(self, ring: Ring, master: BusMaster) -> None:
        self.ring = ring
        self.entries = ring.entries
        self._master = master
        self._epoch: object = None
        self._views: dict[int, memoryview] = {}

    def load(self, position: int) -> Descriptor | None:
        """The descriptor at a position; None after a memory error."""
        view = self._view(position)
        if view is None:
            return None
        low, status, high, count = _LOAD.unpack_from(view)
        return Descriptor(status, high << 16 | low, 4096 - (count & 0xFFF))

    def is_owned(self, position: int) -> bool:
        """Whether the chip owns it: what polling looks at."""
        view = self._view(position)
        return view is not None and view[_STATUS] >= OWN

    def store(self, position: int, status: int, word3: int | None = None) -> bool:
        """Word 3 if there is one, then the status with OWN. False after a memory error."""
        view = self._view(position)
        if view is None:
            return False
        if word3 is not None:
            _U16.pack_into(view, _WORD3, word3)
        view[_STATUS] = status
        return True

    def _view(self, position: int) -> memoryview | None:
        epoch = self._master.epoch
        if epoch is None or epoch != self._epoch:
            self._views.clear()
            self._epoch = epoch
        index = position % self.entries
        view = self._views.get(index)
        return self._open(index) if view is None else view

    def _open(self, index: int) -> memoryview | None:
        ranges = fold([(self.ring.address(index), DESCRIPTOR_LEN)])
        views = self._master.open(Transfer(Direction.FROM_DEVICE, ranges))
        if views is None:
            return None
        if len(views.segments) != 1:  # memory that is no multiple of eight octets
            self._master.refuse()
            return None
        view = views.segments[0]
        self._views[index] = view
        return view
