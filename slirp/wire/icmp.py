"""ICMP for IPv4, RFC 792.

     0    1    2         4                   8
    +----+----+---------+-------------------+
    |type|code|checksum |       rest        |  then data, or a quoted packet
    +----+----+---------+-------------------+

`rest` means something else in each type; the properties read it. The checksum covers the whole
message, header included, without a pseudo-header (`slirp.wire.checksum`).

`QuotedPacket` reads the packet that an error message quotes: its header may be all there is beyond
eight bytes, its lengths and checksum are those of the packet as it was on the way, and neither is
checked.

Does not do: ICMP extensions (RFC 4884), which lie beyond what is read here.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 8  # bytes
CHECKSUM_OFFSET: Final = 2

ECHO_REPLY: Final = 0
DEST_UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12
TIMESTAMP: Final = 13
TIMESTAMP_REPLY: Final = 14
INFO_REQUEST: Final = 15
INFO_REPLY: Final = 16
ADDRESS_MASK: Final = 17
ADDRESS_MASK_REPLY: Final = 18

# Codes of DEST_UNREACHABLE
NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4  # `rest` holds the MTU, RFC 1191 §4
ADMINISTRATIVELY_PROHIBITED: Final = 13  # RFC 1812 §5.2.7.1

# Codes of TIME_EXCEEDED
TTL_EXCEEDED: Final = 0
REASSEMBLY_TIME_EXCEEDED: Final = 1

_HEADER: Final = Struct("!BBHI")
_QUOTED: Final = Struct("!B8xB2x4s4s")
_PORTS: Final = Struct("!HH")


class IcmpHeader(NamedTuple):
    type: int
    code: int
    checksum: int
    rest: int  # 32 bits

    @classmethod
    def parse(cls, view: memoryview | bytes) -> IcmpHeader:
        """The first 8 bytes of `view`."""
        if len(view) < HEADER_LEN:
            raise MalformedPacket("icmp", "truncated")
        return cls(*_HEADER.unpack_from(view))

    def emit(self) -> bytes:
        return _HEADER.pack(*self)

    @property
    def ident(self) -> int:
        """Identifier of an echo: the sender's ping."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """Sequence number of an echo."""
        return self.rest & 0xFFFF

    @property
    def next_hop_mtu(self) -> int:
        """Bytes that fit, in FRAGMENTATION_NEEDED; 0 from a router older than RFC 1191."""
        return self.rest & 0xFFFF


class QuotedPacket(NamedTuple):
    """What an error message says about the packet that caused it: enough to find its flow."""

    protocol: int
    src: bytes
    dst: bytes
    src_port: int  # first 16 bits after the IP header: a port, or an ICMP type and code
    dst_port: int  # the next 16 bits

    @classmethod
    def parse(cls, view: memoryview | bytes) -> QuotedPacket:
        """From the start of the quoted IPv4 header."""
        size = len(view)
        if size < 20:
            raise MalformedPacket("icmp", "quoted packet truncated")
        version_ihl, protocol, src, dst = _QUOTED.unpack_from(view)
        ihl = (version_ihl & 0x0F) * 4
        if version_ihl >> 4 != 4 or ihl < 20:
            raise MalformedPacket("icmp", "quoted packet is not IPv4")
        if size < ihl + _PORTS.size:
            raise MalformedPacket("icmp", "quoted packet truncated")
        src_port, dst_port = _PORTS.unpack_from(view, ihl)
        return cls(protocol, src, dst, src_port, dst_port)
