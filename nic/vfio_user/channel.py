"""The socket between client and server: whole messages in, replies out.

A guest's every register access is a message of its own and its driver waits for it, so what has
arrived is read with one call, however many messages that is. Descriptors must not get lost in this:
the kernel ends a read behind the bytes that descriptors came with, so those of one read belong to
the message that its last byte is in.

Nothing waits: half a message stays until the rest comes, and a client that does not take its
replies is over.

Bounds: a read is at most two messages of the greatest length, or 1,024 of the least.

Does not do: anything with a message.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final

from nic.port import Shortage
from nic.vfio_user.messages import FDS_MAX, HEADER, MESSAGE_MAX, BadMessage, Header, Message
from slirp.shortage import is_shortage

_CTRUNC: Final = int(socket.MSG_CTRUNC)  # an enum's `&` costs a microsecond
_ANCILLARY_LEN: Final = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


class Hangup(Exception):
    """The client is not there any more, or may as well not be."""


class Channel:
    """One connection, owned from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = memoryview(bytearray(2 * MESSAGE_MAX))
        self._start = 0  # bytes before this one were handed out
        self._end = 0  # bytes from this one on are free
        self._fds: list[int] = []  # of the message in which byte _end - 1 is

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> bool:
        """Read what has arrived, once; False: nothing. Raises BadMessage, Hangup and Shortage.

        The messages before it must have been taken.
        """
        self._move()
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._buffer[self._end :]], _ANCILLARY_LEN, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError as error:
            if is_shortage(error):
                raise Shortage(error.errno, "no memory for a message") from None
            raise Hangup(f"lost its connection: {error.strerror}") from None
        self._take_fds(ancillary)
        if flags & _CTRUNC or len(self._fds) > FDS_MAX:
            raise BadMessage(f"sent more than {FDS_MAX} descriptors, or there is no room")
        if not size:
            inside = self._end > self._start
            raise Hangup("closed its connection" + (" inside a message" if inside else ""))
        self._end += size
        return True

    def next(self) -> Message | None:
        """The next message of those that were read; None: it is not all there."""
        start, end = self._start, self._end
        if end - start < HEADER.size:
            return None
        header = Header.parse(self._buffer[start:end])
        stop = start + header.size
        if stop > end:
            return None
        self._start = stop
        payload = bytes(self._buffer[start + HEADER.size : stop])
        fds: list[int] = []
        if stop == end:  # the last byte read is its
            fds, self._fds = self._fds, fds
        return Message(header, payload, fds)

    def _move(self) -> None:
        """Half a message goes to the front, where the rest has room."""
        start, end = self._start, self._end
        if start:
            self._buffer[: end - start] = bytes(self._buffer[start:end])
            self._start, self._end = 0, end - start

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds

    def send(self, data: bytes) -> None:
        """One reply, at once. Raises Hangup."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Hangup(f"lost its connection: {error.strerror}") from None
        if sent < len(data):
            raise Hangup("does not take its replies")

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()
