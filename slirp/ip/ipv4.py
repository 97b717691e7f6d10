"""IPv4 as a family: its numbers, its headers towards the guest, its ICMP.

`IPV4` is the one object of it (slirp.ip.family says what a family is). Packets to the guest that
need no fragments carry DF and identification 0: they are atomic datagrams (RFC 6864 §4.1), whose
identification has no meaning. Longer payloads are cut (slirp.ip.ipv4_fragments) and get a random
one.

Does not do: options, in what we send; anything that depends on a network's addresses
(slirp.ip.ipv4_nat), or on what came before (slirp.ip.ipv4_input).
"""

from __future__ import annotations

import os
from collections.abc import Container
from struct import Struct
from types import MappingProxyType
from typing import Final

from dma.iovec import IoVec
from slirp.flow import Cause
from slirp.ip import icmp, ipv4_fragments
from slirp.ip.family import Family, Plain
from slirp.ip.template import TTL, Template, sum_words
from slirp.wire import icmp as wire_icmp
from slirp.wire.ethernet import ETHERTYPE_IPV4
from slirp.wire.icmp import DEST_UNREACHABLE, TIME_EXCEEDED
from slirp.wire.ipv4 import HEADER_LEN, PROTOCOL_ICMP, Ipv4Header
from slirp.wire.virtio_net import GSO_TCPV4

DONT_FRAGMENT: Final = 0x4000
NETWORK_PROHIBITED: Final = 9  # RFC 1122 §3.2.2.1: with this network, administratively

_HEADER: Final = Struct("!BBHHHBBH8s")  # RFC 791: the fixed 20 bytes, both addresses as one

# ethertype, version, IHL and TOS · total length · (ident) · fragment, TTL and protocol ·
# (checksum) · addresses and ports · sequence · acknowledgment · offset and flags · window
_PLAIN: Final = Struct("!12xIH2xI2x12sIIHH")

PLAIN: Final = Plain(
    unpack=_PLAIN.unpack_from,
    mask=0xFFFFFF00,  # any TOS
    mark=ETHERTYPE_IPV4 << 16 | 0x4500,  # without options
    kinds=0x3FFF00FF,  # more fragments, fragment offset; protocol
    base=14,
    least=54,
    transport_at=34,
    data_at=42,
    summed_to=34,
    addrs_at=26,
    hops_at=22,
    flags_at=20,
    sum_optional=True,  # RFC 768
)


class Template4(Template):
    """Headers of one IPv4 flow."""

    __slots__ = ("_addrs", "_ip_sum")

    ip_len = HEADER_LEN

    def __init__(self, src: bytes, dst: bytes, ports: bytes, protocol: int) -> None:
        self._addrs = src + dst
        addr_sum = sum_words(self._addrs)
        self._ip_sum = addr_sum + 0x4500 + DONT_FRAGMENT + (TTL << 8 | protocol)
        super().__init__(ports, addr_sum + protocol)

    def _ip(self, protocol: int, size: int) -> bytes:
        size += HEADER_LEN
        return _HEADER.pack(
            0x45, 0, size, 0, DONT_FRAGMENT, TTL, protocol, -(self._ip_sum + size) % 0xFFFF,
            self._addrs,
        )  # fmt: skip


class Ipv4(Family):
    """RFC 791, RFC 792."""

    name = "ipv4"
    version = 4
    ethertype = ETHERTYPE_IPV4
    addr_len = 4
    header_len = HEADER_LEN
    min_mtu = ipv4_fragments.MIN_MTU
    udp_max = 65507  # RFC 768: 65,535 bytes with both headers
    mss_default = 536  # RFC 9293 §3.7.1
    quote_max = icmp.QUOTE_MAX
    icmp = PROTOCOL_ICMP
    echo_request = wire_icmp.ECHO_REQUEST
    echo_reply = wire_icmp.ECHO_REPLY
    gso_tcp = GSO_TCPV4
    causes = MappingProxyType(
        {
            Cause.NO_ROUTE: (DEST_UNREACHABLE, wire_icmp.NET_UNREACHABLE),
            Cause.NO_HOST: (DEST_UNREACHABLE, wire_icmp.HOST_UNREACHABLE),
            Cause.NO_PROTOCOL: (DEST_UNREACHABLE, wire_icmp.PROTOCOL_UNREACHABLE),
            Cause.NO_PORT: (DEST_UNREACHABLE, wire_icmp.PORT_UNREACHABLE),
            Cause.TOO_LONG: (DEST_UNREACHABLE, wire_icmp.FRAGMENTATION_NEEDED),
            Cause.NETWORK_PROHIBITED: (DEST_UNREACHABLE, NETWORK_PROHIBITED),
            Cause.PROHIBITED: (DEST_UNREACHABLE, wire_icmp.ADMINISTRATIVELY_PROHIBITED),
            Cause.EXPIRED: (TIME_EXCEEDED, wire_icmp.TTL_EXCEEDED),
            Cause.INCOMPLETE: (TIME_EXCEEDED, wire_icmp.REASSEMBLY_TIME_EXCEEDED),
        }
    )
    plain = PLAIN

    def template(self, src: bytes, dst: bytes, ports: bytes, protocol: int) -> Template:
        return Template4(src, dst, ports, protocol)

    def header(self, src: bytes, dst: bytes, protocol: int, size: int) -> bytes:
        total = HEADER_LEN + size
        return Ipv4Header(
            HEADER_LEN, 0, total, 0, True, False, 0, TTL, protocol, 0, src, dst
        ).emit()

    def packets(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, mtu: int
    ) -> list[tuple[bytes, IoVec]]:
        whole = HEADER_LEN + len(payload) <= mtu
        # RFC 6864 §4: only fragments need an identification
        ident = 0 if whole else int.from_bytes(os.urandom(2), "big")
        header = Ipv4Header(HEADER_LEN, 0, 0, ident, whole, False, 0, TTL, protocol, 0, src, dst)
        return ipv4_fragments.fragment(header, payload, mtu)

    def message(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, payload: IoVec
    ) -> IoVec:
        return icmp.message(kind, code, rest, payload)

    def error(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, original: IoVec
    ) -> IoVec:
        return icmp.error(kind, code, rest, original)

    def may_send_error(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, link_dst: bytes,
        broadcasts: Container[bytes],
    ) -> bool:  # fmt: skip
        return icmp.may_send_error(src, dst, protocol, payload, link_dst, broadcasts)


IPV4: Final = Ipv4()
