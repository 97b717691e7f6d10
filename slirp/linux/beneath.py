"""Files of one folder, and nothing outside it: what TFTP and HTTP serve.

The folder is opened once; names lead from there by openat2(2) with RESOLVE_BENEATH, so that neither
`..`, a leading slash nor a link leads out, whatever happens to the folder meanwhile: the kernel
looks, not this file. Links that stay inside are followed, magic links (/proc/self/fd/…) are not.
Where the kernel has no openat2 (before 5.6, or a filter that does not know it), each part of the
name is opened by itself without following links.

Only regular files are opened, and they are not waited for: a FIFO is refused.

Does not do: listings, writing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import Final

from slirp.linux.syscalls import checked, libc

RESOLVE_NO_MAGICLINKS: Final = 0x02  # linux/openat2.h
RESOLVE_BENEATH: Final = 0x08
RESOLVE: Final = RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH
FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
PARTS_MAX: Final = 32  # of a name, where there is no openat2
TRIES: Final = 4  # of a call that found the folder being changed (EAGAIN)

_SYS_OPENAT2: Final = 437  # on every architecture
_HOW: Final = struct.Struct("=3Q")  # struct open_how: flags, mode, resolve
_UNKNOWN: Final = (errno.ENOSYS, errno.EPERM)


class OpenFile:
    """A regular file, open for reading."""

    __slots__ = ("fd", "modified_at", "size")

    def __init__(self, fd: int, size: int, modified_at: float) -> None:
        self.fd = fd
        self.size = size  # bytes, when it was opened
        self.modified_at = modified_at  # seconds since 1970

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there; fewer where the file ends."""
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        """Give the descriptor back; again is no error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Folder:
    """Raises OSError where there is no such folder; so does `open`, for files."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: bytes) -> OpenFile:
        """A regular file by its path in the folder."""
        if b"\0" in name:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        fd = self._open(name)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EISDIR, "no regular file")
        return OpenFile(fd, status.st_size, status.st_mtime)

    def _open(self, name: bytes) -> int:
        for _ in range(TRIES):
            try:
                return openat2(self._fd, name, FLAGS, RESOLVE)
            except OSError as error:
                if error.errno in _UNKNOWN:
                    return self._walk(name)
                if error.errno != errno.EAGAIN:
                    raise
        raise OSError(errno.EAGAIN, "the folder is being changed")

    def _walk(self, name: bytes) -> int:
        """As `openat2` would, but for links, which are refused."""
        parts = name.split(b"/")
        if not 0 < len(parts) <= PARTS_MAX or any(part in (b"", b".", b"..") for part in parts):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        fd = os.dup(self._fd)
        for part in parts[:-1]:
            fd = _step(fd, part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return _step(fd, parts[-1], FLAGS)

    def close(self) -> None:
        """Open no more."""
        os.close(self._fd)


def _step(fd: int, part: bytes, flags: int) -> int:
    try:
        return os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
    finally:
        os.close(fd)


def openat2(folder: int, name: bytes, flags: int, resolve: int) -> int:
    """openat2(2), which Python lacks."""
    how = _HOW.pack(flags, 0, resolve)
    result = libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(folder), name, how, ctypes.c_size_t(len(how))
    )
    return checked(result, name.decode("utf-8", "replace"))
