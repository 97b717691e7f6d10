"""Prometheus metrics on a TCP port of the host: `--metrics [HOST:]PORT`.

What is answered there is slirp.control.http's; nothing can be changed through it. A guest cannot
read it either: the gateway's address leads to the host's loopback, and so to this port, but such a
connection comes from a socket of the network's own, which is looked for and refused.

A scrape is small: it is read, answered and closed. MAX connections at once; one that says nothing
for WAIT_FOR is closed.

Does not do: TLS, passwords; whoever opens it to others (HOST) decides who may read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from slirp.control.clients import READ_MAX
from slirp.control.http import answer_http
from slirp.errors import ConfigError
from slirp.network import Network
from slirp.shortage import is_shortage

BACKLOG: Final = 16
MAX: Final = 16  # connections at once; the next is turned away
WAIT_FOR: Final = 10.0  # seconds for a whole exchange
HEAD_MAX: Final = 8192  # bytes of a request
LOOPBACK: Final = "127.0.0.1"


class _Scrape:
    """One connection."""

    def __init__(self, port: MetricsPort, sock: socket.socket, until: float) -> None:
        self._port = port
        self._sock = sock
        self.until = until
        self._head = b""
        self._answer = b""

    def begin(self) -> None:
        self._port.network.watch(self._sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_MAX)
        except OSError as error:
            if not is_shortage(error):
                self.end()
            return
        self._head += data
        whole = b"\r\n\r\n" in self._head or b"\n\n" in self._head
        if data and not whole and len(self._head) <= HEAD_MAX:
            return
        self._answer = answer_http(self._head, self._port.metrics)
        self._port.network.unwatch(self._sock.fileno())
        self._port.network.watch(self._sock.fileno(), self._write, writing=True)

    def _write(self) -> None:
        try:
            self._answer = self._answer[self._sock.send(self._answer) :]
            if not self._answer:
                self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if is_shortage(error):
                return
            self._answer = b""
        if not self._answer:
            self.end()

    def end(self) -> None:
        self._port.network.unwatch(self._sock.fileno())
        self._sock.close()
        self._port.scrapes.pop(self, None)


class MetricsPort:
    """The port. Raises ConfigError for an address that is none, OSError where it is not to be had.

    `address` has the port that was bound. Close it before its network.
    """

    def __init__(
        self,
        where: str,
        network: Network,
        metrics: Callable[[], str],
        listener: socket.socket | None = None,
    ) -> None:
        """`listener`: the one that a process before this one had there."""
        self.network = network
        self.metrics = metrics
        self.refused = 0
        self.scrapes: dict[_Scrape, None] = {}
        self.visit: float | None = None
        self._listener = listener or _listen(where)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        network.watch(self._listener.fileno(), self._handle_connect)

    def fileno(self) -> int:
        """The listener's."""
        return self._listener.fileno()

    def _handle_connect(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            self.network.rest(self._listener.fileno())
            return
        if len(self.scrapes) >= MAX or self.network.is_own_socket(peer[0], peer[1]):
            self.refused += 1
            sock.close()
            return
        sock.setblocking(False)
        scrape = _Scrape(self, sock, self.network.now + WAIT_FOR)
        self.scrapes[scrape] = None
        scrape.begin()
        self.network.visit_at(self, scrape.until)

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: who says nothing, or does not read."""
        for scrape in list(self.scrapes):
            if scrape.until <= now:
                scrape.end()
        return min((scrape.until for scrape in self.scrapes), default=None)

    def close(self) -> None:
        """End every connection and stop listening."""
        for scrape in list(self.scrapes):
            scrape.end()
        self.network.unwatch(self._listener.fileno())
        self._listener.close()


def _listen(where: str) -> socket.socket:
    host, port = parse_address(where)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def parse_address(text: str) -> tuple[str, int]:
    """`9100`, `127.0.0.1:9100`, `[::1]:9100`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigError(f"metrics {text}: write PORT or ADDR:PORT, as 127.0.0.1:9100", "metrics")
    return {"": LOOPBACK, "localhost": LOOPBACK, "*": "0.0.0.0"}.get(host, host), int(port)
