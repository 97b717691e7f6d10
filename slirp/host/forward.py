"""Forwards: host sockets that lead to a guest.

A TCP or Unix stream forward accepts and opens a connection towards the guest, as the peer itself:
the guest sees the peer's address and, where free, its port; a peer on the host's loopback (or
behind a Unix socket) appears as the gateway, and nobody else does whose address is of the guest's
family, unless the forward is to have it so. UDP is slirp.host.forward_udp's.

The host's family and the guest's need not be the same. What listens on :: takes IPv4 as well, but
where another forward has the port in IPv4 already.

A guest is named by its address, or by what it calls itself with DHCP: then whoever has that name
when a connection comes is meant, and where nobody has it the peer is reset.

A forward may have its connections begin with a header of the PROXY protocol; these go through a
pump (slirp.host.pump), since the header is in nobody's queue.

The guest may not have been seen yet: then the connection is held while the guest is asked for
(slirp.host.holding), and opened when it answers. Where nobody does the peer is reset: its connect
has succeeded long ago, so no other word reaches it without privilege. What waits takes none of the
descriptors in reserve (slirp.host.descriptors), with which the next one is accepted.

A forward to port 0 gets a free port, which `Forward.host` reports. A Unix socket is made with mode
0600 and removed at the end, if it is still the same file.

Does not do: forwards that a guest asks for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from slirp.address import Endpoint, SockAddr, addr_from_text, is_unspecified, unmapped
from slirp.errors import ConfigError
from slirp.forward import PROXY, SOURCES, ForwardSpec, HostAddress, host_text, is_name
from slirp.host.descriptors import Descriptors, reset
from slirp.host.forward_udp import DatagramForward, random_port
from slirp.host.inside import open_pair
from slirp.host.loop import READABLE, Loop
from slirp.host.pump import Pump
from slirp.host.sockets import addr_of
from slirp.shortage import persist
from slirp.wire import proxy as wire_proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from slirp.host.attachment import Attachment
    from slirp.host.holding import Holding
    from slirp.host.tcp import TcpRelay
    from slirp.host.udp import UdpRelay
    from slirp.ip.neighbours import Guest
    from slirp.stack import Stack

BACKLOG: Final = 512  # connections that the kernel holds for a forward
ACCEPTS_PER_TURN: Final = 64
PORT_TRIES: Final = 16
CONNECTION_COST: Final = 1024  # bytes charged for one that waits for its guest

Peer: TypeAlias = SockAddr | str | bytes  # as accept() names it


class Forward(NamedTuple):
    """One forward, as `Network.forward` returns it and `Network.forwards` lists it."""

    id: int
    proto: str  # "tcp", "udp" or "unix"
    host: HostAddress  # as bound: the port is never 0
    guest: tuple[str, int]  # address, or name, and port
    proxy: int = 0  # version of the PROXY protocol
    source: str = SOURCES[0]  # as whom a peer appears to the guest
    automatic: bool = False  # it comes and goes with a program that listens

    def __str__(self) -> str:
        """As slirp.forward.parse_forward reads it."""
        return str(ForwardSpec(self.proto, self.host, *self.guest, self.proxy, self.source))


class Target:
    """Where a forward leads: a guest, by address or by name, and a port."""

    def __init__(self, guest: str, port: int, find: Callable[[str], bytes | None]) -> None:
        self.port = port
        self.name = guest if is_name(guest) else ""
        self._fixed = None if self.name else addr_from_text(guest)
        self._find = find

    @property
    def addr(self) -> bytes | None:
        """The guest's address now; None: nobody has the name."""
        return self._find(self.name) if self.name else self._fixed


class StreamForward:
    """A listening socket."""

    def __init__(
        self, forwards: Forwards, sock: socket.socket, target: Target, path: str | None,
        proxy: int, as_gateway: bool,
    ) -> None:  # fmt: skip
        self._forwards = forwards
        self.sock = sock
        self.target = target
        self.proxy = proxy
        self.as_gateway = as_gateway
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
            self._forwards.connect(self, sock, peer, now)

    def keep_file(self) -> None:
        """Leave a Unix socket's file where it is."""
        self._path = None

    def close(self) -> None:
        """Stop listening; connections that are open stay."""
        self._forwards.loop.unregister(self.sock.fileno())
        self.sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


