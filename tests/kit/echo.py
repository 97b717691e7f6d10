"""Servers on the host's loopback that tests talk to, driven by the test itself: no threads.

Does not do: anything by itself. `pump()` does what can be done now.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self


def both_on_one_port(address: str, port: int = 0) -> tuple[socket.socket, socket.socket]:
    """A listener, and a UDP socket with the same number: others may have that, so it is tried."""
    while True:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=128)
        listener.setblocking(False)
        datagrams = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            datagrams.bind(listener.getsockname())
        except OSError:
            listener.close()
            datagrams.close()
            if port:
                raise
        else:
            return listener, datagrams


class EchoServer:
    """TCP and UDP on one address: what comes goes back. Call `pump` between turns."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.listener, self.udp = both_on_one_port(address)
        self.port: int = self.listener.getsockname()[1]
        self.peers: list[socket.socket] = []
        self.datagrams: list[tuple[bytes, tuple[str, int]]] = []

    def pump(self) -> bool:
        """Accept, echo; True, so that it can stand in a condition."""
        with contextlib.suppress(BlockingIOError):
            peer, _ = self.listener.accept()
            peer.setblocking(False)
            self.peers.append(peer)
        for peer in self.peers:
            with contextlib.suppress(OSError):
                data = peer.recv(65536)
                peer.send(data) if data else peer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(BlockingIOError):
            datagram = self.udp.recvfrom(65536)
            self.datagrams.append(datagram)
            self.udp.sendto(*datagram)
        return True

    def close(self) -> None:
        for sock in (self.listener, self.udp, *self.peers):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
