"""An image whose reads and writes the kernel completes by itself, by io_uring.

A request is queued and submitted at once; the kernel reads into guest memory, or writes from it,
when it likes, and rings an eventfd. `poll` takes the completions. The kernel is given at most
VIEWS_MAX views at a time and may stop short, so a request goes on until all is done, nothing comes
or it fails, as in dma/scsi/endpoint.py.

`withdraw` asks the kernel to cancel what is under way, and waits until each request has its last
completion, cancelled or done: after that the kernel does not touch the views.

Bound: ENTRIES requests at once (a device has one).

Does not do: what slirp.host.uring does not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from dma.closing import Closing
from dma.iovec import IoVec
from dma.scsi.endpoint import VIEWS_MAX, Done, ImageFile
from slirp.host.uring import Ring

ENTRIES: Final = 64  # of the submission queue; requests beyond are told EAGAIN

# Queues a transfer of these views to or from a place in a file, Ring.readv or Ring.writev
Queue: TypeAlias = Callable[[int, Sequence[memoryview], int], int]


class _Request:
    """One read, write or flush, and how far it is."""

    def __init__(self, queue: Queue | None, iov: IoVec, offset: int, done: Done) -> None:
        self.queue = queue  # None: a flush
        self.left = iov
        self.offset = offset
        self.moved = 0
        self.done = done


class UringImage(Closing):
    """Is an Endpoint. OSError where the kernel has no io_uring."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self._ring = Ring(ENTRIES)
        try:
            self._file = ImageFile(path, read_only=read_only)
        except OSError:
            self._ring.close()
            raise
        self.fd, self.size, self.read_only = self._file.fd, self._file.size, read_only
        self._under_way: dict[int, _Request] = {}
        self._ready: list[tuple[Done, int, int]] = []  # over without the kernel

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(_Request(self._ring.readv, iov, offset, done))

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(_Request(self._ring.writev, iov, offset, done))

    def sync(self, done: Done) -> None:
        self._start(_Request(None, IoVec(), 0, done))

    def withdraw(self) -> None:
        self._ready.clear()
        for request_id in self._under_way:
            self._ring.cancel(request_id)
        self._ring.submit()
        while self._under_way:
            request_id, _ = self._ring.take(wait=True)
            self._under_way.pop(request_id, None)
        self._ring.clear_bell()

    def fileno(self) -> int | None:
        return self._ring.fileno()

    def poll(self) -> None:
        self._ring.clear_bell()
        over, self._ready = self._ready, []
        for done, size, error in over:
            done(size, error)
        for _ in range(self._ring.ready()):
            request_id, result = self._ring.take()
            request = self._under_way.pop(request_id, None)
            if request is not None:
                self._go_on(request, result)

    def close(self) -> None:
        if self._file.fd >= 0:
            self.withdraw()
            self._ring.close()
            self._file.close()

    def _start(self, request: _Request) -> None:
        if request.queue is not None and not len(request.left):
            self._end(request, 0)
        elif len(self._under_way) >= ENTRIES:
            self._end(request, errno.EAGAIN)
        else:
            self._submit(request)

    def _submit(self, request: _Request) -> None:
        """What is left of a request, or as much of it as one call takes."""
        if request.queue is None:
            request_id = self._ring.fsync(self.fd)
        else:
            views = request.left.segments[:VIEWS_MAX]
            request_id = request.queue(self.fd, views, request.offset + request.moved)
        self._under_way[request_id] = request
        self._ring.submit()

    def _go_on(self, request: _Request, result: int) -> None:
        """A completion of the kernel's: bytes that moved, or an errno below 0."""
        size = max(result, 0)
        request.moved += size
        request.left = request.left.slice(size, len(request.left))
        if size and len(request.left):
            self._submit(request)
        else:
            request.done(request.moved, max(-result, 0))

    def _end(self, request: _Request, error: int) -> None:
        """Over without the kernel; told from `poll` all the same."""
        self._ready.append((request.done, request.moved, error))
        os.eventfd_write(self._ring.fileno(), 1)
