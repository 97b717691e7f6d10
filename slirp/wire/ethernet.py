"""Ethernet II framing (IEEE 802.3), the FCS excluded.

     0           6          12   14
    +-----------+-----------+----+----------------
    |    dst    |    src    |type| payload, padding
    +-----------+-----------+----+----------------

A frame on the wire has at least 60 bytes without its FCS; shorter ones are padded with zeros, and
the padding is a segment of its own (`padding`). Where the payload ends is for the next header to
say, never for the frame.

Does not do: 802.1Q tags and 802.3 length fields. Both come out as an ethertype that no one serves.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 14  # bytes
MIN_FRAME: Final = 60  # bytes without FCS, IEEE 802.3 §4.4.2 (64 with it)

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD

BROADCAST: Final = b"\xff" * 6

_HEADER: Final = Struct("!6s6sH")
_GROUP: Final = 0x01  # first byte of an address: the I/G bit
_PADDING: Final = memoryview(bytes(MIN_FRAME))


class EthernetHeader(NamedTuple):
    """Destination first, as on the wire."""

    dst: bytes  # 6 bytes
    src: bytes  # 6 bytes, never a group address
    ethertype: int

    @classmethod
    def parse(cls, view: memoryview | bytes) -> EthernetHeader:
        """The first 14 bytes of `view`."""
        if len(view) < HEADER_LEN:
            raise MalformedPacket("ethernet", "truncated")
        dst, src, ethertype = _HEADER.unpack_from(view)
        if src[0] & _GROUP:
            raise MalformedPacket("ethernet", "source is a group address")
        return cls(dst, src, ethertype)

    def emit(self) -> bytes:
        return _HEADER.pack(*self)


def check_length(octets: int, max_frame: int) -> None:
    """Refuse a frame shorter than its header or longer than the link carries (header included)."""
    if octets < HEADER_LEN:
        raise MalformedPacket("ethernet", "truncated")
    if octets > max_frame:
        raise MalformedPacket("ethernet", "longer than the link carries")


def is_group(mac: bytes) -> bool:
    """Multicast or broadcast: the I/G bit is set."""
    return bool(mac[0] & _GROUP)


def padding(octets: int) -> memoryview:
    """The zeros that a frame of `octets` still needs; empty from 60 on."""
    return _PADDING[octets:]
