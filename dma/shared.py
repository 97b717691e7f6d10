"""Guest memory that another process has made: regions of files that it passed on by descriptor.

A virtual machine's RAM is a file (a memfd, or one in /dev/shm or on hugetlbfs) which the emulator
maps and lends to whoever serves a device of its. `add` maps the whole file and takes the region's
part of it, which has the right alignment and length whatever the size of its pages; regions may
come and go while the device runs. A view that somebody holds stays good until it is let go.

The file is another process's. Where it allows that, it is sealed against shrinking before it is
looked at: a memfd does (QEMU's memory-backend-memfd is sealed by itself), a file with a name does
not. Whoever truncates such a file while it is mapped has zeros in its place (dma/sigbus.py), and
the memory `is_lost`: it is for whoever holds it to notice and to let go.

A mapping needs no descriptor; who is to pass the memory on to another process keeps one per file
(`KeptFiles`), however many regions are of it.

Does not do: user addresses, which the protocol has beside
physical ones (nic/vhost_user/memory.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from dma import sigbus
from dma.memory import MemoryMap, Region

ADDRESS_LIMIT: Final = 1 << 64  # bytes

File: TypeAlias = tuple[int, int]  # device and inode


def map_whole(fd: int, *, is_writable: bool = True) -> memoryview:
    """All of a file, which is sealed against shrinking where that is possible.

    Raises ValueError where it is empty or no file, OSError where it cannot be mapped.
    """
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    access = mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ
    return memoryview(sigbus.map_file(fd, access))


def is_lost(view: memoryview) -> bool:
    """Was the file truncated that this is a view of, as `map_whole` gave it?"""
    return isinstance(view.obj, sigbus.SharedMap) and view.obj.is_lost


def map_region(start: int, size: int, fd: int, offset: int, *, is_writable: bool = True) -> Region:
    """Map `size` bytes at `offset` of the file as the region at `start`.

    Raises ValueError where that cannot be a region, OSError where it cannot be mapped.
    """
    end = start + size
    if size <= 0 or end > ADDRESS_LIMIT:
        raise ValueError(f"a region of {size:#x} bytes at {start:#x}")
    whole = map_whole(fd, is_writable=is_writable)
    if offset + size > len(whole):
        raise ValueError(f"a region of {size:#x} bytes at {offset:#x} in {len(whole):#x}")
    return Region(start, end, whole[offset : offset + size])


class SharedMemory(MemoryMap):
    """The regions that were added and not removed; none at first."""

    @property
    def is_lost(self) -> bool:
        """Has any of the files been truncated?"""
        return any(is_lost(region.view) for region in self.regions)

    def add(self, start: int, size: int, fd: int, offset: int) -> None:
        """Map a region, as `map_region`; one that is over another raises ValueError too."""
        end = start + size
        if any(start < other.end and other.start < end for other in self.regions):
            raise ValueError(f"a region at {start:#x} over another one")
        self.insert(map_region(start, size, fd, offset))

    def insert(self, region: Region) -> None:
        """One more, which is over no other."""
        self.use(sorted((*self.regions, region), key=lambda region: region.start))

    def remove(self, start: int, size: int) -> bool:
        """Forget a region; False: there is none such."""
        left = [r for r in self.regions if (r.start, r.end) != (start, start + size)]
        found = len(left) < len(self.regions)
        self.use(left)
        return found


class KeptFiles:
    """A descriptor of each file that regions are of."""

    def __init__(self) -> None:
        self._fds: dict[File, int] = {}

    def keep(self, fd: int) -> File:
        """Have one of this file, whose descriptor stays the caller's. Raises OSError."""
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        if file not in self._fds:
            self._fds[file] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        return file

    def keep_only(self, files: Iterable[File]) -> None:
        """Close those of all others."""
        for file in self._fds.keys() - set(files):
            os.close(self._fds.pop(file))

    @property
    def fds(self) -> Mapping[File, int]:
        """The descriptors."""
        return self._fds
