"""Forwards: host sockets that lead to a guest.

A TCP or Unix stream forward accepts and opens a connection towards the guest, as the peer itself:
the guest sees the peer's address and, where free, its port; a peer on the host's loopback (or
behind a Unix socket) appears as the gateway, and nobody else does. A UDP forward passes datagrams
on under their sender's address and sends the guest's answers out of its own socket.

The guest may not have been seen yet: then it is asked for by ARP, and the connection is opened when
it answers; until then the peer waits in the kernel, ARP_FOR at the longest.

A forward to port 0 gets a free port, which `Forward.host` reports. A Unix socket is made with mode
0600 and removed at the end, if it is still the same file.

Does not do: forwards that a guest asks for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from slirp.address import addr_from_text, addr_to_text
from slirp.errors import ConfigError
from slirp.host.attachment import payload_views
from slirp.host.loop import READABLE, Loop
from slirp.host.udp import fill
from slirp.host.udp_runs import HEADER_LENGTHS, HEADERS_LEN
from slirp.host.udp_send import dropped_by_kernel, send_datagrams
from slirp.ip.template import PROTOCOL_UDP, Template4

if TYPE_CHECKING:
    from slirp.flow import Guest, Nat
    from slirp.host.attachment import Attachment
    from slirp.host.tcp import TcpRelay
    from slirp.host.udp import UdpRelay
    from slirp.stack import Stack

BACKLOG: Final = 512  # connections that the kernel holds for a forward
ACCEPTS_PER_TURN: Final = 64
ARP_FOR: Final = 5.0  # seconds that a connection waits for the guest to answer ARP
ARP_EVERY: Final = 1.0  # seconds between requests
WAITING_MAX: Final = 512  # connections that wait for ARP; the next is closed
PEERS_MAX: Final = 1024  # senders that one UDP forward remembers; beyond it the oldest goes
PORT_TRIES: Final = 16

HostAddress: TypeAlias = tuple[str, int] | str
Peer: TypeAlias = tuple[str, int] | str | bytes  # as accept() names it


class Forward(NamedTuple):
    """One forward, as `Network.forward` returns it and `Network.forwards` lists it."""

    id: int
    proto: str  # "tcp", "udp" or "unix"
    host: HostAddress  # as bound: the port is never 0
    guest: tuple[str, int]


class StreamForward:
    """A listening socket."""

    def __init__(
        self, forwards: Forwards, sock: socket.socket, guest_addr: bytes, guest_port: int,
        path: str | None,
    ) -> None:  # fmt: skip
        self._forwards = forwards
        self.sock = sock
        self._guest_addr = guest_addr
        self._guest_port = guest_port
        self._path = path
        self._inode = os.stat(path).st_ino if path is not None else 0
        forwards.loop.register(sock.fileno(), READABLE, self.handle_ready)

    def handle_ready(self, events: int, now: float) -> None:
        """Connections wait."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self.sock.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor is left
                self._forwards.loop.rest(self.sock.fileno())
                return
            self._forwards.connect(sock, peer, self._guest_addr, self._guest_port, now)

    def close(self) -> None:
        """Stop listening; connections that are open stay."""
        self._forwards.loop.unregister(self.sock.fileno())
        self.sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


class Sender(NamedTuple):
    """A peer of a UDP forward, as the guest sees it."""

    addr: bytes
    port: int
    template: Template4


