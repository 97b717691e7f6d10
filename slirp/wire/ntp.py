"""NTP packets: RFC 5905 §7.3, of which SNTP (RFC 4330) uses the same 48 octets.

Timestamps are 64 bits: seconds since 1900 modulo 2^32 (an era is 136 years), and 2^-32nd parts of
one. What follows the header (extensions, a key and its digest) is not read.

Does not do: extension fields, authentication, eras (the low bits are right in each).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

LAYER: Final = "ntp"

PORT: Final = 123
HEADER_LEN: Final = 48  # bytes
CLIENT: Final = 3  # modes
SERVER: Final = 4
VERSION_MAX: Final = 4
SINCE_1900: Final = 2208988800  # seconds from 1900 to 1970, RFC 868

_HEADER: Final = struct.Struct("!BBbbII4s8s8s8s8s")


class NtpPacket(NamedTuple):
    """RFC 5905 figure 8.

    0        1        2        3        4
    +--------+--------+--------+--------+
    |LI,VN,md|stratum |  poll  |precis. |
    +--------+--------+--------+--------+
    | root delay, root dispersion       |
    | reference id                      |
    | reference, origin, receive and    |
    | transmit timestamps, 8 each       |
    +-----------------------------------+
    """

    first: int  # leap indicator, version, mode
    stratum: int
    poll: int  # log2 seconds
    precision: int  # log2 seconds
    root_delay: int  # 2^-16 seconds
    root_dispersion: int  # 2^-16 seconds
    reference_id: bytes
    reference: bytes
    origin: bytes
    receive: bytes
    transmit: bytes

    @property
    def version(self) -> int:
        return self.first >> 3 & 7

    @property
    def mode(self) -> int:
        return self.first & 7

    @classmethod
    def parse(cls, view: memoryview | bytes) -> NtpPacket:
        if len(view) < HEADER_LEN:
            raise MalformedPacket(LAYER, "truncated")
        packet = cls(*_HEADER.unpack_from(view))
        if not 0 < packet.version <= VERSION_MAX:
            raise MalformedPacket(LAYER, "version")
        return packet

    def emit(self) -> bytes:
        return _HEADER.pack(*self)


def timestamp(unix_ns: int) -> bytes:
    """Of nanoseconds since 1970."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return struct.pack("!II", (seconds + SINCE_1900) % 2**32, (ns << 32) // 1_000_000_000)
