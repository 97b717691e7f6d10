"""What a disk keeps its bytes in: an endpoint on the host, and the simplest one, an image file.

An endpoint reads and writes host views, which are the guest's own pages, and says by `done(bytes,
error)` how many really came or went and what the host's `errno` was (0: none). It calls `done`
once, inside the call or later inside `poll`, which the loop calls when `fileno` is readable: the
disk cannot tell which, since it does nothing in `done` but note the result for its completion queue
(dma/transfer.py), and the loop runs that. `withdraw` ends whatever is under way: when it returns,
no view is touched any more and no `done` is called. The device calls it when it is reset.

`ImageFile` does everything at once, with preadv, pwritev and fsync. These take at most IOV_MAX
views per call and may stop short, so they are called until all is done, nothing comes (the file
ends) or the host says why not.

slirp/host has endpoints that complete later: by threads, and by io_uring.

Does not do: caching, locking, formats (an image is raw: byte n of the file is byte n of the
disk), waiting. No error is an exception, except those of opening the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeAlias

from dma.closing import Closing
from dma.iovec import IoVec

Done: TypeAlias = Callable[[int, int], None]  # bytes that moved; errno, or 0

VIEWS_MAX: Final = 1024  # per preadv or pwritev: IOV_MAX of Linux, the BSDs and macOS


class Endpoint(Protocol):
    """Bytes [0, size) that can be read, written and made permanent."""

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""

    @property
    def read_only(self) -> bool: ...

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        """Fill the views from `offset` on; fewer bytes where the image ends."""

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        """Store the views' bytes from `offset` on."""

    def sync(self, done: Done) -> None:
        """What was written before is on the host's disk when `done` is called."""

    def withdraw(self) -> None:
        """Let go of every view; no `done` of what is under way will be called."""

    def fileno(self) -> int | None:
        """Readable when `poll` has something to say; None: everything is done at once."""

    def poll(self) -> None:
        """Call the `done` of what is over."""

    def close(self) -> None: ...


class ImageFile(Closing):
    """A raw image in a file, or a block device. Is an Endpoint that completes at once."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR
        self.fd = os.open(path, flags | os.O_CLOEXEC)
        self.read_only = read_only
        try:
            self.size = os.lseek(self.fd, 0, os.SEEK_END)  # st_size of a block device is 0
        except OSError:
            os.close(self.fd)
            raise

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        done(*read_file(self.fd, iov, offset))

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        done(*write_file(self.fd, iov, offset))

    def sync(self, done: Done) -> None:
        done(0, sync_file(self.fd))

    def withdraw(self) -> None:
        """Nothing is ever under way."""

    def fileno(self) -> int | None:
        return None

    def poll(self) -> None:
        """Nothing is ever over that was not at once."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_file(fd: int, iov: IoVec, offset: int) -> tuple[int, int]:
    """Bytes that came, and errno: the whole of a read, on whatever thread."""
    return _move(os.preadv, fd, iov, offset)


def write_file(fd: int, iov: IoVec, offset: int) -> tuple[int, int]:
    """Bytes that went, and errno: the whole of a write, on whatever thread."""
    return _move(os.pwritev, fd, iov, offset)


def sync_file(fd: int) -> int:
    """errno of an fsync, or 0."""
    try:
        os.fsync(fd)
    except OSError as error:
        return error.errno or 0
    return 0


def _move(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, iov: IoVec, offset: int
) -> tuple[int, int]:
    total = 0
    for part in _parts(iov):
        while part:
            try:
                size = call(fd, part.segments, offset + total)
            except OSError as error:
                return total, error.errno or 0
            if not size:
                return total, 0
            total += size
            part = part.slice(size, len(part))
    return total, 0


def _parts(iov: IoVec) -> Iterator[IoVec]:
    """The vector, in parts of as many views as one call takes."""
    segments = iov.segments
    for start in range(0, len(segments), VIEWS_MAX):
        yield IoVec(segments[start : start + VIEWS_MAX])