class DatagramForward:
    """A bound UDP socket."""

    def __init__(
        self, forwards: Forwards, sock: socket.socket, guest_addr: bytes, guest_port: int
    ) -> None:
        self._forwards = forwards
        self.sock = sock
        self.key = (guest_addr, guest_port)
        self._seen: dict[tuple[str, int], Sender] = {}  # by socket address, oldest first
        self._peers: dict[tuple[bytes, int], tuple[str, int]] = {}  # as the guest sees them
        self._overflow = memoryview(bytearray(65536))
        self._asked_at: float | None = None
        forwards.loop.register(sock.fileno(), READABLE, self.handle_ready)

    def handle_ready(self, events: int, now: float) -> None:
        """Datagrams wait."""
        stack, udp = self._forwards.stack, self._forwards.udp
        guest = stack.guests.get(self.key[0])
        if guest is None:
            self._unreached(now)
            return
        room = stack.mtu - 28
        for _ in range(ACCEPTS_PER_TURN):
            claim = guest.attachment.port.claim(HEADERS_LEN + room, HEADER_LENGTHS)
            if claim is None:
                self._forwards.loop.unregister(self.sock.fileno())
                guest.attachment.wait(self)
                return
            views = payload_views(claim.iov.segments, HEADER_LENGTHS, HEADERS_LEN + room)
            try:
                size, _, _, peer = self.sock.recvmsg_into((*views, self._overflow))
            except OSError:
                claim.cancel()
                return
            sender = self._sender(peer)
            if size > room:
                datagram = b"".join((*views, self._overflow))[:size]
                claim.cancel()
                udp.send_fragments(guest, sender.addr, sender.port, self.key[1], datagram)
            else:
                fill(claim, guest, sender.template, views, size)
            udp.to_guest += 1

    def resume(self, now: float) -> None:
        """The guest has room again."""
        if self.sock.fileno() >= 0:
            self._forwards.loop.register(self.sock.fileno(), READABLE, self.handle_ready)
            # Looked at now: where there is no room after all, it must not be readable meanwhile.
            self.handle_ready(READABLE, now)

    def _unreached(self, now: float) -> None:
        # Nobody there yet: ask, and lose this datagram, as a router that waits for ARP may.
        with contextlib.suppress(OSError):
            self.sock.recv(1)
        if self._asked_at is None or now - self._asked_at >= ARP_EVERY:
            self._asked_at = now
            self._forwards.ask(self.key[0])

    def _sender(self, peer: tuple[str, int]) -> Sender:
        known = self._seen.get(peer)
        if known is None:
            if len(self._seen) >= PEERS_MAX:
                gone = self._seen.pop(next(iter(self._seen)))
                del self._peers[gone.addr, gone.port]
            known = self._seen[peer] = self._name(peer)
            self._peers[known.addr, known.port] = peer
        return known

    def _name(self, peer: tuple[str, int]) -> Sender:
        # Several peers may stand for one address (the gateway's): the later ones get other ports,
        # so that each gets its own answers.
        addr, port = _remote(self._forwards.stack.nat, peer), peer[1]
        while (addr, port) in self._peers:
            port = random_port()
        ports = port.to_bytes(2, "big") + self.key[1].to_bytes(2, "big")
        return Sender(addr, port, Template4(addr + self.key[0], ports, PROTOCOL_UDP))

    def knows(self, peer: bytes, port: int) -> bool:
        """Has this peer written to this forward?"""
        return (peer, port) in self._peers

    def send_to(
        self, peer: bytes, port: int, payload: tuple[memoryview, ...], gso_size: int
    ) -> int | None:
        """The guest answers one of the peers: 0, or the failure; None: it is for none of them."""
        known = self._peers.get((peer, port))
        if known is None:
            return None
        return send_datagrams(self.sock, payload, gso_size, known)

    def dropped(self) -> int:
        """Datagrams that the kernel had no room for."""
        return dropped_by_kernel(self.sock)

    def close(self) -> None:
        """Stop."""
        self._forwards.loop.unregister(self.sock.fileno())
        self.sock.close()


class Waiting:
    """A connection whose guest has not answered ARP yet."""

    def __init__(
        self, forwards: Forwards, sock: socket.socket, peer: Peer, addr: bytes, port: int,
        now: float,
    ) -> None:  # fmt: skip
        self._forwards = forwards
        self.sock = sock
        self.peer = peer
        self.addr = addr
        self.port = port
        self.until = now + ARP_FOR
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """Ask again, or give up."""
        if now >= self.until:
            self._forwards.give_up(self)
            return None
        self._forwards.ask_again(self)
        return min(now + ARP_EVERY, self.until)


