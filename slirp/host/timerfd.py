"""A timer that is a descriptor (timerfd_create(2)), for loops that are driven from outside.

Python has it from 3.13 on; before, the C library is asked through ctypes, which is imported only
when somebody takes the loop's descriptor into an event loop of their own.

Does not do: intervals, other clocks than the monotonic one.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any, Final

CLOCK_MONOTONIC: Final = 1
TFD_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
TFD_TIMER_ABSTIME: Final = 1
_ITIMERSPEC: Final = struct.Struct("4q")  # interval, value: seconds and nanoseconds each

_libc: Any = None


def _library() -> Any:
    global _libc
    if _libc is None:
        import ctypes

        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def create() -> int:
    """A new timer's descriptor, not set."""
    fd: int = _library().timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK_CLOEXEC)
    if fd < 0:
        raise OSError("no timer descriptor is to be had")
    return fd


def set_at(fd: int, at: float | None) -> None:
    """Readable from the monotonic instant `at` on; None: never; the past: at once."""
    if at is None:
        seconds = nanoseconds = 0
    else:
        seconds = max(int(at), 0)
        nanoseconds = max(int((at - seconds) * 1e9), 0 if seconds else 1)  # 0 and 0: never
    _library().timerfd_settime(
        fd, TFD_TIMER_ABSTIME, _ITIMERSPEC.pack(0, 0, seconds, nanoseconds), None
    )


def clear(fd: int) -> None:
    """Take what has expired, so that the descriptor is no longer readable."""
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)
