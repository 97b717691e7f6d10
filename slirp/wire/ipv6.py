"""IPv6, RFC 8200 §3, and the extension headers between it and the transport, §4.

     0         4         6    7    8               24              40
    +---------+---------+----+----+---------------+---------------+
    |V class  | payload |next|hop |      src      |      dst      |  then extension headers
    |flow label| length |    |lim |               |               |
    +---------+---------+----+----+---------------+---------------+

`payload_len` counts everything behind the fixed 40 bytes, extension headers included, and decides
where the packet ends: what a frame has beyond it is padding and never part of a stream.

`walk` goes from the fixed header to whatever is behind the extension headers. Options are checked
and none is acted upon: a router alert alerts nobody, a routing header whose segments are used up is
passed over, and any other is refused. What RFC 8200 wants answered with a Parameter Problem comes
back as a `Problem`, a value; what is merely broken is `MalformedPacket`. A fragment ends the walk:
what follows its header cannot be read before the datagram is whole.

A chain is followed for EXTENSIONS_MAX headers and OPTIONS_MAX options (RFC 8504 §5.3 lets a host
choose both); beyond them it is malformed. A jumbogram (RFC 2675) has a payload length of 0 and
is malformed too: no frame here is that long.

Does not do: authentication and encapsulation (AH, ESP are transports that nobody here knows),
segment routing, mobility.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 40  # bytes
MAX_PAYLOAD: Final = 65535  # bytes behind the fixed header
MIN_MTU: Final = 1280  # bytes, RFC 8200 §5

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
PROTOCOL_ICMPV6: Final = 58
NO_NEXT_HEADER: Final = 59
DESTINATION_OPTIONS: Final = 60

FRAGMENT_LEN: Final = 8  # bytes of a fragment header
EXTENSIONS_MAX: Final = 8  # headers in one chain
OPTIONS_MAX: Final = 64  # options in one header, pads included

# Codes of an ICMPv6 Parameter Problem (RFC 4443 §3.4) that the walk asks for.
ERRONEOUS_FIELD: Final = 0
UNKNOWN_NEXT_HEADER: Final = 1
UNKNOWN_OPTION: Final = 2
INCOMPLETE_CHAIN: Final = 3  # of a first fragment, RFC 7112 §5

PAD1: Final = 0
JUMBO: Final = 0xC2

_HEADER: Final = Struct("!IHBB16s16s")
_FRAGMENT: Final = Struct("!BBHI")
_VERSION: Final = 6 << 28
_FLOW: Final = 0x0FFFFFFF  # traffic class and flow label


class Ipv6Header(NamedTuple):
    flow: int  # traffic class (8 bits) and flow label (20)
    payload_len: int  # bytes behind this header
    next_header: int
    hop_limit: int
    src: bytes  # 16 bytes
    dst: bytes  # 16 bytes

    @classmethod
    def parse(cls, view: memoryview | bytes, available: int | None = None) -> Ipv6Header:
        """A header whose packet is all there.

        `view` starts with the header; `available` is the length of packet and padding together
        (default: the view's).
        """
        size = len(view)
        if size < HEADER_LEN:
            raise MalformedPacket("ipv6", "truncated")
        first, payload_len, next_header, hop_limit, src, dst = _HEADER.unpack_from(view)
        if first >> 28 != 6:
            raise MalformedPacket("ipv6", "version")
        if payload_len > (size if available is None else available) - HEADER_LEN:
            raise MalformedPacket("ipv6", "payload length beyond the frame")
        return cls(first & _FLOW, payload_len, next_header, hop_limit, src, dst)

    def emit(self) -> bytes:
        return _HEADER.pack(
            _VERSION | self.flow, self.payload_len, self.next_header, self.hop_limit, self.src,
            self.dst,
        )  # fmt: skip


class FragmentHeader(NamedTuple):
    """RFC 8200 §4.5."""

    next_header: int  # of what the fragments make up
    offset: int  # bytes, a multiple of 8
    more: bool
    ident: int

    @classmethod
    def parse(cls, view: memoryview | bytes) -> FragmentHeader:
        if len(view) < FRAGMENT_LEN:
            raise MalformedPacket("ipv6", "extension header truncated")
        next_header, _, field, ident = _FRAGMENT.unpack_from(view)
        return cls(next_header, field & 0xFFF8, bool(field & 1), ident)

    def emit(self) -> bytes:
        return _FRAGMENT.pack(self.next_header, 0, self.offset | self.more, self.ident)


class Problem(NamedTuple):
    """What an ICMPv6 Parameter Problem is to say."""

    code: int
    pointer: int  # bytes from the start of the IPv6 header to what is wrong
    to_group: bool  # owed even where the packet was for a group (RFC 8200 §4.2, action 10)


class Chain(NamedTuple):
    """What the extension headers lead to."""

    protocol: int  # FRAGMENT where the chain ends in one
    start: int  # bytes from the start of the IPv6 header to that one's
    named_at: int  # where the byte stands that names `protocol`: what a Problem points at
    fragment: FragmentHeader | None


def walk(header: Ipv6Header, view: memoryview | bytes) -> Chain | Problem:
    """Past the extension headers. `view` starts with the fixed header and holds the packet's
    headers, or all of it; a chain that leaves it is malformed."""
    protocol, start, named_at = header.next_header, HEADER_LEN, 6
    end = min(len(view), HEADER_LEN + header.payload_len)
    for number in range(EXTENSIONS_MAX + 1):
        if protocol == FRAGMENT:
            fragment = FragmentHeader.parse(view[start:end])
            return Chain(protocol, start, named_at, fragment)
        if protocol not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
            return Chain(protocol, start, named_at, None)
        if protocol == HOP_BY_HOP and number:
            return Problem(UNKNOWN_NEXT_HEADER, named_at, False)  # RFC 8200 §4.1: only first
        size = _extension_len(view, start, end)
        if protocol == ROUTING:
            if view[start + 3]:  # segments left, and no type of routing that we know
                return Problem(ERRONEOUS_FIELD, start + 2, False)
        else:
            problem = _check_options(view, start + 2, start + size)
            if problem is not None:
                return problem
        protocol, named_at, start = view[start], start, start + size
    raise MalformedPacket("ipv6", "too many extension headers")


def _extension_len(view: memoryview | bytes, start: int, end: int) -> int:
    if end - start < 8:
        raise MalformedPacket("ipv6", "extension header truncated")
    size = 8 + 8 * view[start + 1]
    if size > end - start:
        raise MalformedPacket("ipv6", "extension header truncated")
    return size


def _check_options(view: memoryview | bytes, at: int, end: int) -> Problem | None:
    """RFC 8200 §4.2: what the two high bits of an option nobody knows ask for."""
    for _ in range(OPTIONS_MAX):
        if at >= end:
            return None
        kind = view[at]
        if kind == PAD1:
            at += 1
            continue
        if at + 2 > end or at + 2 + view[at + 1] > end:
            raise MalformedPacket("ipv6", "option runs past its header")
        if kind == JUMBO:
            raise MalformedPacket("ipv6", "jumbogram")
        action = kind >> 6
        if action == 1:
            raise MalformedPacket("ipv6", "option that asks to be dropped")
        if action > 1:
            return Problem(UNKNOWN_OPTION, at, action == 2)
        at += 2 + view[at + 1]
    raise MalformedPacket("ipv6", "too many options")
