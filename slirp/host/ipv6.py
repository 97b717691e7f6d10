"""IPv6's sockets (slirp.host.sockets says what depends on the family).

A guest's packet is never cut on its way, so DONT_FRAGMENT comes with each that was whole; one that
its sender cut may be cut again here. The kernel computes the checksum of an echo, and hands over
what comes back without an IP header, whatever the socket.

Does not do: opening them; link-local addresses, which no guest reaches.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from slirp.address import SockAddr, addr_to_text
from slirp.host.sockets import EXTENDED_ERR, SocketFamily
from slirp.ip.icmpv6 import QUOTE_MAX
from slirp.shortage import persist
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


class Ipv6Sockets(SocketFamily):
    """AF_INET6."""

    family = socket.AF_INET6
    addr_len = 16
    icmp = socket.IPPROTO_ICMPV6
    quoted_max = QUOTE_MAX - IP_LEN - UDP_LEN
    quote_len = 1280
    level = socket.IPPROTO_IPV6
    hop_limit = socket.IPV6_UNICAST_HOPS
    recverr = IPV6_RECVERR
    mtu_discover = IPV6_MTU_DISCOVER
    pmtudisc_dont = IPV6_PMTUDISC_DONT
    pmtudisc_do = IPV6_PMTUDISC_DO
    origin_icmp = 3
    offender = slice(EXTENDED_ERR.size + 8, EXTENDED_ERR.size + 24)
    closed_port = (DEST_UNREACHABLE, PORT_UNREACHABLE)
    mtu_mask = 0xFFFFFFFF

    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        return addr_to_text(addr), port, 0, 0

    def tells_mtu(self, kind: int, code: int) -> bool:
        return kind == PACKET_TOO_BIG

    def filter_echoes(self, sock: socket.socket) -> None:
        blocked = (1 << 256) - 1 & ~(1 << ECHO_REPLY)  # RFC 3542 §3.2: a bit for each type
        words = (blocked >> shift & 0xFFFFFFFF for shift in range(0, 256, 32))
        persist(sock.setsockopt, socket.IPPROTO_ICMPV6, ICMPV6_FILTER, struct.pack("8I", *words))

    def echo_request(self, rest: int, payload: bytes) -> bytes:
        return Icmpv6Header(ECHO_REQUEST, 0, 0, rest).emit() + payload

    def echo_reply(self, data: bytes, raw: bool) -> tuple[int, bytes] | None:
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
