"""Headers from templates: what does not change in a flow is packed once.

A flow's frames differ from each other in a few numbers. Everything else — Ethernet addresses,
IP addresses, ports, and the checksums over these — is in the template, so one frame's headers cost
two `pack` calls and no parsing. The headers stay apart: Ethernet, IP and TCP or UDP are three
segments of the frame's vector.

Packets to the guest carry DF and identification 0: they are atomic datagrams (RFC 6864 §4.1), whose
identification has no meaning. Fragmented ones are built elsewhere (slirp.ip.fragments).

A template knows its address family and nobody else does: `lengths` says how long the headers are.

Does not do: payload sums (the caller passes them in), options other than as finished bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from slirp.tcp.segment import Emission

TTL: Final = 64  # hop limit of packets towards the guest (RFC 1700)
DONT_FRAGMENT: Final = 0x4000
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

_IPV4 = struct.Struct("!BBHHHBBH8s")  # RFC 791: the fixed 20 bytes, both addresses as one
_TCP = struct.Struct("!4sIIHHHH")  # RFC 9293 §3.1: both ports as one, offset and flags as one
_UDP = struct.Struct("!4sHH")  # RFC 768


class Headers(NamedTuple):
    """One frame's headers below Ethernet."""

    ip: bytes
    transport: bytes


def _sum_words(data: bytes) -> int:
    # Any value congruent modulo 65535 serves as a one's complement sum; 0 only for all-zero bytes.
    return int.from_bytes(data, "big") % 0xFFFF


class Template4:
    """Headers of one IPv4 flow towards the guest.

    `addrs` is source and destination address as on the wire (8 bytes), `ports` source and
    destination port (4 bytes).
    """

    __slots__ = ("_addrs", "_ip_sum", "_ports", "_pseudo_sum")

    ip_len = 20

    def __init__(self, addrs: bytes, ports: bytes, protocol: int) -> None:
        self._addrs = addrs
        self._ports = ports
        addr_sum = _sum_words(addrs)
        self._ip_sum = addr_sum + 0x4500 + DONT_FRAGMENT + (TTL << 8 | protocol)
        self._pseudo_sum = addr_sum + protocol

    def tcp(self, emission: Emission, length: int, payload_sum: int | None) -> Headers:
        """Headers of a TCP segment with `length` bytes of payload.

        `payload_sum` is the one's complement sum of the payload; None leaves the checksum to the
        port: the field then holds the pseudo-header's sum (virtio 1.2 §5.1.6.2).
        """
        seq, ack, flags, window, options = emission
        header_len = 20 + len(options)
        field = (header_len << 10) | flags
        total = self._pseudo_sum + header_len + length
        if payload_sum is not None:
            bare = _TCP.pack(self._ports, seq, ack, field, window, 0, 0) + options
            total = -(_sum_words(bare) + total + payload_sum) % 0xFFFF
        else:
            total %= 0xFFFF
        return Headers(
            self._ip(PROTOCOL_TCP, header_len + length),
            _TCP.pack(self._ports, seq, ack, field, window, total, 0) + options,
        )

    def udp(self, length: int, payload_sum: int | None) -> Headers:
        """Headers of a UDP datagram with `length` bytes of payload; the sum as for `tcp`."""
        size = 8 + length
        total = self._pseudo_sum + size
        if payload_sum is not None:
            total = -(_sum_words(self._ports) + size + total + payload_sum) % 0xFFFF
            total = total or 0xFFFF  # RFC 768: 0 means none was computed
        else:
            total %= 0xFFFF
        return Headers(self._ip(PROTOCOL_UDP, size), _UDP.pack(self._ports, size, total))

    def _ip(self, protocol: int, size: int) -> bytes:
        size += 20
        return _IPV4.pack(
            0x45, 0, size, 0, DONT_FRAGMENT, TTL, protocol, -(self._ip_sum + size) % 0xFFFF,
            self._addrs,
        )  # fmt: skip
