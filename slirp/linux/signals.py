"""Signals to read from a descriptor, instead of handlers that interrupt.

`signalfd(2)` says who sent a signal: a terminal's Ctrl-C, which reaches the whole process group by
itself, can be told from somebody's kill.

Does not do: decide what a signal means.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from slirp.linux.syscalls import checked, libc

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

SFD_NONBLOCK: Final = os.O_NONBLOCK
SFD_CLOEXEC: Final = os.O_CLOEXEC
SIGSET_LEN: Final = 128  # bytes of sigset_t in glibc and musl
SIGNALFD_SIGINFO: Final = struct.Struct("IiiI112x")  # signo, errno, code, pid of 128 bytes
SI_KERNEL: Final = 0x80  # ssi_code: sent by the kernel, such as a terminal's Ctrl-C


class SignalFd:
    """Signals to read from a descriptor instead of handlers that interrupt."""

    def __init__(self, signals: Iterable[int]) -> None:
        numbers = set(signals)
        bits = sum(1 << (number - 1) for number in numbers)
        mask = bits.to_bytes(8, "little" if _little_endian() else "big").ljust(SIGSET_LEN, b"\0")
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        flags = ctypes.c_int(SFD_NONBLOCK | SFD_CLOEXEC)
        self._fd = checked(libc.signalfd(ctypes.c_int(-1), mask, flags), "signalfd")

    def fileno(self) -> int:
        return self._fd

    def read(self) -> Iterator[tuple[int, int, int]]:
        """The signals that have come since the last call: number, code, and who sent it.

        The last is a process, or 0 for the kernel.
        """
        try:
            data = os.read(self._fd, 16 * SIGNALFD_SIGINFO.size)
        except BlockingIOError:
            return
        for number, _, code, pid in SIGNALFD_SIGINFO.iter_unpack(data):
            yield number, code, pid

    def restore_mask(self) -> None:
        """For a forked child: as it was before, so that what it executes is not deaf."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def close(self) -> None:
        os.close(self._fd)
        self.restore_mask()


def _little_endian() -> bool:
    return struct.pack("=H", 1) == b"\1\0"
