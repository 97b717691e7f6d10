"""Servers on the host's loopback that tests talk to, driven by the test itself: no threads.

Does not do: anything by itself. `pump()` does what can be done now.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self


class EchoServer:
    """TCP and UDP on one address: what comes goes back. Call `pump` between turns."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.listener = socket.create_server((address, 0), backlog=128)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.bind((address, self.port))
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
