"""ARP for IPv4 over Ethernet, RFC 826.

     0       2       4   5   6       8           14      18          24      28
    +-------+-------+---+---+-------+-----------+-------+-----------+-------+
    |  hrd  |  pro  |hln|pln|  op   |    sha    |  spa  |    tha    |  tpa  |
    +-------+-------+---+---+-------+-----------+-------+-----------+-------+

The RFC's names stand in the picture; the fields here say sender and target. The hardware is always
Ethernet (1) and the protocol always IPv4 (0x0800): anything else is malformed to us. What follows
the 28 bytes is Ethernet padding.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

PACKET_LEN: Final = 28  # bytes

REQUEST: Final = 1
REPLY: Final = 2

_PACKET: Final = Struct("!HHBBH6s4s6s4s")
_FIXED: Final = (1, 0x0800, 6, 4)  # hrd, pro, hln, pln


class ArpPacket(NamedTuple):
    operation: int  # REQUEST, REPLY, or what else came
    sender_mac: bytes  # 6 bytes, never a group address
    sender_addr: bytes  # 4 bytes
    target_mac: bytes  # 6 bytes, unset in a request
    target_addr: bytes  # 4 bytes

    @classmethod
    def parse(cls, view: memoryview | bytes) -> ArpPacket:
        if len(view) < PACKET_LEN:
            raise MalformedPacket("arp", "truncated")
        hrd, pro, hln, pln, *fields = _PACKET.unpack_from(view)
        if (hrd, pro, hln, pln) != _FIXED:
            raise MalformedPacket("arp", "not IPv4 over Ethernet")
        packet = cls(*fields)
        if packet.sender_mac[0] & 1:  # RFC 1812 §3.3.2 forbids to believe it
            raise MalformedPacket("arp", "sender is a group address")
        return packet

    def emit(self) -> bytes:
        return _PACKET.pack(*_FIXED, *self)
