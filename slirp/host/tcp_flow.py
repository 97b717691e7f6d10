"""One TCP flow of the relay: the guest's side as numbers, the host's side as a socket.

An idle flow costs its connection's numbers, a socket object and the slots below. It acts through
its relay only; the loop and the port call it, since they hold one object per descriptor, deadline
or waiter.

Does not do: anything by itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import sys
import termios
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

from slirp.ip.template import PROTOCOL_TCP
from slirp.shortage import is_shortage, persist
from slirp.tcp import connection as tcp

if TYPE_CHECKING:
    from nic.port import Claim
    from slirp.address import SockAddr
    from slirp.host.attachment import Attachment
    from slirp.host.socket_endpoint import SocketEndpoint
    from slirp.ip.neighbours import Guest

RECEIVE_AHEAD: Final = 512 << 10  # bytes that the host may be ahead of a guest that is far
BROKEN_FOR: Final = 60.0  # seconds for a guest to take what a host sent before it reset
SO_PEEK_OFF: Final = 42
TCP_ESTABLISHED: Final = 1  # linux/tcp_states.h from here on
TCP_SYN_SENT: Final = 2
TCP_CLOSE: Final = 7
_ENDED: Final = (6, TCP_CLOSE, 8, 9, 11)  # what the peer's FIN, in order, or a reset leads to
MSG_TRUNC: Final = int(socket.MSG_TRUNC)


class Owner(Protocol):
    """The relay that a flow belongs to."""

    def handle_timeout(self, flow: TcpFlow, now: float) -> float | None: ...
    def handle_ready(self, flow: TcpFlow, events: int, now: float) -> None: ...
    def touch(self, flow: TcpFlow, events: int) -> None: ...
    def retry(self, flow: TcpFlow, now: float) -> None: ...
    def displace(self, flow: TcpFlow, now: float) -> None: ...
    def arrived(self, flow: TcpFlow, size: int, failure: int, now: float) -> None: ...
    def withdraw(self, flow: TcpFlow) -> None: ...


class Incoming:
    """A receive that is under way, and the claim that it goes into."""

    __slots__ = ("again", "claim", "endpoint", "length", "lengths", "seq", "views")

    def __init__(
        self,
        endpoint: SocketEndpoint,
        claim: Claim,
        views: tuple[memoryview, ...],
        seq: int,
        length: int,
        lengths: tuple[int, int, int],
    ) -> None:
        self.endpoint = endpoint
        self.claim = claim
        self.views = views
        self.seq = seq  # of the first byte
        self.length = length
        self.lengths = lengths  # of the headers
        self.again = False  # somebody wanted to send meanwhile


class TcpFlow:
    """One TCP connection between a guest and the host."""

    __slots__ = (
        "armed",
        "attachment",
        "broken_until",
        "chores_at",
        "conn",
        "connecting",
        "discard",
        "drained",
        "events",
        "finishing",
        "guest",
        "incoming",
        "kept",
        "kept_cost",
        "key",
        "number",
        "opened_at",
        "owned",
        "peek_at",
        "peeks",
        "readable",
        "receiving",
        "relay",
        "retry_at",
        "sock",
        "spill",
        "spilled",
        "template",
        "to_the_end",
        "touched",
        "visit",
    )

    def __init__(
        self,
        relay: Owner,
        key: bytes,
        conn: tcp.Connection,
        sock: socket.socket,
        guest: Guest,
    ) -> None:
        self.relay = relay
        self.key = key
        self.conn = conn
        self.sock: socket.socket | None = sock
        self.guest = guest
        self.attachment: Attachment = guest.attachment  # that its socket is charged to
        self.template = guest.family.answering(key, PROTOCOL_TCP)
        kind = sock.family
        self.discard = MSG_TRUNC if kind != socket.AF_UNIX else 0
        self.peeks = peek_offset_works(kind)
        self.owned = 0  # bytes at the front of the host's queue that the guest has acknowledged
        self.peek_at = -1  # where the socket's peek offset stands; -1: not set yet
        self.broken_until: float | None = None  # the host has failed; when the guest is told
        self.drained = False  # all that a broken host had sent has gone to the guest
        self.retry_at: float | None = None  # a call met a shortage: when it is made again
        self.chores_at: float | None = None  # when a delayed ACK or drop is due
        self.connecting = False
        self.armed = False  # writability was asked for and not reported yet
        self.readable = False  # the host's queue may hold bytes beyond peek_at
        self.to_the_end = False  # a short read is not the last one: a FIN or an urgent mark follows
        self.finishing = False  # the guest's FIN waits for the spill
        self.touched = False
        self.events = 0
        self.receiving: Incoming | None = None  # a receive that is under way
        self.spill: deque[memoryview] | None = None  # taken from the guest, not by the kernel
        self.spilled = 0
        self.kept: dict[int, bytes] | None = None  # ahead of rcv_nxt, by sequence number
        self.kept_cost = 0  # bytes that it is charged for
        self.number = 0  # as flows are called by whoever looks; the relay counts them
        self.opened_at = 0.0
        self.incoming = False  # the host opened it
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        return self.relay.handle_timeout(self, now)

    def handle_ready(self, events: int, now: float) -> None:
        """The host socket is ready."""
        self.relay.handle_ready(self, events, now)

    def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
        """What was to be received is there, or this errno is."""
        self.relay.arrived(self, size, failure, now)

    def withdraw(self) -> None:
        """The port takes back the room that a receive is under way into."""
        self.relay.withdraw(self)

    def resume(self, now: float) -> None:
        """The guest has room again, for what is new or for what has to be sent again."""
        self.relay.touch(self, tcp.SENDABLE | tcp.REWIND)

    def host_failed(self, now: float) -> None:
        """The host's side is broken. What waits for it is dropped; what its queue still holds goes
        to the guest, and then a RST does."""
        self.spill = None
        self.spilled = 0
        if self.broken_until is None:
            self.broken_until = now + BROKEN_FOR
        self.readable = self.to_the_end = True
        self.relay.touch(self, 0)


@cache
def peek_offset_works(family: socket.AddressFamily) -> bool:
    """Does this kernel know SO_PEEK_OFF for streams of this family?"""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
    return True


def tcp_state(sock: socket.socket) -> int:
    """The kernel's state of a TCP connection (linux/tcp_states.h)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def has_ended(sock: socket.socket) -> bool:
    """Is all that the peer will ever have sent in the receive queue, or taken from it?"""
    return tcp_state(sock) in _ENDED


