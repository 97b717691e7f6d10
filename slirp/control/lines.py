"""Connections that stay: lines in, lines out, as many as a client likes and as it reads.

    listener ─→ admitted? ─→ Line ─→ conversation.heard(bytes) ⇄ line.send(bytes) … line.finish()

What a client sends is handed to its `Conversation` as it comes; what that sends goes to the kernel
at once and, beyond what the kernel takes, into a buffer. While something waits there the client is
not read from: one that asks and never reads stands still by itself, and what it costs is one reply.
Events are not asked for, so they have a bound of their own. What a client may cost is bounded:

- CLIENTS_MAX are connected at once; the next is turned away (those who watch events are quiet, so
  none makes room for another);
- EVENTS_UNREAD_MAX bytes of events wait for one client; with one more it is dropped;
- a client that takes no byte of what waits for STILL_FOR is dropped.

A client that dies is forgotten, in the middle of a line or of a reply. Each of these is counted.

Who may connect is asked of the kernel (SO_PEERCRED): the network's owner and root. A process that
is this very one is refused: that is the network itself on behalf of a guest, where a forward or a
rule was made to lead to the socket's path by mistake. Where the guests are processes of this
machine, those in their network namespace are refused as well.

Does not do: know what the bytes mean.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from slirp.control.clients import READ_MAX, STILL_FOR, Loop
from slirp.shortage import is_shortage, persist

ACCEPTS_PER_TURN: Final = 16
CLIENTS_MAX: Final = 64  # connections at once, each a descriptor
EVENTS_UNREAD_MAX: Final = 1 << 20  # bytes of events that one client has not read
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid: struct ucred, linux/socket.h

Peer: TypeAlias = tuple[int, int]  # process and user


class Conversation(Protocol):
    """One client's side of the protocol."""

    def heard(self, data: bytes, ended: bool) -> None:
        """More of what the client says; `ended`: there is nothing to come."""

    @property
    def has_more(self) -> bool:
        """Will it go on without hearing anything more?"""

    def over(self) -> None:
        """The client is gone."""


class Line:
    """One connection."""

    __slots__ = (
        "_ended", "_lines", "_pending", "_watching", "conversation", "finishing", "moved_at",
        "peer", "sock",
    )  # fmt: skip

    def __init__(self, lines: Lines, sock: socket.socket, peer: Peer, now: float) -> None:
        self._lines = lines
        self.sock = sock
        self.peer = peer
        self.conversation: Conversation | None = None
        self._pending = bytearray()
        self._watching = ""  # "r", "w", "" for neither, "gone" when it is closed
        self._ended = False  # it has said everything
        self.finishing = False  # close when everything is sent
        self.moved_at = now

    @property
    def unread(self) -> int:
        """Bytes that wait for the client."""
        return len(self._pending)

    def send(self, data: bytes) -> None:
        """To the client, now or when it has read what is before it."""
        if self._watching == "gone":
            return
        if not self._pending:
            self.moved_at = self._lines.loop.now
        self._pending += data
        self._flush()

    def send_event(self, data: bytes) -> None:
        """The same, unless too much waits already: then the client is dropped."""
        if self.unread > EVENTS_UNREAD_MAX:
            self._lines.drop(self, "unread")
        else:
            self.send(data)

    def finish(self) -> None:
        """Nothing more is said; close when the client has it."""
        self.finishing = True
        self._flush()

    def settle(self) -> None:
        """The conversation has gone as far as it could."""
        self._flush()

    def _handle_writable(self) -> None:
        self._flush()
        if not self._pending and self._watching != "gone" and self.conversation is not None:
            self.conversation.heard(b"", self._ended)  # what waited for this

    def _flush(self) -> None:
        if self._watching == "gone":
            return
        try:
            while self._pending:
                sent = self.sock.send(self._pending)
                del self._pending[:sent]
                self.moved_at = self._lines.loop.now
        except OSError as error:
            if not is_shortage(error):
                self._lines.drop(self, "lost")
                return
            self._watch("w")
            self._lines.bear(self, error)
            self._lines.loop.visit_at(self._lines, self.moved_at + STILL_FOR)
            return
        assert self.conversation is not None
        if self.finishing or (self._ended and not self.conversation.has_more):
            self._lines.drop(self)
        else:
            self._watch("" if self._ended else "r")

    def detach(self) -> socket.socket | None:
        """The socket, for who goes on without us; None: the client is gone, or has not read."""
        if self._watching == "gone" or self._pending:
            return None
        return self._lines.detach(self)

    def _watch(self, what: str) -> None:
        if self._watching == what:
            return
        loop, fd = self._lines.loop, self.sock.fileno()
        if self._watching:
            loop.unwatch(fd)
        self._watching = what
        if what == "r":
            loop.watch(fd, self.handle_readable)
        elif what == "w":
            loop.watch(fd, self._handle_writable, writing=True)

    def begin(self) -> None:
        """Read what it sent before it was accepted, as most have."""
        self.handle_readable()
        if not self._watching and not self._ended:
            self._watch("r")

    def handle_readable(self) -> None:
        """The client said something, or has gone."""
        assert self.conversation is not None
        try:
            data = self.sock.recv(READ_MAX)
        except OSError as error:
            if is_shortage(error):
                if self._watching:
                    self._lines.bear(self, error)
            else:
                self._lines.drop(self, "lost")
            return
        self._ended = not data
        self.conversation.heard(data, self._ended)
        if self._ended:
            self._flush()

    def close(self) -> None:
        """Forget it."""
        if self._watching == "gone":
            return
        if self._watching:
            self._lines.loop.unwatch(self.sock.fileno())
        self._watching = "gone"
        self._pending.clear()
        self.sock.close()
        if self.conversation is not None:
            self.conversation.over()


