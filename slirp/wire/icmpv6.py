"""ICMPv6, RFC 4443, and the header that neighbour discovery and MLD share with it.

     0    1    2         4                   8
    +----+----+---------+-------------------+
    |type|code|checksum |       rest        |  then data, or a quoted packet
    +----+----+---------+-------------------+

Unlike ICMP's, the checksum covers a pseudo-header as well (`slirp.wire.checksum`), and is never
optional. Types below 128 are errors, so that an error of a type yet to be invented is known as one.

Does not do: the messages of neighbour discovery (`slirp.wire.ndp`), extensions (RFC 4884).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 8  # bytes
CHECKSUM_OFFSET: Final = 2

DEST_UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2  # `rest` holds the MTU
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4  # `rest` holds the pointer
FIRST_QUERY: Final = 128  # types from here on are no errors, RFC 4443 §2.1
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
MLD_QUERY: Final = 130
MLD_REPORT: Final = 131
MLD_DONE: Final = 132
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_SOLICITATION: Final = 135
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
MLD2_REPORT: Final = 143

# Codes of DEST_UNREACHABLE
NO_ROUTE: Final = 0
PROHIBITED: Final = 1
BEYOND_SCOPE: Final = 2
ADDRESS_UNREACHABLE: Final = 3
PORT_UNREACHABLE: Final = 4
POLICY: Final = 5
REJECTED: Final = 6

# Codes of TIME_EXCEEDED
HOP_LIMIT_EXCEEDED: Final = 0
REASSEMBLY_TIME_EXCEEDED: Final = 1

_HEADER: Final = Struct("!BBHI")


class Icmpv6Header(NamedTuple):
    type: int
    code: int
    checksum: int
    rest: int  # 32 bits

    @classmethod
    def parse(cls, view: memoryview | bytes) -> Icmpv6Header:
        """The first 8 bytes of `view`."""
        if len(view) < HEADER_LEN:
            raise MalformedPacket("icmpv6", "truncated")
        return cls(*_HEADER.unpack_from(view))

    def emit(self) -> bytes:
        return _HEADER.pack(*self)

    @property
    def is_error(self) -> bool:
        return self.type < FIRST_QUERY

    @property
    def ident(self) -> int:
        """Identifier of an echo: the sender's ping."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """Sequence number of an echo."""
        return self.rest & 0xFFFF