def queued(sock: socket.socket) -> int:
    """Bytes in the receive queue, beyond an urgent mark too (tcp(7), SIOCINQ)."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def connect_answer(sock: socket.socket) -> int:
    """How far a connect(2) is, as its error number; 0: connected."""
    # Asked a second time, connect(2) itself would tell as much. But where the peer has answered
    # and reset already, it would throw away what is in the receive queue.
    state = tcp_state(sock)
    if state == TCP_SYN_SENT:
        return errno.EINPROGRESS
    return 0 if state == TCP_ESTABLISHED else pending_error(sock)


def pending_error(sock: socket.socket) -> int:
    """What the kernel has to tell of the connection; 0: nothing, or nothing just now."""
    try:
        return persist(sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        return 0 if is_shortage(error) else (error.errno or errno.EIO)


def widen(sock: socket.socket) -> None:
    """Let the host be RECEIVE_AHEAD bytes ahead of a guest that is far."""
    # The bytes in flight stay in the kernel's queue, which grows by what is taken within the
    # round trip to the *host's* peer: over loopback never. A guest whose own round trip is
    # milliseconds (emulated, or frame by frame) needs it larger. To raise the low-water mark makes
    # room for it and, other than SO_RCVBUF, leaves the kernel free to make more.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, RECEIVE_AHEAD)
        persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
