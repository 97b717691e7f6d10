"""An io_uring: requests are queued, submitted together, and complete when the kernel likes.

liburing sets the ring up and moves its ends, in the order that two processors need. A request is
either one of its own (`prepare`), or one that this file writes into the ring's memory itself
(`recvmsg`): liburing for Python has no way to fill a struct msghdr. The kernel rings an eventfd for
completions, which makes the ring part of any loop.

What the kernel was pointed at (views, iovecs, headers) is kept here until the completion.

liburing is an extra, and a kernel or its administrator may refuse io_uring: `why_not` says what is
missing, and nothing is imported where nobody asks for it.

Bound: `entries` requests under way; the completion queue is twice as long, so that their
completions and their cancellations fit.

Does not do: registered buffers and files, a submission thread of the kernel's, provided buffers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

CANCEL: Final = 0  # the id of a cancellation; requests count from 1

# linux/io_uring.h
_OFF_SQES: Final = 0x10000000
_OP_RECVMSG: Final = 10
# opcode, flags, ioprio, fd, off, addr, len, msg_flags, user_data, and what is 0 here
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")
# asm-generic/socket.h, struct msghdr: name and its length, iovecs, control, flags
_MSGHDR: Final = struct.Struct("=QI4xQQQQi4x")
NAME_LEN: Final = 28  # bytes of struct sockaddr_in6, the longest that is asked for


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
        return (
            f"the kernel refuses io_uring: {error.strerror} "
            "(it takes Linux 5.6 or later, and sysctl kernel.io_uring_disabled=0)"
        )
    liburing.io_uring_queue_exit(ring)
    return None


class Ring:
    """One ring. OSError where the kernel has no io_uring, ImportError without liburing."""

    def __init__(self, entries: int) -> None:
        import liburing

        self._uring: Any = liburing
        self._ring: Any = liburing.Ring()
        self.entries = entries  # a power of two
        liburing.io_uring_queue_init(entries, self._ring)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        liburing.io_uring_register_eventfd(self._ring, self._bell)
        self._sqes = mmap.mmap(self._ring.ring_fd, entries * _SQE.size, offset=_OFF_SQES)
        self._queued = 0  # requests ever, and so the place of the next
        self._unsubmitted = 0
        self._last_id = CANCEL
        self._kept: dict[int, object] = {}  # by request: what the kernel was pointed at

    @property
    def under_way(self) -> int:
        """Requests without their completion."""
        return len(self._kept)

    def fileno(self) -> int:
        """Readable when there are completions."""
        return self._bell

    def prepare(self, prepare: Callable[..., None], *args: Any, kept: object = None) -> int:
        """Queue what this function of liburing's makes of the arguments; the request's id."""
        sqe = self._next_sqe()
        prepare(sqe, *args)
        self._last_id += 1
        self._uring.io_uring_sqe_set_data64(sqe, self._last_id)
        self._kept[self._last_id] = kept
        return self._last_id

    def recvmsg(
        self, fd: int, views: Sequence[memoryview], flags: int, name: bytearray | None = None
    ) -> int:
        """Queue a recvmsg; `name` gets the sender's struct sockaddr. The request's id."""
        place = self._queued % self.entries
        self._uring.io_uring_prep_nop(self._next_sqe())
        pairs = [number for view in views for number in (address_of(view), len(view))]
        iovec = bytearray(struct.pack(f"={len(pairs)}Q", *pairs))
        name_at, name_len = (0, 0) if name is None else (address_of(name), len(name))
        message = bytearray(_MSGHDR.pack(name_at, name_len, address_of(iovec), len(views), 0, 0, 0))
        self._last_id += 1
        _SQE.pack_into(
            self._sqes, place * _SQE.size,
            _OP_RECVMSG, 0, 0, fd, 0, address_of(message), 1, flags, self._last_id,
        )  # fmt: skip
        self._kept[self._last_id] = (views, iovec, message, name)
        return self._last_id

    def cancel(self, request_id: int) -> None:
        """Queue a cancellation; the request's completion still comes."""
        sqe = self._next_sqe()
        self._uring.io_uring_prep_cancel64(sqe, request_id)
        self._uring.io_uring_sqe_set_data64(sqe, CANCEL)

    def submit(self) -> None:
        """Give the kernel what is queued."""
        if self._unsubmitted:
            self._unsubmitted = 0
            self._uring.io_uring_submit(self._ring)

    def clear_bell(self) -> None:
        """Look for completions after this, and none is missed."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def ready(self) -> int:
        """Completions that `take` has without waiting."""
        count: int = self._uring.io_uring_cq_ready(self._ring)
        return count

    def take(self, *, wait: bool = False) -> tuple[int, int]:
        """The id and the result of the oldest completion; CANCEL for that of a cancellation."""
        uring = self._uring
        entry = uring.Cqe()
        if wait:
            self._wait(entry)
        else:
            uring.io_uring_peek_cqe(self._ring, entry)
        request_id: int = entry[0].user_data
        try:
            result: int = entry[0].res
        except OSError as error:  # how liburing tells a result below 0
            result = -(error.errno or errno.EIO)
        uring.io_uring_cq_advance(self._ring, 1)
        self._kept.pop(request_id, None)
        return request_id, result

    def _wait(self, entry: Any) -> None:
        while True:
            with contextlib.suppress(InterruptedError):  # a signal; its handler has run
                self._uring.io_uring_wait_cqe(self._ring, entry)
                return

    def _next_sqe(self) -> Any:
        """There is always one: no more than `entries` are queued without being submitted."""
        if self._unsubmitted == self.entries:
            self.submit()
        self._queued += 1
        self._unsubmitted += 1
        return self._uring.io_uring_get_sqe(self._ring)

    def close(self) -> None:
        """Give the ring back; nothing must be under way."""
        self._sqes.close()
        self._uring.io_uring_queue_exit(self._ring)
        os.close(self._bell)


def address_of(area: bytearray | memoryview) -> int:
    """Where these bytes lie in our memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
