"""IPv4's sockets (slirp.host.sockets says what depends on the family).

Does not do: opening them.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from dma.iovec import IoVec
from slirp.address import SockAddr, addr_to_text
from slirp.host.sockets import EXTENDED_ERR, SocketFamily
from slirp.ip import icmp
from slirp.ip.icmp import QUOTE_MAX
from slirp.shortage import persist
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


class Ipv4Sockets(SocketFamily):
    """AF_INET."""

    family = socket.AF_INET
    addr_len = 4
    icmp = socket.IPPROTO_ICMP
    quoted_max = QUOTE_MAX - IP_LEN - UDP_LEN
    quote_len = 576
    level = socket.IPPROTO_IP
    hop_limit = socket.IP_TTL
    recverr = IP_RECVERR
    mtu_discover = IP_MTU_DISCOVER
    pmtudisc_dont = IP_PMTUDISC_DONT
    pmtudisc_do = IP_PMTUDISC_DO
    origin_icmp = 2
    offender = slice(EXTENDED_ERR.size + 4, EXTENDED_ERR.size + 8)
    closed_port = (DEST_UNREACHABLE, PORT_UNREACHABLE)
    mtu_mask = 0xFFFF  # RFC 1191 §4

    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        return addr_to_text(addr), port

    def tells_mtu(self, kind: int, code: int) -> bool:
        return (kind, code) == (DEST_UNREACHABLE, FRAGMENTATION_NEEDED)

    def filter_echoes(self, sock: socket.socket) -> None:
        persist(
            sock.setsockopt, SOL_RAW, ICMP_FILTER, struct.pack("I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF)
        )

    def echo_request(self, rest: int, payload: bytes) -> bytes:
        return bytes(icmp.message(ECHO_REQUEST, 0, rest, IoVec.of(payload)))

    def echo_reply(self, data: bytes, raw: bool) -> tuple[int, bytes] | None:
        if raw:  # then it begins with the IP header
            data = data[(data[0] & 15) * 4 :]
        if len(data) < HEADER_LEN:
            return None
        header = IcmpHeader.parse(data)
        return (header.rest, data[HEADER_LEN:]) if header.type == ECHO_REPLY else None
