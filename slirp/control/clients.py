"""The connections of a control socket: whole requests in, whole replies out, however large.

Whoever connects is read from until `respond` has a reply; what the kernel does not take of it at
once is kept and sent from the loop when the client has read, and then the connection is closed. A
client that was quick, as most are, is answered while it is accepted and never gets into the loop.

    connect ──→ read ──→ respond(bytes so far, ended) ──→ None: more is to come
                                                       └─→ reply ──→ send ⇄ wait for room ──→ close

Nothing here waits for anybody. What a client may cost is bounded:

- BACKLOG connections wait to be accepted; connect() of the next waits, or fails with EAGAIN where
  the caller does not want to wait;
- CLIENTS_MAX are open at once; the one that has been still for longest makes room for the next;
- a client that reads nothing of its reply for STILL_FOR is dropped;
- UNREAD_MAX bytes of replies are held for all of them; beyond it the one that has been still for
  longest goes, but the newest reply is held whatever its size.

Each of these is counted (`stats`). A request's length is `respond`'s to bound.

Does not do: several requests per connection; know what the bytes mean.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from slirp.shortage import is_shortage, persist

BACKLOG: Final = 4096  # connections; the kernel takes net.core.somaxconn (4096) at the most
ACCEPTS_PER_TURN: Final = 64
CLIENTS_MAX: Final = 256  # connections at once, each a descriptor
READ_MAX: Final = 65536  # bytes taken at once, so that a long request's rest is not left unread
STILL_FOR: Final = 10.0  # seconds without taking a byte of a reply that waits
UNREAD_MAX: Final = 32 << 20  # bytes of replies; a forward takes 290 in slirp4netns's listing

Respond = Callable[[bytes, bool], bytes | None]


class Timed(Protocol):
    """What a loop visits (slirp.host.loop)."""

    visit: float | None

    def handle_timeout(self, now: float) -> float | None: ...


class Loop(Protocol):
    """The loop of a network."""

    @property
    def now(self) -> float: ...
    def watch(self, fd: int, ready: Callable[[], None], *, writing: bool = False) -> None: ...
    def rest(self, fd: int) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def visit_at(self, timed: Timed, at: float) -> None: ...


class Client:
    """One connection."""

    __slots__ = ("moved_at", "reply", "request", "sock", "watched")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.request = bytearray()
        self.reply: memoryview | None = None  # what it has not taken yet
        self.moved_at = now
        self.watched = False


class Clients:
    """A listening Unix socket and who is connected to it. `listener` becomes ours."""

    def __init__(self, listener: socket.socket, loop: Loop, respond: Respond) -> None:
        self.stats = {"answered": 0, "crowded_out": 0, "unread": 0, "shortages": 0}
        self._listener = listener
        self._loop = loop
        self._respond = respond
        self._clients: dict[int, Client] = {}  # by descriptor; first who has been still longest
        self._unread = 0
        self.visit: float | None = None
        loop.watch(listener.fileno(), self._handle_connect)

    def _handle_connect(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):  # none is left, or it is gone again
                return
            except OSError:  # no descriptor is left
                self._loop.rest(self._listener.fileno())
                return
            if len(self._clients) >= CLIENTS_MAX:
                self._drop(next(iter(self._clients.values())), "crowded_out")
            persist(sock.setblocking, False)
            self._clients[sock.fileno()] = client = Client(sock, self._loop.now)
            self._handle_readable(client)

    def _handle_readable(self, client: Client) -> None:
        try:
            data = client.sock.recv(READ_MAX)
        except OSError as error:
            if is_shortage(error):
                self._watch(client, lambda: self._handle_readable(client))
                self._bear(client, error)
            else:
                self._forget(client)
            return
        if data:
            self._has_moved(client)
        client.request += data
        reply = self._respond(bytes(client.request), not data)
        if reply is not None:
            self._answer(client, reply)
        elif data:
            self._watch(client, lambda: self._handle_readable(client))
        else:
            self._forget(client)

    def _answer(self, client: Client, reply: bytes) -> None:
        if client.watched:
            self._loop.unwatch(client.sock.fileno())
            client.watched = False
        client.request.clear()
        client.reply = memoryview(reply)
        self._unread += len(reply)
        self._send(client)
        if self._unread > UNREAD_MAX:
            self._make_room(client)

    def _send(self, client: Client) -> None:
        """Hand over what the kernel takes; the rest when the client has read."""
        assert client.reply is not None
        try:
            while client.reply:
                sent = client.sock.send(client.reply)
                client.reply = client.reply[sent:]
                self._unread -= sent
                self._has_moved(client)
            client.sock.shutdown(socket.SHUT_RDWR)
            self.stats["answered"] += 1
        except OSError as error:
            if is_shortage(error):
                self._watch(client, lambda: self._send(client), writing=True)
                self._bear(client, error)
                self._loop.visit_at(self, client.moved_at + STILL_FOR)
                return
            # it does not listen any more
        self._forget(client)

    def _bear(self, client: Client, error: OSError) -> None:
        """More than that it is busy? Then the loop comes back to it later, not at once."""
        if not isinstance(error, BlockingIOError):
            self.stats["shortages"] += 1
            self._loop.rest(client.sock.fileno())

    def _watch(self, client: Client, ready: Callable[[], None], *, writing: bool = False) -> None:
        if not client.watched:
            client.watched = True
            self._loop.watch(client.sock.fileno(), ready, writing=writing)

    def _has_moved(self, client: Client) -> None:
        client.moved_at = self._loop.now
        fd = client.sock.fileno()
        self._clients[fd] = self._clients.pop(fd)

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: who has not read for too long."""
        unread = [client for client in self._clients.values() if client.reply is not None]
        for client in unread:
            if client.moved_at + STILL_FOR > now:
                return client.moved_at + STILL_FOR
            self._drop(client, "unread")
        return None

    def _make_room(self, newest: Client) -> None:
        for client in list(self._clients.values()):
            if self._unread <= UNREAD_MAX:
                return
            if client.reply is not None and client is not newest:
                self._drop(client, "unread")

    def _drop(self, client: Client, reason: str) -> None:
        self.stats[reason] += 1
        self._forget(client)

    def _forget(self, client: Client) -> None:
        fd = client.sock.fileno()
        del self._clients[fd]
        self._unread -= len(client.reply or ())
        if client.watched:
            self._loop.unwatch(fd)
        client.sock.close()

    def close(self) -> None:
        """Drop everybody and stop listening."""
        for client in list(self._clients.values()):
            self._forget(client)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()


def listen(path: str) -> socket.socket:
    """A Unix socket that is its owner's alone. A file that is in the way is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o077)  # whoever may connect may open ports of the host
    try:
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
