"""UDP, RFC 768.

     0        2        4        6        8
    +--------+--------+--------+--------+
    |src_port|dst_port| length |checksum|
    +--------+--------+--------+--------+

`length` may be less than what the IP packet holds: the rest is not part of the datagram, and the
caller trims it. The checksum is not looked at here: it covers a payload that is scattered
(`slirp.wire.checksum`).

Port 0 is refused on both sides. RFC 768 lets a sender that wants no answer put 0 as its source,
but no flow can be kept for it and no host socket could send it.

Does not do: jumbograms (length 0, RFC 2675).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 8  # bytes
CHECKSUM_OFFSET: Final = 6

_HEADER: Final = Struct("!HHHH")


class UdpHeader(NamedTuple):
    src_port: int
    dst_port: int
    length: int  # bytes, header and payload
    checksum: int  # 0: the sender computed none

    @classmethod
    def parse(cls, view: memoryview | bytes, available: int | None = None) -> UdpHeader:
        """The first 8 bytes of `view`; `available` bytes follow the IP header in all."""
        size = len(view)
        if size < HEADER_LEN:
            raise MalformedPacket("udp", "truncated")
        header = cls(*_HEADER.unpack_from(view))
        if header.length < HEADER_LEN:
            raise MalformedPacket("udp", "length below the header's")
        if header.length > (size if available is None else available):
            raise MalformedPacket("udp", "length beyond the packet")
        if not header.src_port or not header.dst_port:
            raise MalformedPacket("udp", "port 0")
        return header

    def emit(self) -> bytes:
        return _HEADER.pack(*self)
