"""The machine's memory as DMA_MAP and DMA_UNMAP name it: what the device may read, and write.

A region that has a descriptor is mapped (dma/shared.py); one without is a device's window, and a
cycle there is a fault. A machine's firmware maps and unmaps parts of the first MiB a dozen times.
The device may read and write most regions; where it may only read, they are mapped so, and a
transfer that would write there is a fault too.

Does not do: DMA_READ and DMA_WRITE, with which a server reaches memory that cannot be mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from dma.iovec import IoVec
from dma.memory import PAGE_LEN
from dma.shared import File, KeptFiles, SharedMemory, map_region
from dma.transfer import Direction, Transfer

REGIONS_MAX: Final = 128  # told to the client as max_dma_maps; each holds a descriptor
READABLE: Final = 1
WRITABLE: Final = 2


class Exists(Exception):
    """There is a region already."""


class _Mapped(NamedTuple):
    """How a region was named, for another process."""

    flags: int
    offset: int
    file: File | None


class MachineMemory:
    """Regions by address. Is a DmaPath."""

    def __init__(self) -> None:
        self._readable = SharedMemory()
        self._writable = SharedMemory()
        self._known: dict[tuple[int, int], _Mapped] = {}  # by address and bytes
        self._kept = KeptFiles()

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
        file = None
        if fd is not None and flags & (READABLE | WRITABLE):
            is_writable = bool(flags & WRITABLE)
            try:
                region = map_region(addr, size, fd, offset, is_writable=is_writable)
                file = self._kept.keep(fd)
            except (ValueError, OSError):
                self._let_go()
                raise
            if is_writable:
                self._writable.insert(region)
            if flags & READABLE:
                self._readable.insert(region)
        self._known[addr, size] = _Mapped(flags, offset, file)

    def remove(self, addr: int, size: int) -> bool:
        """Forget a region; False: there is none such."""
        if (addr, size) not in self._known:
            return False
        del self._known[addr, size]
        self._readable.remove(addr, size)
        self._writable.remove(addr, size)
        self._let_go()
        return True

    def _let_go(self) -> None:
        self._kept.keep_only(known.file for known in self._known.values() if known.file is not None)

    def carried(self, place: Callable[[int], int]) -> list[Any]:
        """The regions, for another process; `place` notes a descriptor."""
        places = {file: place(fd) for file, fd in self._kept.fds.items()}
        return [
            [
                addr,
                size,
                known.flags,
                known.offset,
                None if known.file is None else places[known.file],
            ]
            for (addr, size), known in self._known.items()
        ]

    def resume(self, regions: Sequence[Any], fds: Sequence[int]) -> None:
        """Map the same; the descriptors are taken. Raises as `add`."""
        for addr, size, flags, offset, at in regions:
            self.add(int(addr), int(size), int(flags), None if at is None else fds[at], int(offset))
        for at in {region[-1] for region in regions} - {None}:
            os.close(fds[at])

    def clear(self) -> None:
        self._known.clear()
        self._let_go()
        self._readable.use(())
        self._writable.use(())
