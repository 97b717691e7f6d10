"""The socket between front-end and back-end: whole messages in, replies out.

Never more is read than the message that is under way, header first and then its payload, so that
the descriptors which arrive meanwhile are its own (the kernel does not run one `recvmsg` across
descriptors of two messages either). Half a message stays until the rest comes.

Does not do: anything with a message.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nic.fdstream import FdStream, Hangup, TooManyDescriptors
from nic.vhost_user.messages import FDS_MAX, HEADER, BadMessage, Header, Message


class Channel(FdStream):
    """One connection to a front-end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, FDS_MAX)
        self._header: Header | None = None  # of the message that is under way
        self._data = bytearray(HEADER.size)  # its header, and then its payload
        self._filled = 0  # bytes of `_data`

    def receive(self) -> Message | None:
        """The next message; None: it is not all there. Raises BadMessage, Hangup and Shortage."""
        if self._header is None:
            if not self._fill():
                return None
            self._header = Header.parse(bytes(self._data))
            self._expect(self._header.size)
        if not self._fill():
            return None
        header, payload = self._header, bytes(self._data)
        self._header = None
        self._expect(HEADER.size)
        return Message(header, payload, self.take_fds())

    def _expect(self, size: int) -> None:
        self._data = bytearray(size)
        self._filled = 0

    def _fill(self) -> bool:
        """Read until `_data` is full; False: there is no more yet."""
        while self._filled < len(self._data):
            try:
                size = self.read_into(memoryview(self._data)[self._filled :])
            except TooManyDescriptors as many:
                raise BadMessage(str(many)) from None
            if size is None:
                return False
            if not size:
                inside = self._filled or self._header is not None
                raise Hangup("closed its connection" + (" inside a message" if inside else ""))
            self._filled += size
        return True

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """With the message that is under way."""
        data = bytes(self._data[: self._filled])
        return {**super().carried(place), "header": self._header, "data": data.hex()}

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket."""
        super().resume(values, fds)
        header, data = values["header"], bytes.fromhex(values["data"])
        self._header = None if header is None else Header(*map(int, header))
        self._expect(HEADER.size if self._header is None else self._header.size)
        self._data[: len(data)] = data
        self._filled = len(data)
