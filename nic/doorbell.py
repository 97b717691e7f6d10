"""A file descriptor that is readable while a port has something to say.

`fileno()` makes the descriptor when it is first asked for (an eventfd, or a pipe where there is
none), so that a port that nobody waits for costs none. Setting it twice or clearing it twice is
one system call, not two.

Does not do: say what the news is. Whoever is woken asks the port.
"""

from __future__ import annotations

import os
import sys
from typing import Final

ONE: Final = (1).to_bytes(8, sys.byteorder)  # what an eventfd adds; eight bytes into a pipe


class Doorbell:
    """Set and cleared by a port; waited for by a loop."""

    __slots__ = ("_read_fd", "_write_fd", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._read_fd = -1
        self._write_fd = -1

    def fileno(self) -> int:
        if self._read_fd < 0:
            if hasattr(os, "eventfd"):
                self._read_fd = self._write_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            else:
                self._read_fd, self._write_fd = os.pipe()
            if self.is_set:
                self._write()
        return self._read_fd

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            if self._write_fd >= 0:
                self._write()

    def clear(self) -> None:
        if self.is_set:
            self.is_set = False
            if self._read_fd >= 0:
                os.read(self._read_fd, 8)

    def close(self) -> None:
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)
        self._read_fd = self._write_fd = -1

    def _write(self) -> None:
        os.write(self._write_fd, ONE)
