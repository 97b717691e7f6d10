"""The dirty log: a bit for each page that the device has written, while a machine migrates.

The front-end passes a file with the bits and clears them as it copies pages: bit n of byte m is
page 8 m + n of 4,096 bytes, in guest physical addresses. Bits are set one byte at a time, and only
where one is missing. Setting is not atomic, clearing by the front-end is: what can come of it is a
bit that was cleared between our reading and our writing and is set once more, so a page is copied
again. (A second process that sets bits in the same byte at the same moment could lose one; the
machine's other devices log in QEMU, or in this process.)

Does not do: postcopy migration.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

from dma.iovec import Ranges
from dma.shared import is_lost, map_whole
from nic.vhost_user.messages import BadMessage

PAGE_BITS: Final = 12  # pages of 4,096 bytes


class DirtyLog:
    """The bits. The descriptor stays the caller's. One of the same file is kept, for a process that
    is to go on in this one's place."""

    def __init__(self, fd: int, size: int, offset: int) -> None:
        try:
            whole = map_whole(fd)
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)  # owned
        except (ValueError, OSError) as error:
            raise BadMessage(f"has a log that cannot be mapped: {error}") from None
        if not 0 < size <= len(whole) - offset:
            self.close()
            raise BadMessage(f"has a log of {size} bytes at {offset} in {len(whole)}")
        self._bits = whole[offset : offset + size]
        self.place = size, offset

    def close(self) -> None:
        """Let go of the descriptor; what is mapped stays for whoever marks."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @property
    def is_lost(self) -> bool:
        """Has the file been truncated?"""
        return is_lost(self._bits)

    def mark(self, addr: int, length: int) -> None:
        """These bytes were written. What the log does not reach is left out."""
        bits = self._bits
        last = min(addr + length - 1 >> PAGE_BITS, 8 * len(bits) - 1)
        for page in range(addr >> PAGE_BITS, last + 1):
            octet, bit = bits[page >> 3], 1 << (page & 7)
            if not octet & bit:
                bits[page >> 3] = octet | bit

    def mark_ranges(self, ranges: Ranges, length: int) -> None:
        """The first `length` bytes of these were written."""
        for addr, size in ranges:
            if length <= 0:
                return
            self.mark(addr, min(size, length))
            length -= size