class Lines:
    """A listening Unix socket and who is connected to it. `listener` becomes ours."""

    def __init__(
        self,
        listener: socket.socket,
        loop: Loop,
        converse: Callable[[Line], Conversation],
        is_admitted: Callable[[Peer], bool],
    ) -> None:
        self.stats = {
            "connected": 0, "refused": 0, "turned_away": 0, "unread": 0, "lost": 0, "shortages": 0,
        }  # fmt: skip
        self.loop = loop
        self._listener = listener
        self._converse = converse
        self._is_admitted = is_admitted
        self._lines: dict[Line, None] = {}
        self.visit: float | None = None
        loop.watch(listener.fileno(), self._handle_connect)

    def __len__(self) -> int:
        return len(self._lines)

    def fileno(self) -> int:
        """Of the listening socket."""
        return self._listener.fileno()

    def _handle_connect(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):  # none is left, or it is gone again
                return
            except OSError:  # no descriptor is left
                self.loop.rest(self._listener.fileno())
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        peer = peer_of(sock)
        if not self._is_admitted(peer):
            self.stats["refused"] += 1
            sock.close()
        elif len(self._lines) >= CLIENTS_MAX:
            self.stats["turned_away"] += 1
            sock.close()
        else:
            persist(sock.setblocking, False)
            self.stats["connected"] += 1
            line = Line(self, sock, peer, self.loop.now)
            line.conversation = self._converse(line)
            self._lines[line] = None
            line.begin()

    def bear(self, line: Line, error: OSError) -> None:
        """More than that it is busy? Then the loop comes back to it later, not at once."""
        if not isinstance(error, BlockingIOError):
            self.stats["shortages"] += 1
            self.loop.rest(line.sock.fileno())

    def drop(self, line: Line, reason: str = "") -> None:
        """Close a connection."""
        if line in self._lines:
            del self._lines[line]
            if reason:
                self.stats[reason] += 1
            line.close()

    def detach(self, line: Line) -> socket.socket:
        """Let a connection go without ending it."""
        sock = socket.socket(fileno=os.dup(line.sock.fileno()))
        self.drop(line)
        return sock

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: who has not read for too long."""
        next_at = None
        for line in list(self._lines):
            if not line.unread:
                continue
            at = line.moved_at + STILL_FOR
            if at <= now:
                self.drop(line, "unread")
            elif next_at is None or at < next_at:
                next_at = at
        return next_at

    def close(self) -> None:
        """Drop everybody and stop listening. What was said last goes out as far as it can."""
        for line in list(self._lines):
            self.drop(line)
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()


def peer_of(sock: socket.socket) -> Peer:
    """Who connected, as the kernel knows it."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def is_owner(peer: Peer) -> bool:
    """The network's own user or root, and not the network itself on behalf of a guest."""
    pid, uid = peer
    return uid in (os.geteuid(), 0) and pid != os.getpid()


def is_in(peer: Peer, namespace: int | None) -> bool:
    """Is the peer in the network namespace of this inode? Not, as far as a sandbox can see."""
    if namespace is None:
        return False
    try:
        return os.stat(f"/proc/{peer[0]}/ns/net").st_ino == namespace
    except OSError:
        return False
