"""IPv6's sockets (slirp.host.sockets says what depends on the family).

A socket with IPV6_RECVERR has an error queue, as IPv4's have. A guest's packet is never cut on its
way, so DONT_FRAGMENT comes with each that was whole; one that its sender cut may be cut again here.
The kernel computes the checksum of an echo, and hands over what comes back without an IP header,
whatever the socket.

Does not do: opening them; link-local addresses, which no guest reaches.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from slirp.address import SockAddr, addr_to_text
from slirp.host.sockets import ERRORS_PER_EVENT, MSG_ERRQUEUE, SocketError
from slirp.ip.icmpv6 import QUOTE_MAX
from slirp.ip.packet import DONT_FRAGMENT
from slirp.shortage import is_shortage, persist
from slirp.wire.icmpv6 import (
    DEST_UNREACHABLE,
    ECHO_REPLY,
    ECHO_REQUEST,
    HEADER_LEN,
    PACKET_TOO_BIG,
    PORT_UNREACHABLE,
    Icmpv6Header,
)
from slirp.wire.ipv6 import HEADER_LEN as IP_LEN
from slirp.wire.udp import HEADER_LEN as UDP_LEN

WORLD: Final = "2000::"  # of the addresses that are routed, RFC 4291 §2.4
IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
IPV6_PMTUDISC_DONT: Final = 0
IPV6_PMTUDISC_DO: Final = 2
IPV6_RECVERR: Final = 25
ICMPV6_FILTER: Final = 1  # linux/icmpv6.h

_EXTENDED_ERR: Final = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
_OFFENDER: Final = slice(_EXTENDED_ERR.size + 8, _EXTENDED_ERR.size + 24)  # of a sockaddr_in6
_ORIGIN_LOCAL: Final = 1  # linux/errqueue.h
_ORIGIN_ICMP6: Final = 3
_QUOTE_LEN: Final = 1280  # bytes of the packet that are asked for
_CONTROL_LEN: Final = 512


class Ipv6Sockets:
    """AF_INET6."""

    family = socket.AF_INET6
    icmp = socket.IPPROTO_ICMPV6
    addr_len = 16
    quoted_max = QUOTE_MAX - IP_LEN - UDP_LEN

    def __init__(self, outbound: bytes | None = None) -> None:
        self.outbound = outbound

    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        """As `socket` methods take it."""
        return addr_to_text(addr), port, 0, 0

    def leave(self, sock: socket.socket) -> None:
        """Bind to the outbound address, where there is one."""
        if self.outbound is not None:
            persist(sock.bind, (addr_to_text(self.outbound), 0))

    def prepare(self, sock: socket.socket) -> None:
        """Have errors reported, and let what is sent be fragmented: `hops` is 0 from here on."""
        persist(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        persist(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)

    def set_hops(self, sock: socket.socket, hops: int, before: int) -> None:
        """What goes out next has this hop limit and, with it, DONT_FRAGMENT or not."""
        changed = hops ^ before
        if changed & 0xFF:
            persist(sock.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops & 0xFF)
        if changed & DONT_FRAGMENT:
            discover = IPV6_PMTUDISC_DO if hops & DONT_FRAGMENT else IPV6_PMTUDISC_DONT
            persist(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discover)

    def errors(self, sock: socket.socket) -> Iterator[SocketError]:
        """Take what the error queue has; the socket's pending error goes with it.

        A shortage that this meets is raised; what has not been taken stays in the queue.
        """
        for _ in range(ERRORS_PER_EVENT):
            try:
                quoted, ancillary, _, peer = sock.recvmsg(_QUOTE_LEN, _CONTROL_LEN, MSG_ERRQUEUE)
            except OSError as failure:
                if is_shortage(failure) and not isinstance(failure, BlockingIOError):
                    raise
                persist(sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
                return
            for level, kind, error in ancillary:
                if level == socket.IPPROTO_IPV6 and kind == IPV6_RECVERR:
                    yield parse_error(peer, quoted, error)

    def is_closed_port(self, error: SocketError) -> bool:
        """Does it say that nobody listens?"""
        return (error.kind, error.code) == (DEST_UNREACHABLE, PORT_UNREACHABLE)

    def filter_echoes(self, sock: socket.socket) -> None:
        """Have a raw socket report echo replies only."""
        blocked = (1 << 256) - 1 & ~(1 << ECHO_REPLY)  # RFC 3542 §3.2: a bit for each type
        words = (blocked >> shift & 0xFFFFFFFF for shift in range(0, 256, 32))
        persist(sock.setsockopt, socket.IPPROTO_ICMPV6, ICMPV6_FILTER, struct.pack("8I", *words))

    def echo_request(self, rest: int, payload: bytes) -> bytes:
        """A request as the kernel is given it; `rest`: identifier and sequence number."""
        return Icmpv6Header(ECHO_REQUEST, 0, 0, rest).emit() + payload

    def echo_reply(self, data: bytes, raw: bool) -> tuple[int, bytes] | None:
        """Identifier and sequence number, and payload, of what a socket received."""
        if len(data) < HEADER_LEN:
            return None
        header = Icmpv6Header.parse(data)
        return (header.rest, data[HEADER_LEN:]) if header.type == ECHO_REPLY else None


def has_route() -> bool:
    """Does the host's kernel know a way to the IPv6 world? It is asked, and nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((WORLD, 9))
    except OSError:
        return False
    return True


def parse_error(peer: SockAddr, quoted: bytes, error: bytes) -> SocketError:
    """A sock_extended_err, and the sockaddr_in6 of who sent it behind it."""
    number, origin, kind, code, info, _ = _EXTENDED_ERR.unpack_from(error)
    if origin != _ORIGIN_ICMP6:
        mtu = info if origin == _ORIGIN_LOCAL and number == errno.EMSGSIZE else 0
        return SocketError(peer, quoted, mtu, -1, 0, 0, None)
    addr = error[_OFFENDER]
    rest = info if kind == PACKET_TOO_BIG else 0
    return SocketError(peer, quoted, 0, kind, code, rest, addr if any(addr) else None)
