"""The socket between front-end and back-end: whole messages in, replies out.

Never more is read than the message that is under way, header first and then its payload, so that
the descriptors which arrive meanwhile are its own (the kernel does not run one `recvmsg` across
descriptors of two messages either). Nothing waits: half a message stays until the rest comes, and a
front-end that does not take its replies is over.

Does not do: anything with a message.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final

from nic.port import Shortage
from nic.vhost_user.messages import FDS_MAX, HEADER, BadMessage, Header, Message
from slirp.shortage import is_shortage

_ANCILLARY_LEN: Final = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


class Hangup(Exception):
    """The front-end is not there any more, or may as well not be."""


class Channel:
    """One connection, owned from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._header: Header | None = None  # of the message that is under way
        self._data = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Message | None:
        """The next message; None: it is not all there. Raises BadMessage, Hangup and Shortage."""
        if self._header is None:
            data = self._collect(HEADER.size)
            if data is None:
                return None
            self._header = Header.parse(data)
        header = self._header
        payload = self._collect(header.size)
        if payload is None:
            return None
        self._header = None
        fds, self._fds = self._fds, []
        return Message(header, payload, fds)

    def _collect(self, size: int) -> bytes | None:
        """So many bytes, or None where they are not all there."""
        while len(self._data) < size:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    size - len(self._data), _ANCILLARY_LEN, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except OSError as error:
                if is_shortage(error):
                    raise Shortage(error.errno, "no memory for a message") from None
                raise Hangup(f"lost its connection: {error.strerror}") from None
            self._take_fds(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
                raise BadMessage(f"sent more than {FDS_MAX} descriptors, or there is no room")
            if not data:
                inside = self._data or self._header is not None
                raise Hangup("closed its connection" + (" inside a message" if inside else ""))
            self._data += data
        collected = bytes(self._data)
        self._data.clear()
        return collected

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