class Forwards:
    """All forwards of one network."""

    def __init__(
        self, loop: Loop, stack: Stack, tcp: TcpRelay, udp: UdpRelay,
        attachments: Iterable[Attachment],
    ) -> None:  # fmt: skip
        """`attachments`: the network's, as they are when somebody is asked for."""
        self.loop = loop
        self.stack = stack
        self.udp = udp
        self._tcp = tcp
        self._attachments = attachments
        self._open: dict[int, tuple[Forward, StreamForward | DatagramForward]] = {}
        self._waiting: dict[bytes, list[Waiting]] = {}
        self._count = 0

    def add(self, proto: str, host: HostAddress, guest: tuple[str, int]) -> Forward:
        """Open a forward. Raises ConfigError for what cannot be, OSError from bind."""
        guest_addr = addr_from_text(guest[0])
        if not 0 < guest[1] < 65536:
            raise ConfigError(f"guest port {guest[1]}: must be 1 to 65535")
        opened: StreamForward | DatagramForward
        if isinstance(host, str):
            if proto == "udp":
                raise ConfigError(f"forward of udp from {host}: a Unix socket leads to tcp")
            sock = _bind_path(host)
            opened = StreamForward(self, sock, guest_addr, guest[1], host)
            bound: HostAddress = host
            proto = "unix"
        else:
            sock = _bind(proto, host)
            name = sock.getsockname()
            bound = (name[0], name[1])
            if proto == "tcp":
                opened = StreamForward(self, sock, guest_addr, guest[1], None)
            else:
                opened = DatagramForward(self, sock, guest_addr, guest[1])
                self.udp.repliers.setdefault(opened.key, []).append(opened)
                self.udp.routes.clear()  # who sent before may now answer a peer
        self._count += 1
        forward = Forward(self._count, proto, bound, guest)
        self._open[forward.id] = (forward, opened)
        return forward

    def remove(self, number: int) -> bool:
        """Close a forward; False: there is none of that number."""
        found = self._open.pop(number, None)
        if found is None:
            return False
        opened = found[1]
        opened.close()
        if isinstance(opened, DatagramForward):
            self.udp.repliers[opened.key].remove(opened)
        return True

    def listing(self) -> list[Forward]:
        """What is open, oldest first."""
        return [forward for forward, _ in self._open.values()]

    def connect(self, sock: socket.socket, peer: Peer, addr: bytes, port: int, now: float) -> None:
        """A connection came in: open it towards the guest, when the guest is known."""
        guest = self.stack.guests.get(addr)
        if guest is not None:
            self._connect(sock, peer, guest, port, now)
            return
        if sum(map(len, self._waiting.values())) >= WAITING_MAX:
            sock.close()
            return
        waiting = Waiting(self, sock, peer, addr, port, now)
        group = self._waiting.setdefault(addr, [])
        group.append(waiting)
        if len(group) == 1:
            self.ask(addr)
        self.loop.visit_at(waiting, now + ARP_EVERY)

    def _connect(
        self, sock: socket.socket, peer: Peer, guest: Guest, port: int, now: float
    ) -> None:
        nat = self.stack.nat
        remote, remote_port = nat.gateway, 0
        if isinstance(peer, tuple):  # else a Unix socket's name, which is the peer's to choose
            remote, remote_port = _remote(nat, peer), peer[1]
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093 §5
        for _ in range(PORT_TRIES):
            if remote_port:
                key = guest.addr + remote + port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")
                if self._tcp.open(key, sock, guest, now):
                    return
            remote_port = random_port()
        sock.close()

    def guest_seen(self, guest: Guest, now: float) -> None:
        """A guest is known now: open what waited for it."""
        for waiting in self._waiting.pop(guest.addr, ()):
            waiting.visit = None
            self._connect(waiting.sock, waiting.peer, guest, waiting.port, now)

    def give_up(self, waiting: Waiting) -> None:
        """No answer to ARP: the peer sees its connection closed."""
        left = self._waiting.get(waiting.addr, [])
        if waiting in left:
            left.remove(waiting)
        if not left:
            self._waiting.pop(waiting.addr, None)
        waiting.sock.close()

    def ask_again(self, waiting: Waiting) -> None:
        """ARP once more; the oldest who waits asks for all."""
        if self._waiting[waiting.addr][0] is waiting:
            self.ask(waiting.addr)

    def ask(self, addr: bytes) -> None:
        """Who has this address?"""
        headers = self.stack.arp_request(addr)
        for attachment in self._attachments:
            attachment.send(headers)

    def close(self) -> None:
        """Close every forward and whoever waits."""
        for number in list(self._open):
            self.remove(number)
        for waiting in [w for group in self._waiting.values() for w in group]:
            self.give_up(waiting)


def _remote(nat: Nat, peer: tuple[str, int]) -> bytes:
    """As whom the peer appears; one that speaks IPv6 has no address in an IPv4 network."""
    return nat.gateway if ":" in peer[0] else nat.inward(addr_from_text(peer[0]))


def _bind(proto: str, host: tuple[str, int]) -> socket.socket:
    if proto not in ("tcp", "udp"):
        raise ConfigError(f"forward of {proto!r}: must be tcp or udp")
    if not 0 <= host[1] < 65536:
        raise ConfigError(f"host port {host[1]}: must be 0 (any that is free) to 65535")
    family = socket.AF_INET6 if ":" in host[0] else socket.AF_INET
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if proto == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(host)
        if proto == "tcp":
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_path(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def host_text(host: HostAddress) -> str:
    """As people write it."""
    return host if isinstance(host, str) else f"{host[0]}:{host[1]}"


def guest_text(addr: bytes, port: int) -> str:
    """As people write it."""
    return f"{addr_to_text(addr)}:{port}"


def random_port() -> int:
    """A port that nobody can guess, above the well-known ones."""
    return 1024 + int.from_bytes(os.urandom(8), "big") % 64512
