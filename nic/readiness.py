"""One descriptor that is readable when a port has something to do, reading or writing.

The loop waits for a port's `fileno()` to be readable and for nothing else. A port over a socket
that can refuse to take bytes also waits for room in it, but only after a refusal: a socket that
has room is always writable, and whoever waits for that turns for ever. So the port hands out an
epoll descriptor of its own, which always watches the socket it reads and, while something is
blocked, the socket it writes to.

Does not do: read, write, or own the sockets.
"""

from __future__ import annotations

import select


class Readiness:
    """Watches `reader` for bytes and, while asked to, a writer for room."""

    def __init__(self, reader: int) -> None:
        self._epoll = select.epoll()
        self._reader = reader
        self._writer = -1  # watched for room; -1: nothing is blocked
        self.blocked = False  # is room waited for?
        self._epoll.register(reader, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def await_room(self, writer: int) -> None:
        """`writer` took no more: be readable when it does."""
        if self._writer == writer:
            return
        self.found_room()
        self._writer = writer
        self.blocked = True
        if writer == self._reader:
            self._epoll.modify(writer, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._epoll.register(writer, select.EPOLLOUT)

    def found_room(self) -> None:
        """Nothing is blocked; to be called before the writer is closed."""
        self.blocked = False
        writer, self._writer = self._writer, -1
        if writer < 0:
            return
        if writer == self._reader:
            self._epoll.modify(writer, select.EPOLLIN)
        else:
            self._epoll.unregister(writer)

    def rest(self) -> None:
        """Watch nothing any more: the other end is gone, and would be reported for ever."""
        self.found_room()
        if self._reader >= 0:
            self._epoll.unregister(self._reader)
            self._reader = -1

    def close(self) -> None:
        self._epoll.close()
