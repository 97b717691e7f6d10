"""IPv6 as a family: its numbers, its headers towards the guest, its ICMPv6.

`IPV6` is the one object of it (slirp.ip.family says what a family is). Nobody on an IPv6 packet's
way cuts it, so what a guest sends counts as not to be fragmented: the byte that says so in a plain
frame is the version's, whose bit 0x40 is always set. Our packets carry flow label 0.

Does not do: anything that depends on a network's addresses (slirp.ip.ipv6_nat), or on what came
before (slirp.ip.ipv6_input).
"""

from __future__ import annotations

import os
from collections.abc import Container
from struct import Struct
from types import MappingProxyType
from typing import Final

from dma.iovec import IoVec
from slirp.flow import Cause
from slirp.ip import icmpv6, ipv6_fragments
from slirp.ip.family import Family, Plain
from slirp.ip.template import TTL, Template, sum_words
from slirp.wire import icmpv6 as wire_icmpv6
from slirp.wire.ethernet import ETHERTYPE_IPV6
from slirp.wire.icmpv6 import (
    DEST_UNREACHABLE,
    PACKET_TOO_BIG,
    PARAMETER_PROBLEM,
    TIME_EXCEEDED,
)
from slirp.wire.ipv6 import (
    HEADER_LEN,
    MAX_PAYLOAD,
    MIN_MTU,
    PROTOCOL_ICMPV6,
    UNKNOWN_NEXT_HEADER,
    Ipv6Header,
)
from slirp.wire.virtio_net import GSO_TCPV6

_HEADER: Final = Struct("!IHBB32s")  # RFC 8200 §3, both addresses as one
_VERSION: Final = 6 << 28

# ethertype, version, class and the flow label's start · payload length · next header · (hop limit)
# · addresses and ports · sequence · acknowledgment · offset and flags · window
_PLAIN: Final = Struct("!12xI2xHBx36sIIHH")

PLAIN: Final = Plain(
    unpack=_PLAIN.unpack_from,
    mask=0xFFFFF000,  # any traffic class, any flow label
    mark=ETHERTYPE_IPV6 << 16 | 0x6000,
    kinds=0xFF,  # a fragment or an option is another next header
    base=54,
    least=74,
    transport_at=54,
    data_at=62,
    summed_to=14,
    addrs_at=22,
    hops_at=21,
    flags_at=14,
    sum_optional=False,  # RFC 8200 §8.1
)


class Template6(Template):
    """Headers of one IPv6 flow."""

    __slots__ = ("_addrs",)

    ip_len = HEADER_LEN

    def __init__(self, src: bytes, dst: bytes, ports: bytes, protocol: int) -> None:
        self._addrs = src + dst
        super().__init__(ports, sum_words(self._addrs) + protocol)

    def _ip(self, protocol: int, size: int) -> bytes:
        return _HEADER.pack(_VERSION, size, protocol, TTL, self._addrs)


class Ipv6(Family):
    """RFC 8200, RFC 4443."""

    name = "ipv6"
    version = 6
    ethertype = ETHERTYPE_IPV6
    addr_len = 16
    header_len = HEADER_LEN
    min_mtu = MIN_MTU
    udp_max = MAX_PAYLOAD - 8
    mss_default = 1220  # RFC 9293 §3.7.1
    quote_max = icmpv6.QUOTE_MAX
    icmp = PROTOCOL_ICMPV6
    echo_request = wire_icmpv6.ECHO_REQUEST
    echo_reply = wire_icmpv6.ECHO_REPLY
    gso_tcp = GSO_TCPV6
    causes = MappingProxyType(
        {
            Cause.NO_ROUTE: (DEST_UNREACHABLE, wire_icmpv6.NO_ROUTE),
            Cause.NO_HOST: (DEST_UNREACHABLE, wire_icmpv6.ADDRESS_UNREACHABLE),
            Cause.NO_PROTOCOL: (PARAMETER_PROBLEM, UNKNOWN_NEXT_HEADER),
            Cause.NO_PORT: (DEST_UNREACHABLE, wire_icmpv6.PORT_UNREACHABLE),
            Cause.TOO_LONG: (PACKET_TOO_BIG, 0),
            Cause.NETWORK_PROHIBITED: (DEST_UNREACHABLE, wire_icmpv6.PROHIBITED),
            Cause.PROHIBITED: (DEST_UNREACHABLE, wire_icmpv6.PROHIBITED),
            Cause.EXPIRED: (TIME_EXCEEDED, wire_icmpv6.HOP_LIMIT_EXCEEDED),
            Cause.INCOMPLETE: (TIME_EXCEEDED, wire_icmpv6.REASSEMBLY_TIME_EXCEEDED),
        }
    )
    plain = PLAIN

    def template(self, src: bytes, dst: bytes, ports: bytes, protocol: int) -> Template:
        return Template6(src, dst, ports, protocol)

    def header(self, src: bytes, dst: bytes, protocol: int, size: int) -> bytes:
        return Ipv6Header(0, size, protocol, TTL, src, dst).emit()

    def packets(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, mtu: int
    ) -> list[tuple[bytes, IoVec]]:
        header = Ipv6Header(0, 0, protocol, TTL, src, dst)
        ident = int.from_bytes(os.urandom(4), "big") if HEADER_LEN + len(payload) > mtu else 0
        return ipv6_fragments.fragment(header, payload, mtu, ident)

    def message(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, payload: IoVec
    ) -> IoVec:
        return icmpv6.message(src, dst, kind, code, rest, payload)

    def error(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, original: IoVec
    ) -> IoVec:
        return icmpv6.error(src, dst, kind, code, rest, original)

    def may_send_error(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, link_dst: bytes,
        broadcasts: Container[bytes],
    ) -> bool:  # fmt: skip
        return icmpv6.may_send_error(src, dst, protocol, payload, link_dst)


IPV6: Final = Ipv6()
