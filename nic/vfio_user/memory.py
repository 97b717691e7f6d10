"""The machine's memory as DMA_MAP and DMA_UNMAP name it: what the device may read, and write.

A region that has a descriptor is mapped (dma/shared.py); one without is a device's window, and a
cycle there is a fault. A machine's firmware maps and unmaps parts of the first MiB a dozen times.
The device may read and write most regions; where it may only read, they are mapped so, and a
transfer that would write there is a fault too.

Does not do: DMA_READ and DMA_WRITE, with which a server reaches memory that cannot be mapped.
"""

from __future__ import annotations

from typing import Final

from dma.iovec import IoVec
from dma.memory import PAGE_LEN
from dma.shared import SharedMemory, map_region
from dma.transfer import Direction, Transfer

REGIONS_MAX: Final = 128  # told to the client as max_dma_maps; each holds a descriptor
READABLE: Final = 1
WRITABLE: Final = 2


class Exists(Exception):
    """There is a region already."""


class MachineMemory:
    """Regions by address. Is a DmaPath."""

    def __init__(self) -> None:
        self._readable = SharedMemory()
        self._writable = SharedMemory()
        self._known: set[tuple[int, int]] = set()  # (address, bytes)

    @property
    def is_lost(self) -> bool:
        """Has the client truncated a file that it had lent?"""
        return self._readable.is_lost or self._writable.is_lost

    def open(self, transfer: Transfer) -> IoVec:
        if transfer.direction is Direction.TO_DEVICE:
            return self._readable.open(transfer)
        return self._writable.open(transfer)

    def add(self, addr: int, size: int, flags: int, fd: int | None, offset: int) -> None:
        """Map a region. Raises Exists, ValueError (cannot be one) and OSError (cannot be mapped).

        The descriptor stays the caller's.
        """
        if len(self._known) >= REGIONS_MAX:
            raise ValueError(f"more than {REGIONS_MAX} regions")
        if addr % PAGE_LEN or size % PAGE_LEN or not size:
            raise ValueError(f"a region of {size:#x} bytes at {addr:#x}")
        if any(addr < at + length and at < addr + size for at, length in self._known):
            raise Exists
        if fd is not None and flags & (READABLE | WRITABLE):
            is_writable = bool(flags & WRITABLE)
            region = map_region(addr, size, fd, offset, is_writable=is_writable)
            if is_writable:
                self._writable.insert(region)
            if flags & READABLE:
                self._readable.insert(region)
        self._known.add((addr, size))

    def remove(self, addr: int, size: int) -> bool:
        """Forget a region; False: there is none such."""
        if (addr, size) not in self._known:
            return False
        self._known.remove((addr, size))
        self._readable.remove(addr, size)
        self._writable.remove(addr, size)
        return True

    def clear(self) -> None:
        self._known.clear()
        self._readable.use(())
        self._writable.use(())
