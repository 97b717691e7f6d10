"""The socket between client and server: whole messages in, replies out.

A guest's every register access is a message of its own and its driver waits for it, so what has
arrived is read with one call, however many messages that is. Descriptors must not get lost in this:
the kernel ends a read behind the bytes that descriptors came with, so those of one read belong to
the message that its last byte is in. Half a message stays until the rest comes.

Bounds: a read is at most two messages of the greatest length, or 1,024 of the least.

Does not do: anything with a message.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nic.fdstream import FdStream, Hangup, TooManyDescriptors
from nic.vfio_user.messages import FDS_MAX, HEADER, MESSAGE_MAX, BadMessage, Header, Message


class Channel(FdStream):
    """One connection to a client."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, FDS_MAX)
        self._buffer = memoryview(bytearray(2 * MESSAGE_MAX))
        self._start = 0  # bytes before this one were handed out
        self._end = 0  # bytes from this one on are free

    def read(self) -> bool:
        """Read what has arrived, once; False: nothing. Raises BadMessage, Hangup and Shortage.

        The messages before it must have been taken.
        """
        self._move()
        try:
            size = self.read_into(self._buffer[self._end :])
        except TooManyDescriptors as many:
            raise BadMessage(str(many)) from None
        if size is None:
            return False
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
        # The last byte that was read is in the message that the descriptors belong to
        return Message(header, payload, self.take_fds() if stop == end else [])

    def _move(self) -> None:
        """Half a message goes to the front, where the rest has room."""
        start, end = self._start, self._end
        if start:
            self._buffer[: end - start] = bytes(self._buffer[start:end])
            self._start, self._end = 0, end - start

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """With the message that is under way."""
        data = bytes(self._buffer[self._start : self._end])
        return {**super().carried(place), "data": data.hex()}

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket."""
        super().resume(values, fds)
        data = bytes.fromhex(values["data"])
        self._buffer[: len(data)] = data
        self._start, self._end = 0, len(data)
