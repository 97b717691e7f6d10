"""A Unix stream socket that descriptors come through, as vhost-user and vfio-user use one.

Nothing waits: what has not arrived is waited for elsewhere, and a peer that does not take its
replies is over. Descriptors belong to whoever takes them (`take_fds`); until then they are closed
with the stream.

How many bytes one read may ask for is the caller's to say, since which descriptors belong to which
message depends on it: the kernel ends a read behind the bytes that descriptors came with.

Bound: `fds_max` descriptors that nobody has taken.

Does not do: messages.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nic.port import Shortage
from slirp.shortage import is_shortage

_CTRUNC: Final = int(socket.MSG_CTRUNC)  # an enum's `&` costs a microsecond
_EVENTFD: Final = "anon_inode:[eventfd]"


class Hangup(Exception):
    """The peer is not there any more, or may as well not be."""


class TooManyDescriptors(Exception):
    """More than `fds_max`, or than this process has room for."""


class FdStream:
    """One connection, owned from now on."""

    def __init__(self, sock: socket.socket, fds_max: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fds_max = fds_max
        self._ancillary_len = socket.CMSG_SPACE(fds_max * array.array("i").itemsize)
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def read_into(self, view: memoryview) -> int | None:
        """Bytes that came, 0 at the end; None: nothing yet.

        Raises Hangup, TooManyDescriptors and Shortage.
        """
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [view], self._ancillary_len, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            if is_shortage(error):
                raise Shortage(error.errno, "no memory for a message") from None
            raise Hangup(f"lost its connection: {error.strerror}") from None
        self._keep(ancillary)
        if flags & _CTRUNC or len(self._fds) > self._fds_max:
            raise TooManyDescriptors(
                f"sent more than {self._fds_max} descriptors, or there is no room"
            )
        return size

    def _keep(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds

    def take_fds(self) -> list[int]:
        """The descriptors that have come since the last time; they are the caller's."""
        fds, self._fds = self._fds, []
        return fds

    def send(self, data: bytes, *fds: int) -> None:
        """One reply, at once, with descriptors that stay the caller's. Raises Hangup."""
        try:
            sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Hangup(f"lost its connection: {error.strerror}") from None
        if sent < len(data):
            raise Hangup("does not take its replies")

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """For another process: the socket, and descriptors that nobody has taken.

        `place` notes a descriptor; what it makes of it stands for it.
        """
        return {"sock": place(self._sock.fileno()), "fds": [place(fd) for fd in self._fds]}

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket."""
        self._fds = [fds[at] for at in values["fds"]]

    def close(self) -> None:
        for fd in self.take_fds():
            os.close(fd)
        self._sock.close()


def take_eventfd(fd: int) -> bool:
    """Have an eventfd that was passed never block; False: it is none."""
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # there is no /proc
        kind = _EVENTFD
    if kind == _EVENTFD:
        os.set_blocking(fd, False)
    return kind == _EVENTFD
