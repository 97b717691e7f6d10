"""Two connected sockets, each one's bytes written to the other: for what cannot be one flow.

A forward with a PROXY header has bytes of its own to send before the peer's. A flow's payload is
in the queue of its one socket, so the header needs a socket to be in: the flow gets one end of a
pair, and a pump carries the peer's bytes to the other end and the guest's back. This copies what
all other forwards do not; up to HELD_MAX bytes per direction are held, and what is not taken is
not read.

An end passes through (half-closed connections stay so). Where the guest resets, the peer is reset;
a peer's reset arrives at the guest as an end, since a socket pair knows no other.

Does not do: urgent data.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from slirp.host.descriptors import reset
from slirp.host.loop import EDGE, HANGUP, RDHUP, READABLE, WRITABLE, Loop
from slirp.shortage import is_shortage, persist

EVENTS: Final = READABLE | WRITABLE | RDHUP | EDGE  # each move goes on until nothing goes
HELD_MAX: Final = 65536  # bytes per direction


class _Way:
    """From one socket to the other."""

    __slots__ = ("broken", "ended", "held", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, held: bytes = b"") -> None:
        self.source = source
        self.sink = sink
        self.held = held
        self.broken = False  # the source's end, when it comes, is none that may be passed on
        self.ended = False  # the source's end was read, and passed on when nothing is held

    def move(self) -> None:
        """As much as goes. Raises OSError where one of the two is broken, or short of something."""
        try:
            while not (self.ended and not self.held):
                if self.held:
                    self.held = self.held[self.sink.send(self.held) :]
                    continue
                self.held = self.source.recv(HELD_MAX)
                if not self.held:
                    if self.broken:
                        raise ConnectionResetError
                    self.ended = True
                    self.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return

    @property
    def is_over(self) -> bool:
        return self.ended and not self.held


class Pump:
    """`head` goes to `inner` before anything of `outer`'s; `on_end` is called once, at the end."""

    def __init__(
        self,
        loop: Loop,
        outer: socket.socket,
        inner: socket.socket,
        head: bytes,
        on_end: Callable[[Pump], None],
    ) -> None:
        self._loop = loop
        self._outer = outer
        self._inner = inner
        self._in = _Way(outer, inner, head)
        self._out = _Way(inner, outer)
        self._on_end = on_end
        self._closed = False

    def start(self) -> None:
        """Begin with the loop's next turn."""
        for sock in (self._outer, self._inner):
            persist(sock.setblocking, False)
            self._loop.register(sock.fileno(), EVENTS, partial(self._handle_ready, sock))

    def _handle_ready(self, sock: socket.socket, events: int, now: float) -> None:
        if self._closed:
            return
        if sock is self._inner and events & HANGUP and not self._in.is_over:
            self._out.broken = True  # the guest's side is gone altogether, and takes nothing more
        try:
            self._in.move()
            self._out.move()
        except OSError as error:
            if is_shortage(error):
                raise  # the loop comes back to it
            self.close()
            return
        if self._in.is_over and self._out.is_over:
            self._end()
            self._outer.close()
        elif self._out.broken and self._out.is_over:
            self.close()  # its end had been passed on before

    def close(self) -> None:
        """End at once: the peer is reset."""
        if not self._closed:
            self._end()
            reset(self._outer)

    def _end(self) -> None:
        self._closed = True
        for sock in (self._outer, self._inner):
            self._loop.unregister(sock.fileno())
        self._inner.close()
        self._on_end(self)
