"""IPv4's sockets (slirp.host.sockets says what depends on the family).

A socket with IP_RECVERR has an error queue. ICMP errors from outside are there with the address
that sent them; of a datagram that is too long the kernel itself tells the MTU of the path.

Does not do: opening them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from dma.iovec import IoVec
from slirp.address import SockAddr, addr_to_text
from slirp.host.sockets import ERRORS_PER_EVENT, MSG_ERRQUEUE, SocketError
from slirp.ip import icmp
from slirp.ip.icmp import QUOTE_MAX
from slirp.ip.packet import DONT_FRAGMENT
from slirp.shortage import is_shortage, persist
from slirp.wire.icmp import (
    DEST_UNREACHABLE,
    ECHO_REPLY,
    ECHO_REQUEST,
    FRAGMENTATION_NEEDED,
    HEADER_LEN,
    PORT_UNREACHABLE,
    IcmpHeader,
)
from slirp.wire.ipv4 import HEADER_LEN as IP_LEN
from slirp.wire.udp import HEADER_LEN as UDP_LEN

IP_MTU_DISCOVER: Final = 10  # linux/in.h
IP_PMTUDISC_DONT: Final = 0
IP_PMTUDISC_DO: Final = 2
IP_RECVERR: Final = 11
SOL_RAW: Final = 255
ICMP_FILTER: Final = 1

_EXTENDED_ERR: Final = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
_OFFENDER: Final = slice(_EXTENDED_ERR.size + 4, _EXTENDED_ERR.size + 8)  # of a sockaddr_in
_ORIGIN_LOCAL: Final = 1  # linux/errqueue.h
_ORIGIN_ICMP: Final = 2
_QUOTE_LEN: Final = 576  # bytes of the packet that are asked for
_CONTROL_LEN: Final = 512


class Ipv4Sockets:
    """AF_INET."""

    family = socket.AF_INET
    icmp = socket.IPPROTO_ICMP
    addr_len = 4
    quoted_max = QUOTE_MAX - IP_LEN - UDP_LEN

    def __init__(self, outbound: bytes | None = None) -> None:
        self.outbound = outbound

    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        """As `socket` methods take it."""
        return addr_to_text(addr), port

    def leave(self, sock: socket.socket) -> None:
        """Bind to the outbound address, where there is one."""
        if self.outbound is not None:
            persist(sock.bind, (addr_to_text(self.outbound), 0))

    def prepare(self, sock: socket.socket) -> None:
        """Have errors reported, and let what is sent be fragmented: `hops` is 0 from here on."""
        persist(sock.setsockopt, socket.IPPROTO_IP, IP_RECVERR, 1)
        persist(sock.setsockopt, socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)

    def set_hops(self, sock: socket.socket, hops: int, before: int) -> None:
        """What goes out next has this hop limit and, with it, DONT_FRAGMENT or not."""
        changed = hops ^ before
        if changed & 0xFF:
            persist(sock.setsockopt, socket.IPPROTO_IP, socket.IP_TTL, hops & 0xFF)
        if changed & DONT_FRAGMENT:
            discover = IP_PMTUDISC_DO if hops & DONT_FRAGMENT else IP_PMTUDISC_DONT
            persist(sock.setsockopt, socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)

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
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    yield parse_error(peer, quoted, error)

    def is_closed_port(self, error: SocketError) -> bool:
        """Does it say that nobody listens?"""
        return (error.kind, error.code) == (DEST_UNREACHABLE, PORT_UNREACHABLE)

    def filter_echoes(self, sock: socket.socket) -> None:
        """Have a raw socket report echo replies only."""
        persist(
            sock.setsockopt, SOL_RAW, ICMP_FILTER, struct.pack("I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF)
        )

    def echo_request(self, rest: int, payload: bytes) -> bytes:
        """A request as the kernel is given it; `rest`: identifier and sequence number."""
        return bytes(icmp.message(ECHO_REQUEST, 0, rest, IoVec.of(payload)))

    def echo_reply(self, data: bytes, raw: bool) -> tuple[int, bytes] | None:
        """Identifier and sequence number, and payload, of what a socket received."""
        if raw:  # then it begins with the IP header
            data = data[(data[0] & 15) * 4 :]
        if len(data) < HEADER_LEN:
            return None
        header = IcmpHeader.parse(data)
        return (header.rest, data[HEADER_LEN:]) if header.type == ECHO_REPLY else None


def parse_error(peer: SockAddr, quoted: bytes, error: bytes) -> SocketError:
    """A sock_extended_err, and the sockaddr_in of who sent it behind it."""
    number, origin, kind, code, info, _ = _EXTENDED_ERR.unpack_from(error)
    if origin != _ORIGIN_ICMP:
        mtu = info & 0xFFFF if origin == _ORIGIN_LOCAL and number == errno.EMSGSIZE else 0
        return SocketError(peer, quoted, mtu, -1, 0, 0, None)
    addr = error[_OFFENDER]
    rest = info & 0xFFFF if (kind, code) == (DEST_UNREACHABLE, FRAGMENTATION_NEEDED) else 0
    return SocketError(peer, quoted, 0, kind, code, rest, addr if any(addr) else None)
