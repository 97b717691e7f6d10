"""An image whose reads and writes the kernel completes by itself, by io_uring.

A request is queued and submitted at once; the kernel reads into guest memory, or writes from it,
when it likes, and rings an eventfd. `poll` takes the completions. The kernel is given at most
VIEWS_MAX views at a time and may stop short, so a request goes on until all is done, nothing comes
or it fails, as in dma/scsi/endpoint.py.

`withdraw` asks the kernel to cancel what is under way, and waits until each request has its last
completion, cancelled or done: after that the kernel does not touch the views.

liburing is an extra, and a kernel or its administrator may refuse io_uring: `why_not` says what is
missing, and nothing here is imported where nobody asks for it.

Bound: ENTRIES requests at once (a device has one). The completion queue is twice as long, so that
their completions and their cancellations fit.

Does not do: registered buffers and files, a submission thread of the kernel's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from types import TracebackType
from typing import Any, Final

from dma.iovec import IoVec
from dma.scsi.endpoint import VIEWS_MAX, Done, ImageFile

ENTRIES: Final = 64  # of the submission queue; requests beyond are told EAGAIN

_CANCEL: Final = 0  # user_data of a cancellation; requests count from 1


def why_not() -> str | None:
    """What keeps io_uring from working here; None: nothing."""
    try:
        import liburing
    except ImportError:
        return "the package liburing is not installed (pip install 'slirp[uring]')"
    ring = liburing.Ring()
    try:
        liburing.io_uring_queue_init(1, ring)
    except OSError as error:
        return f"the kernel refuses io_uring: {error.strerror}"
    liburing.io_uring_queue_exit(ring)
    return None


class _Request:
    """One read, write or flush, and how far it is."""

    def __init__(self, prepare: Any, iov: IoVec, offset: int, done: Done) -> None:
        self.prepare = prepare  # of liburing: io_uring_prep_readv or io_uring_prep_writev
        self.left = iov
        self.offset = offset
        self.moved = 0
        self.done = done
        self.vector: Any = None  # what the kernel was given; it must not go before the completion


class UringImage:
    """Is an Endpoint. OSError where the kernel has no io_uring, ImportError without liburing."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        import liburing

        self._uring: Any = liburing
        self._ring: Any = liburing.Ring()
        liburing.io_uring_queue_init(ENTRIES, self._ring)
        try:
            self._file = ImageFile(path, read_only=read_only)
        except OSError:
            liburing.io_uring_queue_exit(self._ring)
            raise
        self.fd, self.size, self.read_only = self._file.fd, self._file.size, read_only
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        liburing.io_uring_register_eventfd(self._ring, self._bell)
        self._under_way: dict[int, _Request] = {}
        self._last_id = _CANCEL
        self._ready: list[tuple[Done, int, int]] = []  # over without the kernel

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(_Request(self._uring.io_uring_prep_readv, iov, offset, done))

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(_Request(self._uring.io_uring_prep_writev, iov, offset, done))

    def sync(self, done: Done) -> None:
        self._start(_Request(None, IoVec(), 0, done))

    def withdraw(self) -> None:
        self._ready.clear()
        for request_id in self._under_way:
            sqe = self._uring.io_uring_get_sqe(self._ring)
            self._uring.io_uring_prep_cancel64(sqe, request_id)
            self._uring.io_uring_sqe_set_data64(sqe, _CANCEL)
        self._uring.io_uring_submit(self._ring)
        while self._under_way:
            with contextlib.suppress(InterruptedError):  # a signal; its handler has run
                request_id, _ = self._next(wait=True)
                self._under_way.pop(request_id, None)
        self._clear_bell()

    def fileno(self) -> int | None:
        return self._bell

    def poll(self) -> None:
        self._clear_bell()
        over, self._ready = self._ready, []
        for done, size, error in over:
            done(size, error)
        for _ in range(self._uring.io_uring_cq_ready(self._ring)):
            request_id, result = self._next(wait=False)
            request = self._under_way.get(request_id)
            if request is not None:
                self._go_on(request_id, request, result)

    def close(self) -> None:
        if self._file.fd >= 0:
            self.withdraw()
            self._uring.io_uring_queue_exit(self._ring)
            os.close(self._bell)
            self._file.close()

    def __enter__(self) -> UringImage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, request: _Request) -> None:
        if request.prepare is not None and not len(request.left):
            self._end(request, 0)
        elif len(self._under_way) >= ENTRIES:
            self._end(request, errno.EAGAIN)
        else:
            self._last_id += 1
            self._under_way[self._last_id] = request
            self._submit(self._last_id, request)

    def _submit(self, request_id: int, request: _Request) -> None:
        """What is left of a request, or as much of it as one call takes."""
        uring = self._uring
        sqe = uring.io_uring_get_sqe(
            self._ring
        )  # there is one: what is queued is submitted at once
        if request.prepare is None:
            uring.io_uring_prep_fsync(sqe, self.fd)
        else:
            request.vector = uring.Iovec(list(request.left.segments[:VIEWS_MAX]))
            request.prepare(sqe, self.fd, request.vector, request.offset + request.moved)
        uring.io_uring_sqe_set_data64(sqe, request_id)
        uring.io_uring_submit(self._ring)

    def _go_on(self, request_id: int, request: _Request, result: int) -> None:
        """A completion of the kernel's: bytes that moved, or an errno below 0."""
        size = max(result, 0)
        request.moved += size
        request.left = request.left.slice(size, len(request.left))
        if size and len(request.left):
            self._submit(request_id, request)
        else:
            del self._under_way[request_id]
            request.done(request.moved, max(-result, 0))

    def _end(self, request: _Request, error: int) -> None:
        """Over without the kernel; told from `poll` all the same."""
        self._ready.append((request.done, request.moved, error))
        os.eventfd_write(self._bell, 1)

    def _next(self, *, wait: bool) -> tuple[int, int]:
        """The id and the result of the oldest completion."""
        uring = self._uring
        entry = uring.Cqe()
        (uring.io_uring_wait_cqe if wait else uring.io_uring_peek_cqe)(self._ring, entry)
        request_id = entry[0].user_data
        try:
            result = entry[0].res
        except OSError as error:  # how liburing tells a result below 0
            result = -(error.errno or errno.EIO)
        uring.io_uring_cq_advance(self._ring, 1)
        return request_id, result

    def _clear_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
