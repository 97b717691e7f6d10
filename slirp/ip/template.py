"""Headers from templates: what does not change in a flow is packed once.

A flow's frames differ from each other in a few numbers. Everything else — Ethernet addresses,
IP addresses, ports, and the checksums over these — is in the template, so one frame's headers cost
two `pack` calls and no parsing. The headers stay apart: Ethernet, IP and TCP or UDP are three
segments of the frame's vector.

A `Template` has what TCP and UDP are in both families; each family's own has the IP header, and the
pseudo-header's sum over the addresses (slirp.ip.ipv4). `ip_len` says how long that header is.

Does not do: payload sums (the caller passes them in), options other than as finished bytes.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from slirp.tcp.segment import Emission

TTL: Final = 64  # hop limit of packets towards the guest (RFC 1700)
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

_TCP = struct.Struct("!4sIIHHHH")  # RFC 9293 §3.1: both ports as one, offset and flags as one
_UDP = struct.Struct("!4sHH")  # RFC 768


class Headers(NamedTuple):
    """One frame's headers below Ethernet."""

    ip: bytes
    transport: bytes


def sum_words(data: bytes) -> int:
    """A one's complement sum, for adding on; not folded to a field's form."""
    # Any value congruent modulo 65535 serves as a one's complement sum; 0 only for all-zero bytes.
    return int.from_bytes(data, "big") % 0xFFFF


class Template(ABC):
    """Headers of one flow towards the guest.

    `ports` is source and destination port as on the wire, `pseudo_sum` the sum of the addresses and
    the protocol (RFC 9293 §3.1, RFC 8200 §8.1); the length is added for each packet.
    """

    __slots__ = ("_ports", "_pseudo_sum")

    ip_len: int  # bytes of the IP header

    def __init__(self, ports: bytes, pseudo_sum: int) -> None:
        self._ports = ports
        self._pseudo_sum = pseudo_sum

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
            total = -(sum_words(bare) + total + payload_sum) % 0xFFFF
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
            total = -(sum_words(self._ports) + size + total + payload_sum) % 0xFFFF
            total = total or 0xFFFF  # RFC 768: 0 means none was computed
        else:
            total %= 0xFFFF
        return Headers(self._ip(PROTOCOL_UDP, size), _UDP.pack(self._ports, size, total))

    @abstractmethod
    def _ip(self, protocol: int, size: int) -> bytes:
        """The header of a packet with `size` bytes of payload."""
