"""An io_uring: requests are queued, submitted together, and complete when the kernel likes.

The ring is two queues in memory that we share with the kernel: submission entries, which it reads
when it is entered, and completions, which it adds whenever it has one. Each has a head and a tail
that count up for ever; who takes moves the head, who adds the tail. The kernel rings an eventfd for
completions, which makes the ring part of any loop. What it was pointed at (views, iovecs, headers)
is kept here until the completion.

Order between two processors: the kernel looks for submissions inside io_uring_enter only, which
orders by itself. A completion must not be read before the tail that announces it, nor the head
moved before it has been read (`_fence`).

A kernel or its administrator may refuse io_uring: `why_not` says so. The kernel may also be short
of memory for requests; they stay queued, the bell rings, and `ready` submits them again.

Facts: linux/io_uring.h, io_uring_setup(2), io_uring_enter(2).

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
import sys
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from slirp.linux.syscalls import checked, libc
from slirp.shortage import is_shortage

CANCEL: Final = 0  # the id of a cancellation; requests count from 1

_SYS_SETUP: Final = 425  # these three on every architecture
_SYS_ENTER: Final = 426
_SYS_REGISTER: Final = 427

_FEAT_SINGLE_MMAP: Final = 1  # Linux 5.4
_ENTER_GETEVENTS: Final = 1
_REGISTER_EVENTFD: Final = 4
_OFF_RINGS: Final = 0
_OFF_SQES: Final = 0x10000000
_OP_READV: Final = 1
_OP_WRITEV: Final = 2
_OP_FSYNC: Final = 3
_OP_RECVMSG: Final = 10
_OP_ASYNC_CANCEL: Final = 14

_PARAMS_LEN: Final = 120  # bytes of struct io_uring_params
_PARAMS: Final = struct.Struct("=2I12xI16x")  # sq_entries, cq_entries, features
_OFFSETS: Final = struct.Struct("=7I12x")  # of either queue, in this order behind _PARAMS
# opcode, flags, ioprio, fd, off, addr, len, op_flags, user_data, and what is 0 here
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")
_CQE: Final = struct.Struct("=Qi4x")  # user_data, res
# asm-generic/socket.h, struct msghdr: name and its length, iovecs, control, flags
_MSGHDR: Final = struct.Struct("=QI4xQQQQi4x")
NAME_LEN: Final = 28  # bytes of struct sockaddr_in6, the longest that is asked for


def why_not() -> str | None:
    """What keeps io_uring from working here; None: nothing."""
    if sys.platform != "linux":
        return "io_uring is Linux's"
    try:
        Ring(1).close()
    except OSError as error:
        return (
            f"the kernel refuses io_uring: {error.strerror} "
            "(it takes Linux 5.6 or later, and sysctl kernel.io_uring_disabled=0)"
        )
    return None


class _Layout(NamedTuple):
    """Where the kernel has put things in the rings, in bytes from their beginning."""

    sq_entries: int
    cq_entries: int
    sq_tail: int
    sq_array: int
    cq_head: int
    cq_tail: int
    cqes: int

    @property
    def size(self) -> int:
        """Bytes of both rings."""
        return max(self.sq_array + 4 * self.sq_entries, self.cqes + _CQE.size * self.cq_entries)


class Ring:
    """One ring. OSError where the kernel has no io_uring."""

    def __init__(self, entries: int) -> None:
        """`entries`: a power of two."""
        self.entries = entries
        self._fd, layout = _setup(entries)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._register_bell()
        self._rings = mmap.mmap(self._fd, layout.size, offset=_OFF_RINGS)
        self._sqes = mmap.mmap(self._fd, entries * _SQE.size, offset=_OFF_SQES)
        self._words = memoryview(self._rings).cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = (
            at // 4 for at in (layout.sq_tail, layout.cq_head, layout.cq_tail)
        )
        self._cqes, self._cq_entries = layout.cqes, layout.cq_entries
        for place in range(entries):  # the entry at each place of the queue, for good
            self._words[layout.sq_array // 4 + place] = place
        self._order = threading.Lock()
        self._order.acquire()
        self._queued = 0  # requests ever, and so the place of the next
        self._taken = 0  # completions ever
        self._unsubmitted = 0
        self._last_id = CANCEL
        self._kept: dict[int, object] = {}  # by request: what the kernel was pointed at

    def _register_bell(self) -> None:
        bell = ctypes.c_int(self._bell)
        try:
            checked(
                libc.syscall(
                    ctypes.c_long(_SYS_REGISTER), ctypes.c_int(self._fd),
                    ctypes.c_uint(_REGISTER_EVENTFD), ctypes.byref(bell), ctypes.c_uint(1),
                ),
                "io_uring_register",
            )  # fmt: skip
        except OSError:
            os.close(self._bell)
            os.close(self._fd)
            raise

    @property
    def under_way(self) -> int:
        """Requests without their completion."""
        return len(self._kept)

    def fileno(self) -> int:
        """Readable when there are completions."""
        return self._bell

    def readv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Queue a preadv of at most IOV_MAX views; the request's id."""
        iovec = _iovec(views)
        return self._queue(_OP_READV, fd, offset, address_of(iovec), len(views), (views, iovec))

    def writev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Queue a pwritev of at most IOV_MAX views; the request's id."""
        iovec = _iovec(views)
        return self._queue(_OP_WRITEV, fd, offset, address_of(iovec), len(views), (views, iovec))

    def fsync(self, fd: int) -> int:
        """Queue an fsync; the request's id."""
        return self._queue(_OP_FSYNC, fd, 0, 0, 0, None)

    def recvmsg(
        self, fd: int, views: Sequence[memoryview], flags: int, name: bytearray | None = None
    ) -> int:
        """Queue a recvmsg; `name` gets the sender's struct sockaddr. The request's id."""
        iovec = _iovec(views)
        name_at, name_len = (0, 0) if name is None else (address_of(name), len(name))
        message = bytearray(_MSGHDR.pack(name_at, name_len, address_of(iovec), len(views), 0, 0, 0))
        kept = (views, iovec, message, name)
        return self._queue(_OP_RECVMSG, fd, 0, address_of(message), 1, kept, flags)

    def cancel(self, request_id: int) -> None:
        """Queue a cancellation; the request's completion still comes."""
        self._push(_OP_ASYNC_CANCEL, -1, 0, request_id, 0, 0, CANCEL)

    def submit(self) -> None:
        """Give the kernel what is queued; what it has no memory for is tried again by `ready`."""
        while self._unsubmitted:
            try:
                self._enter(0)
            except OSError as error:
                if not is_shortage(error) and error.errno != errno.EBUSY:
                    raise
                os.eventfd_write(self._bell, 1)
                return

    def clear_bell(self) -> None:
        """Look for completions after this, and none is missed."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def ready(self) -> int:
        """Completions that `take` has without waiting."""
        self.submit()
        return self._announced()

    def take(self, *, wait: bool = False) -> tuple[int, int]:
        """The id and the result of the oldest completion; CANCEL for that of a cancellation.

        The result is what the system call would return, or an errno below 0.
        """
        while not self._announced():
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "no completion")
            with contextlib.suppress(InterruptedError, BlockingIOError):
                self._enter(1)
        at = self._cqes + self._taken % self._cq_entries * _CQE.size
        request_id, result = _CQE.unpack_from(self._rings, at)
        self._fence()
        self._taken += 1
        self._words[self._cq_head] = self._taken & 0xFFFFFFFF
        self._kept.pop(request_id, None)
        return request_id, result

    def close(self) -> None:
        """Give the ring back; nothing must be under way."""
        self._words.release()
        self._rings.close()
        self._sqes.close()
        os.close(self._fd)
        os.close(self._bell)

    def _queue(
        self, opcode: int, fd: int, offset: int, addr: int, size: int, kept: object, flags: int = 0
    ) -> int:
        self._last_id += 1
        self._push(opcode, fd, offset, addr, size, flags, self._last_id)
        self._kept[self._last_id] = kept
        return self._last_id

    def _push(
        self, opcode: int, fd: int, offset: int, addr: int, size: int, flags: int, request_id: int
    ) -> None:
        """One more submission entry. OSError: the queue is full, and the kernel takes nothing."""
        if self._unsubmitted == self.entries:
            self._enter(0)
        place = self._queued % self.entries * _SQE.size
        _SQE.pack_into(
            self._sqes, place, opcode, 0, 0, fd, offset, addr, size, flags, request_id
        )  # fmt: skip
        self._queued += 1
        self._unsubmitted += 1
        self._words[self._sq_tail] = self._queued & 0xFFFFFFFF

    def _enter(self, wait_for: int) -> None:
        """Submit, and wait for so many completions."""
        submitted = checked(
            libc.syscall(
                ctypes.c_long(_SYS_ENTER), ctypes.c_int(self._fd),
                ctypes.c_uint(self._unsubmitted), ctypes.c_uint(wait_for),
                ctypes.c_uint(_ENTER_GETEVENTS), None, ctypes.c_size_t(0),
            ),
            "io_uring_enter",
        )  # fmt: skip
        self._unsubmitted -= submitted

    def _announced(self) -> int:
        """Completions that the kernel has added and nobody has taken."""
        tail = self._words[self._cq_tail]
        self._fence()
        return (tail - self._taken) & 0xFFFFFFFF

    def _fence(self) -> None:
        """Nothing before this is moved behind it by the processor, nor the other way round.

        Letting go of a lock releases, taking it acquires.
        """
        self._order.release()
        self._order.acquire()


def _setup(entries: int) -> tuple[int, _Layout]:
    """The ring's descriptor, close-on-exec, and where things are in it."""
    params = bytearray(_PARAMS_LEN)
    fd = checked(
        libc.syscall(
            ctypes.c_long(_SYS_SETUP), ctypes.c_uint(entries), ctypes.c_void_p(address_of(params))
        ),
        "io_uring_setup",
    )
    sq_entries, cq_entries, features = _PARAMS.unpack_from(params)
    _, sq_tail, _, _, _, _, sq_array = _OFFSETS.unpack_from(params, _PARAMS.size)
    cq_head, cq_tail, _, _, _, cqes, _ = _OFFSETS.unpack_from(params, _PARAMS.size + _OFFSETS.size)
    if not features & _FEAT_SINGLE_MMAP:
        os.close(fd)
        raise OSError(errno.ENOSYS, "it is too old")
    return fd, _Layout(sq_entries, cq_entries, sq_tail, sq_array, cq_head, cq_tail, cqes)


def _iovec(views: Sequence[memoryview]) -> bytearray:
    """An array of struct iovec."""
    pairs = [number for view in views for number in (address_of(view), len(view))]
    return bytearray(struct.pack(f"={len(pairs)}Q", *pairs))


def address_of(area: bytearray | memoryview) -> int:
    """Where these writable bytes lie in our memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
