"""IPv6's fragments: a datagram cut into what fits the guest's link, and a guest's put together.

A fragment header (RFC 8200 §4.5) stands between the part that every fragment carries, its fixed
header and what may follow for routers' use, and the part that is cut. On the way out the first is
the fixed header alone; the payload is not touched, each fragment has a slice of its vector.

On the way in slirp.ip.reassembly does the work. A datagram is known by source, destination and
identification; what the whole one's header names as next is what the first fragment says. One that
is a fragment of itself, at offset 0 and the last (an atomic fragment), never meets others of its
identification (RFC 6946): `atomic` tells.

Does not do: extension headers in what we send.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dma.iovec import IoVec
from slirp.ip.reassembly import Fragment, Reassembler
from slirp.wire.ipv6 import (
    FRAGMENT,
    FRAGMENT_LEN,
    HEADER_LEN,
    MAX_PAYLOAD,
    MIN_MTU,
    FragmentHeader,
    Ipv6Header,
)

TIMEOUT: Final = 60.0  # seconds from the first fragment, RFC 8200 §4.5
_PAYLOAD_LEN_AT: Final = 4


class Piece(NamedTuple):
    """What stands in front of a fragment's payload."""

    head: bytes  # from the fixed header to where the fragment header was
    named_at: int  # where `head` names what follows
    src: bytes
    dst: bytes
    fragment: FragmentHeader | None  # None: the whole

    @property
    def atomic(self) -> bool:
        """A whole datagram with a fragment header."""
        return self.fragment is not None and not (self.fragment.offset or self.fragment.more)


def joined(piece: Piece, size: int) -> Piece:
    """The first fragment's piece as that of the whole datagram, `size` bytes of payload."""
    assert piece.fragment is not None
    head = bytearray(piece.head)
    length = len(head) - HEADER_LEN + size
    head[_PAYLOAD_LEN_AT : _PAYLOAD_LEN_AT + 2] = length.to_bytes(2, "big")
    head[piece.named_at] = piece.fragment.next_header
    return piece._replace(head=bytes(head), fragment=None)


class Ipv6Reassembler(Reassembler[Piece]):
    """Of one port."""

    __slots__ = ()

    name = "ipv6"
    patience = TIMEOUT

    def describe(self, header: Piece) -> Fragment | None:
        found = header.fragment
        if found is None:
            return None
        datagram = (header.src, header.dst, found.ident)
        return Fragment(datagram, found.offset, found.more, len(header.head) - HEADER_LEN)

    def joined(self, header: Piece, size: int) -> Piece:
        return joined(header, size)


def fragment(header: Ipv6Header, payload: IoVec, mtu: int, ident: int) -> list[tuple[bytes, IoVec]]:
    """(header, payload) of each packet, in order; just one where the datagram fits in `mtu`.

    Of `header`, payload_len and next_header are computed, the rest is kept.
    """
    size = len(payload)
    if mtu < MIN_MTU or size > MAX_PAYLOAD:
        raise ValueError(f"cannot fragment {size} bytes for MTU {mtu}")
    if HEADER_LEN + size <= mtu:
        return [(header._replace(payload_len=size).emit(), payload)]
    room = (mtu - HEADER_LEN - FRAGMENT_LEN) & ~7
    packets: list[tuple[bytes, IoVec]] = []
    for start in range(0, size, room):
        stop = min(start + room, size)
        fixed = header._replace(payload_len=FRAGMENT_LEN + stop - start, next_header=FRAGMENT)
        cut = FragmentHeader(header.next_header, start, stop < size, ident)
        packets.append((fixed.emit() + cut.emit(), payload.slice(start, stop)))
    return packets
