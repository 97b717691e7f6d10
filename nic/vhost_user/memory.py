"""The memory table: where guest RAM is, and how the front-end's own addresses lead there.

A region has two addresses: its place in the guest, which descriptors use, and its place in the
front-end's process, which SET_VRING_ADDR uses for the rings. Both lead into one mapping of the
region's file (dma/shared.py).

`carried` is for a process that is to go on in this one's place: the regions, with descriptors of
their files.

Does not do: an IOMMU of the guest's (IOTLB messages), which is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dma.iovec import PhysAddr
from dma.shared import File, KeptFiles, SharedMemory
from dma.transfer import DmaFault
from nic.vhost_user.messages import BadMessage, MemoryRegion

SLOTS_MAX: Final = 509  # regions; as many as the kernel's vhost has by default


class MemoryTable:
    """Regions as the front-end names them."""

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self._regions: list[MemoryRegion] = []
        self._files: list[File] = []  # of each region
        self._kept = KeptFiles()

    def replace(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """These and no others."""
        self.clear()
        for region, fd in zip(regions, fds, strict=True):
            self.add(region, fd)

    def add(self, region: MemoryRegion, fd: int) -> None:
        """One more. The descriptor stays the caller's."""
        if len(self._regions) >= SLOTS_MAX:
            raise BadMessage(f"has more than {SLOTS_MAX} regions of memory")
        try:
            file = self._kept.keep(fd)
            self.memory.add(region.start, region.size, fd, region.offset)
        except (ValueError, OSError) as error:
            self._kept.keep_only(self._files)
            raise BadMessage(f"has memory that cannot be mapped: {error}") from None
        self._regions.append(region)
        self._files.append(file)

    def carried(self, place: Callable[[int], int]) -> list[Any]:
        """The regions, each with its file's descriptor, which `place` notes."""
        places = {file: place(fd) for file, fd in self._kept.fds.items()}
        return [
            [*region, places[file]] for region, file in zip(self._regions, self._files, strict=True)
        ]

    def remove(self, region: MemoryRegion) -> bool:
        """One less; False: there is none such."""
        for known in self._regions:
            if known[:3] == region[:3]:
                at = self._regions.index(known)
                del self._regions[at], self._files[at]
                self._kept.keep_only(self._files)
                return self.memory.remove(region.start, region.size)
        return False

    def clear(self) -> None:
        self._regions.clear()
        self._files.clear()
        self._kept.keep_only(self._files)
        self.memory.use(())

    def guest_addr(self, user_addr: int) -> int:
        """The guest's address of what the front-end has here. Raises DmaFault."""
        for region in self._regions:
            if region.user_start <= user_addr < region.user_start + region.size:
                return region.start + user_addr - region.user_start
        raise DmaFault("front-end", user_addr, "in no region of memory")

    def user_view(self, user_addr: int, length: int) -> memoryview:
        """A view of what the front-end has here, all in one region. Raises DmaFault."""
        return self.memory.view(PhysAddr(self.guest_addr(user_addr)), length)
