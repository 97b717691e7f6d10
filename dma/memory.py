"""Guest memory: regions of RAM at physical addresses, and host views of any part of them.

Each region is one shared mapping, backed by a memfd where the host has one (Linux), so that another
process can map the same RAM: vhost-user and an emulator in its own process take `fds`. The memfd is
sealed against shrinking, since a process that truncates a mapping which we hold would kill us with
SIGBUS. Elsewhere the mapping is anonymous, shared with children only, and `fds` is empty.

`GuestMemory` is the end of every DMA path. `open(transfer)` turns physical ranges into
memoryviews; all of them or, if one byte is outside RAM, none: the fault is raised before any view
is handed out. A range that runs from one region into the next, where the two touch, becomes two
views. A view never moves: whoever holds one sees what the guest does to its memory, at once.

Regions begin and end at multiples of PAGE_LEN bytes. Hence no 16-bit word, no descriptor and no
page straddles two regions, which the lane exchange (dma/ledma.py) relies on.

`close()` ends the memory for DMA at once: every later access is a fault. The host pages go when the
last view goes, because a view that a socket call is using cannot be taken away; nothing that still
holds a view is an error.

`MemoryMap` is the part that finds views, whoever mapped the regions: here it is this process,
in dma/shared.py another one.

Does not do: ROM, devices (an address without RAM is a DmaFault), byte order, alignment checks.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from dma.closing import Closing
from dma.iovec import Buffer, IoVec, PhysAddr, Range
from dma.transfer import DmaFault, Transfer

PAGE_LEN: Final = 4096  # bytes; the sun4m page, and the grain of regions
PHYS_LIMIT: Final = 1 << 36  # bytes; sun4m physical addresses have 36 bits


class Region(NamedTuple):
    """RAM that lies together, in the guest and in the host."""

    start: int  # PhysAddr of the first byte
    end: int  # PhysAddr after the last byte
    view: memoryview  # all of it


_NOWHERE: Final = Region(0, 0, memoryview(b""))


class MemoryMap:
    """Regions in order of address, none over another, and views of any part of them."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self.use(regions)

    def use(self, regions: Iterable[Region]) -> None:
        """These are the regions from now on; whoever holds a view of another one keeps it."""
        self._regions = tuple(regions)
        self._starts = [region.start for region in self._regions]
        # The region of the last access: rings and buffers mostly lie in one.
        self._start, self._end, self._view = self._regions[0] if self._regions else _NOWHERE

    @property
    def regions(self) -> tuple[Region, ...]:
        """In order of address; empty after close()."""
        return self._regions

    def open(self, transfer: Transfer) -> IoVec:
        """Host views of physical ranges. All or nothing: raises DmaFault before any view is out."""
        start, end, view = self._start, self._end, self._view
        views: list[memoryview] = []
        for addr, length in transfer.ranges:
            stop = addr + length
            if start <= addr < stop <= end:
                views.append(view[addr - start : stop - start])
            else:
                views += self._pieces(addr, length)
        return IoVec(tuple(views))

    def slices(self, addr: PhysAddr, length: int) -> IoVec:
        """Host views of [addr, addr + length), as many as there are regions in it."""
        return IoVec(tuple(self._pieces(addr, length)))

    def view(self, addr: PhysAddr, length: int) -> memoryview:
        """One host view of [addr, addr + length), which must lie in one region."""
        start, end, view = self._region_at(addr)
        if length < 0 or addr + length > end:
            raise DmaFault("memory", end, "outside RAM")
        return view[addr - start : addr + length - start]

    def read(self, addr: PhysAddr, length: int) -> bytes:
        """A copy of `length` bytes."""
        return bytes(self.slices(addr, length))

    def write(self, addr: PhysAddr, data: Buffer) -> None:
        """Store bytes; all or, if some are outside RAM, none."""
        self.slices(addr, len(data)).copy_from(data)

    def close(self) -> None:
        """Every later access is a fault; the pages go with the last view that someone holds."""
        self.use(())

    def _pieces(self, addr: int, length: int) -> list[memoryview]:
        """Views of one range, region by region."""
        if length < 0:
            raise ValueError(f"range of {length} bytes")
        views: list[memoryview] = []
        stop = addr + length
        while addr < stop:
            start, end, view = self._region_at(addr)
            views.append(view[addr - start : stop - start])  # or up to the end of the region
            addr = end
        return views

    def _region_at(self, addr: int) -> Region:
        index = bisect_right(self._starts, addr) - 1
        if index < 0 or addr >= self._regions[index].end:
            raise DmaFault("memory", addr, "outside RAM")
        region = self._regions[index]
        self._start, self._end, self._view = region
        return region


class GuestMemory(MemoryMap, Closing):
    """RAM of `size` bytes at address 0, or the given (address, size) regions."""

    def __init__(self, regions: int | Iterable[Range]) -> None:
        wanted = [(0, regions)] if isinstance(regions, int) else sorted(regions)
        _check_layout(wanted)
        fds: list[int] = []
        self._release_fds = weakref.finalize(self, _close_all, fds)
        self._fds = fds
        super().__init__(
            Region(start, start + size, memoryview(_map(size, fds))) for start, size in wanted
        )

    @property
    def fds(self) -> tuple[int, ...]:
        """One descriptor per region, for another process to map; empty where there is no memfd."""
        return tuple(self._fds)

    def close(self) -> None:
        super().close()
        self._release_fds()


def _check_layout(regions: list[Range]) -> None:
    if not regions:
        raise ValueError("guest memory needs at least one region")
    free_from = 0
    for start, size in regions:
        if start % PAGE_LEN or size % PAGE_LEN or size <= 0:
            raise ValueError(
                f"region {start:#x}, {size:#x}: both must be multiples of {PAGE_LEN}, and not empty"
            )
        if start < free_from or start + size > PHYS_LIMIT:
            raise ValueError(f"region {start:#x}, {size:#x} overlaps another or exceeds 36 bits")
        free_from = start + size


def _map(size: int, fds: list[int]) -> mmap.mmap:
    """A shared mapping of `size` zero bytes; its memfd, where there is one, goes to `fds`."""
    if not hasattr(os, "memfd_create"):
        return mmap.mmap(-1, size)
    fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fds.append(fd)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return mmap.mmap(fd, size)


def _close_all(fds: list[int]) -> None:
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())