class Waiting:
    """A connection whose guest has not been seen yet."""

    def __init__(
        self, forwards: Forwards, forward: StreamForward, sock: socket.socket, peer: Peer
    ) -> None:
        self._forwards = forwards
        self._forward = forward
        self._sock = sock
        self._peer = peer

    def deliver(self, guest: Guest, now: float) -> None:
        """Open it towards the guest."""
        self._forwards.open(self._forward, self._sock, self._peer, guest, now)

    def fail(self, now: float) -> None:
        """Nobody answered: the peer is reset."""
        reset(self._sock)


class Forwards:
    """All forwards of one network."""

    def __init__(
        self, loop: Loop, stack: Stack, tcp: TcpRelay, udp: UdpRelay, holding: Holding,
        descriptors: Descriptors, find: Callable[[str], bytes | None],
    ) -> None:  # fmt: skip
        """`find`: the address of the guest that calls itself so."""
        self.loop = loop
        self.stack = stack
        self.udp = udp
        self._tcp = tcp
        self._holding = holding
        self._descriptors = descriptors
        self._find = find
        self._pumps: dict[Pump, None] = {}
        self._open: dict[int, tuple[Forward, StreamForward | DatagramForward]] = {}
        self._count = 0

    def add(
        self, proto: str, host: HostAddress, guest: tuple[str, int], *, proxy: int = 0,
        source: str = SOURCES[0], automatic: bool = False,
    ) -> Forward:  # fmt: skip
        """Open a forward. Raises ConfigError for what cannot be, OSError from bind, whose
        `filename` is the host's address."""
        target = Target(guest[0], guest[1], self._find)
        if not 0 < guest[1] < 65536:
            raise ConfigError(f"guest port {guest[1]}: must be 1 to 65535")
        if proxy not in PROXY or source not in SOURCES:
            raise ConfigError(f"forward to {guest[0]}: proxy is 0, 1 or 2, source peer or gateway")
        if proxy and proto == "udp":
            raise ConfigError("forward of udp: the PROXY protocol is for tcp")
        try:
            proto, bound, opened = self._add(proto, host, target, proxy, source == "gateway")
        except OSError as error:
            error.filename = host_text(host)
            raise
        self._count += 1
        forward = Forward(self._count, proto, bound, guest, proxy, source, automatic)
        self._open[forward.id] = (forward, opened)
        return forward

    def _add(
        self, proto: str, host: HostAddress, target: Target, proxy: int, as_gateway: bool
    ) -> tuple[str, HostAddress, StreamForward | DatagramForward]:
        """Protocol and host address as opened, and what was opened."""
        if isinstance(host, str):
            if proto == "udp":
                raise ConfigError(f"forward of udp from {host}: a Unix socket leads to tcp")
            sock = _bind_path(host)
            return "unix", host, StreamForward(self, sock, target, host, proxy, as_gateway)
        sock = _bind(proto, host, dual=not self._has_ipv4(proto, host[1]))
        name = sock.getsockname()
        bound = (name[0], name[1])
        if proto == "tcp":
            return proto, bound, StreamForward(self, sock, target, None, proxy, as_gateway)
        return proto, bound, DatagramForward(
            self.loop, self.stack, self.udp, self._holding, sock, target, as_gateway
        )  # fmt: skip

    def _has_ipv4(self, proto: str, port: int) -> bool:
        """Does one of ours listen on this port of an IPv4 address?"""
        return any(
            forward.proto == proto and forward.host[1] == port and ":" not in forward.host[0]
            for forward, _ in self._open.values()
            if not isinstance(forward.host, str)
        )

    def sockets(self) -> list[tuple[Forward, socket.socket]]:
        """What is open, with its socket."""
        return [(forward, opened.sock) for forward, opened in self._open.values()]

    def adopt(self, entry: Mapping[str, Any], sock: socket.socket) -> None:
        """Go on with a forward's socket that another process had. Raises LookupError, ValueError
        or TypeError for an entry that is none."""
        host: HostAddress = entry["host"]
        if not isinstance(host, str):
            host = (str(host[0]), int(host[1]))
        guest = (str(entry["guest"][0]), int(entry["guest"][1]))
        proto, proxy, source = str(entry["proto"]), int(entry["proxy"]), str(entry["source"])
        automatic = bool(entry["automatic"])
        forward = Forward(int(entry["id"]), proto, host, guest, proxy, source, automatic)
        sock.setblocking(False)
        target, as_gateway = Target(*guest, self._find), source == "gateway"
        opened: StreamForward | DatagramForward
        if proto == "udp":
            opened = DatagramForward(
                self.loop, self.stack, self.udp, self._holding, sock, target, as_gateway
            )
        else:
            path = host if isinstance(host, str) else None
            opened = StreamForward(self, sock, target, path, proxy, as_gateway)
        self._open[forward.id] = (forward, opened)
        self._count = max(self._count, forward.id)

    def abandon(self) -> None:
        """Another process goes on with the sockets: a Unix socket's file stays."""
        for _, opened in self._open.values():
            if isinstance(opened, StreamForward):
                opened.keep_file()

    def remove(self, number: int) -> bool:
        """Close a forward; False: there is none of that number."""
        found = self._open.pop(number, None)
        if found is None:
            return False
        found[1].close()
        return True

    def listing(self) -> list[Forward]:
        """What is open, oldest first."""
        return [forward for forward, _ in self._open.values()]

    def connect(self, forward: StreamForward, sock: socket.socket, peer: Peer, now: float) -> None:
        """A connection came in: open it towards the guest, when the guest is known."""
        addr = forward.target.addr
        if addr is None:
            reset(sock)  # nobody calls itself so
            return
        guest = self.stack.guests.get(addr)
        if guest is not None:
            self.open(forward, sock, peer, guest, now)
            return
        admitted = self._descriptors.admit(None, sock, now)
        if admitted is not None:
            waiting = Waiting(self, forward, admitted, peer)
            self._holding.hold(addr, "tcp", waiting, CONNECTION_COST, now)

    def open(
        self, forward: StreamForward, sock: socket.socket, peer: Peer, guest: Guest, now: float
    ) -> None:
        """Open a connection of the host's side towards the guest."""
        nat = self.stack.layer(guest.addr).nat
        remote, remote_port = nat.gateway, 0
        # A Unix socket's name is the peer's to choose.
        if isinstance(peer, tuple) and not forward.as_gateway:
            remote, remote_port = nat.inward(addr_of(peer)), peer[1]
        persist(sock.setblocking, False)
        with contextlib.suppress(OSError):
            persist(sock.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093 §5
        found = self._with_header(forward, sock, peer, guest, now) if forward.proxy else sock
        if found is None:
            return
        port = forward.target.port
        for _ in range(PORT_TRIES):
            if remote_port:
                key = guest.addr + remote + port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")
                if self._tcp.open(key, found, guest, now) or found.fileno() < 0:
                    return  # the latter: there was no room for it, and it is closed
            remote_port = random_port()
        reset(found)

    def _with_header(
        self, forward: StreamForward, sock: socket.socket, peer: Peer, guest: Guest, now: float
    ) -> socket.socket | None:
        """The socket that a flow gets: the header is in front of the peer's bytes. None: no room,
        and the peer is reset."""
        attachment: Attachment = guest.attachment
        header = wire_proxy.emit(forward.proxy, _end_of(peer), _end_of(sock.getsockname()))
        outer = self._descriptors.admit(attachment, sock, now)
        if outer is None:
            return None
        pair = open_pair(self._descriptors, attachment, now)
        if pair is None:
            self._descriptors.release(attachment)
            reset(outer)
            return None
        inner, flows = pair

        def ended(pump: Pump) -> None:
            del self._pumps[pump]
            self._descriptors.release(attachment)
            self._descriptors.release(attachment)

        pump = Pump(self.loop, outer, inner, header, ended)
        self._pumps[pump] = None
        pump.start()
        return flows

    def close(self) -> None:
        """Close every forward."""
        for number in list(self._open):
            self.remove(number)
        for pump in list(self._pumps):
            pump.close()


def _end_of(name: Peer) -> Endpoint | bytes:
    """An end of a connection, as accept() or getsockname() has it, for the PROXY protocol."""
    if isinstance(name, tuple):
        return Endpoint(unmapped(addr_of(name)), name[1])
    return os.fsencode(name)


def _bind(proto: str, host: tuple[str, int], *, dual: bool) -> socket.socket:
    """`dual`: on the unspecified address of IPv6, for IPv4 too."""
    if proto not in ("tcp", "udp"):
        raise ConfigError(f"forward of {proto!r}: must be tcp or udp")
    if not 0 <= host[1] < 65536:
        raise ConfigError(f"host port {host[1]}: must be 0 (any that is free) to 65535")
    family = socket.AF_INET6 if ":" in host[0] else socket.AF_INET
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            both = dual and is_unspecified(addr_from_text(host[0].partition("%")[0]))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
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
