"""IPv4, RFC 791 §3.1.

     0    1    2         4         6         8    9    10        12        16        20
    +----+----+---------+---------+---------+----+----+---------+---------+---------+---
    |V IH|tos | tot_len |  ident  |flg frag |ttl |prot|checksum |   src   |   dst   | options
    +----+----+---------+---------+---------+----+----+---------+---------+---------+---

Lengths and offsets are bytes here, not the words of 4 and 8 that the wire has. `total_len` decides
where the packet ends: a frame that is longer has padding behind it. Options are kept as bytes, so
that a header can be quoted as it came, and never acted upon: a source route leads nowhere.

The rules for fragments that need more than one header (overlaps, holes) are
`slirp.ip.reassembly`'s; that no fragment reaches beyond 65,535 bytes is checked there too.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 20  # bytes without options
MAX_HEADER_LEN: Final = 60
MAX_PACKET: Final = 65535  # bytes, header included

PROTOCOL_ICMP: Final = 1
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

CHECKSUM_OFFSET: Final = 10

_HEADER: Final = Struct("!BBHHHBBH4s4s")
_DF: Final = 0x4000
_MF: Final = 0x2000
_OFFSET: Final = 0x1FFF  # in units of 8 bytes


class Ipv4Header(NamedTuple):
    ihl: int  # bytes, options included
    tos: int
    total_len: int  # bytes, header included
    ident: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int  # bytes
    ttl: int
    protocol: int
    checksum: int  # as it came; emit() computes its own
    src: bytes  # 4 bytes
    dst: bytes  # 4 bytes
    options: bytes = b""  # ihl - 20 bytes

    @classmethod
    def parse(cls, view: memoryview | bytes, available: int | None = None) -> Ipv4Header:
        """A header with a right checksum, whose packet is all there.

        `view` starts with the header and holds at least 60 bytes, or all that there are;
        `available` is the length of packet and padding together (default: the view's).
        """
        size = len(view)
        if size < HEADER_LEN:
            raise MalformedPacket("ipv4", "truncated")
        (
            version_ihl, tos, total_len, ident, flags, ttl, protocol, check, src, dst,
        ) = _HEADER.unpack_from(view)  # fmt: skip
        ihl = HEADER_LEN
        options = b""
        if version_ihl != 0x45:
            ihl = _header_len(version_ihl, size)
            options = bytes(view[HEADER_LEN:ihl])
        if total_len < ihl:
            raise MalformedPacket("ipv4", "total length below the header's")
        if total_len > (size if available is None else available):
            raise MalformedPacket("ipv4", "total length beyond the frame")
        if int.from_bytes(view[:ihl], "big") % 65535:  # never zero: it has a version
            raise MalformedPacket("ipv4", "header checksum")
        return cls(
            ihl, tos, total_len, ident, flags & _DF != 0, flags & _MF != 0, (flags & _OFFSET) << 3,
            ttl, protocol, check, src, dst, options,
        )  # fmt: skip

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.fragment_offset != 0

    def emit(self) -> bytes:
        """The header with its checksum computed."""
        flags = self.fragment_offset >> 3
        if self.dont_fragment:
            flags |= _DF
        if self.more_fragments:
            flags |= _MF
        octets = _HEADER.pack(
            0x40 | self.ihl >> 2, self.tos, self.total_len, self.ident, flags,
            self.ttl, self.protocol, 0, self.src, self.dst,
        ) + self.options  # fmt: skip
        check = 0xFFFF ^ (int.from_bytes(octets, "big") % 65535 or 0xFFFF)
        return octets[:10] + check.to_bytes(2, "big") + octets[12:]


def _header_len(version_ihl: int, size: int) -> int:
    """Bytes of a header whose first byte is not the usual 0x45."""
    if version_ihl >> 4 != 4:
        raise MalformedPacket("ipv4", "version")
    ihl = (version_ihl & 0x0F) << 2
    if ihl < HEADER_LEN:
        raise MalformedPacket("ipv4", "header length below 20")
    if ihl > size:
        raise MalformedPacket("ipv4", "truncated")
    return ihl
