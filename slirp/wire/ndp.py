"""Neighbour discovery for IPv6, RFC 4861 §4: solicitations, advertisements, and their options.

    ICMPv6 header (8 bytes), for RS RA NS NA, then
      RS   nothing           RA   reachable time, retransmission timer (8)
      NS   target (16)       NA   target (16)
    then options: type, length in units of 8 bytes, data

A message is believed only when its hop limit is 255, so that it was sent on this very link, and its
code 0; the hop limit is the caller's to pass in. Options that nobody knows are passed over, as §6.1
wants; a length of 0 would lead back to the same option and is malformed.

Emitted messages are complete but for the checksum, which needs the addresses around them.

Does not do: redirects (nobody here is a better first hop), secure discovery (RFC 3971).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket
from slirp.wire.icmpv6 import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
)

HOP_LIMIT: Final = 255  # of every message, RFC 4861 §7.1
OPTIONS_MAX: Final = 32  # options read of one message

SOURCE_LINK_ADDR: Final = 1
TARGET_LINK_ADDR: Final = 2
PREFIX_INFORMATION: Final = 3
MTU: Final = 5
RDNSS: Final = 25  # RFC 8106 §5.1
DNSSL: Final = 31  # RFC 8106 §5.2
PREF64: Final = 38  # RFC 8781 §4

# Flags of a neighbour advertisement, in the first byte of `rest`
ROUTER: Final = 0x80
SOLICITED: Final = 0x40
OVERRIDE: Final = 0x20

# Flags of a router advertisement
MANAGED: Final = 0x80  # addresses by DHCPv6
OTHER: Final = 0x40  # the rest of the configuration by DHCPv6

# Flags of a prefix
ON_LINK: Final = 0x80
AUTONOMOUS: Final = 0x40

PREF64_LENGTHS: Final = (96, 64, 56, 48, 40, 32)  # bits, by PLC

_NEIGHBOUR: Final = Struct("!BBHB3x16s")
_ADVERTISEMENT: Final = Struct("!BBHBBHII")
_PREFIX: Final = Struct("!BBBBII4x16s")
_MTU: Final = Struct("!BB2xI")
_DNS: Final = Struct("!BB2xI")

_ANSWERS: Final = (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT)


class NeighbourMessage(NamedTuple):
    """A neighbour solicitation or advertisement."""

    type: int
    flags: int  # ROUTER | SOLICITED | OVERRIDE; 0 in a solicitation
    target: bytes  # 16 bytes, never a group address
    link_addr: bytes | None  # 6 bytes: the sender's (solicitation) or the target's

    @classmethod
    def parse(cls, view: memoryview | bytes, hop_limit: int) -> NeighbourMessage:
        """A whole ICMPv6 message of one of the two types."""
        _check(view, hop_limit, _NEIGHBOUR.size)
        kind, _, _, flags, target = _NEIGHBOUR.unpack_from(view)
        if kind not in _ANSWERS:
            raise MalformedPacket("ndp", "type")
        if target[0] == 0xFF:
            raise MalformedPacket("ndp", "target is a group address")
        wanted = SOURCE_LINK_ADDR if kind == NEIGHBOUR_SOLICITATION else TARGET_LINK_ADDR
        if kind == NEIGHBOUR_SOLICITATION:
            flags = 0
        return cls(kind, flags & 0xE0, target, _link_addr(view, _NEIGHBOUR.size, wanted))

    def emit(self) -> bytes:
        wanted = SOURCE_LINK_ADDR if self.type == NEIGHBOUR_SOLICITATION else TARGET_LINK_ADDR
        message = _NEIGHBOUR.pack(self.type, 0, 0, self.flags, self.target)
        return message + (b"" if self.link_addr is None else link_option(wanted, self.link_addr))


class RouterSolicitation(NamedTuple):
    link_addr: bytes | None  # 6 bytes: the sender's

    @classmethod
    def parse(cls, view: memoryview | bytes, hop_limit: int) -> RouterSolicitation:
        """A whole ICMPv6 message."""
        _check(view, hop_limit, 8)
        if view[0] != ROUTER_SOLICITATION:
            raise MalformedPacket("ndp", "type")
        return cls(_link_addr(view, 8, SOURCE_LINK_ADDR))


class RouterAdvertisement(NamedTuple):
    """RFC 4861 §4.2, without the options, which are emitted one by one below."""

    hop_limit: int  # for guests' packets
    flags: int  # MANAGED | OTHER
    lifetime: int  # seconds as default router; 0: none
    reachable: int = 0  # milliseconds; 0: unspecified
    retransmit: int = 0  # milliseconds; 0: unspecified

    def emit(self, options: Iterable[bytes]) -> bytes:
        head = _ADVERTISEMENT.pack(ROUTER_ADVERTISEMENT, 0, 0, *self)
        return head + b"".join(options)


def link_option(kind: int, mac: bytes) -> bytes:
    """SOURCE_LINK_ADDR or TARGET_LINK_ADDR."""
    return bytes((kind, 1)) + mac


def prefix_option(prefix: bytes, length: int, flags: int, valid: int, preferred: int) -> bytes:
    """RFC 4861 §4.6.2; lifetimes in seconds."""
    return _PREFIX.pack(PREFIX_INFORMATION, 4, length, flags, valid, preferred, prefix)


def mtu_option(mtu: int) -> bytes:
    return _MTU.pack(MTU, 1, mtu)


def rdnss_option(servers: Iterable[bytes], lifetime: int) -> bytes:
    """Resolvers, 16 bytes each; the lifetime in seconds."""
    addrs = b"".join(servers)
    return _DNS.pack(RDNSS, 1 + len(addrs) // 8, lifetime) + addrs


def dnssl_option(domains: bytes, lifetime: int) -> bytes:
    """A search list: names as in a DNS message, uncompressed, one behind the other."""
    padded = domains + bytes(-len(domains) % 8)
    return _DNS.pack(DNSSL, 1 + len(padded) // 8, lifetime) + padded


def pref64_option(prefix: bytes, length: int, lifetime: int) -> bytes:
    """The prefix of NAT64; `length` bits, one of PREF64_LENGTHS; the lifetime rounds up to 8 s."""
    scaled = min((lifetime + 7) // 8, 0x1FFF)
    field = scaled << 3 | PREF64_LENGTHS.index(length)
    return bytes((PREF64, 2)) + field.to_bytes(2, "big") + prefix[:12]


def _check(view: memoryview | bytes, hop_limit: int, least: int) -> None:
    """RFC 4861 §6.1 and §7.1: what every message must be."""
    if hop_limit != HOP_LIMIT:
        raise MalformedPacket("ndp", "hop limit")
    if len(view) < least:
        raise MalformedPacket("ndp", "truncated")
    if view[1]:
        raise MalformedPacket("ndp", "code")


def _link_addr(view: memoryview | bytes, at: int, wanted: int) -> bytes | None:
    """The link-layer address among the options; all of them are walked, so all must be sound."""
    found = None
    end = len(view)
    for _ in range(OPTIONS_MAX):
        if at == end:
            return found
        size = 8 * view[at + 1] if at + 2 <= end else 0
        if not size or at + size > end:
            raise MalformedPacket("ndp", "option length")
        if view[at] == wanted and found is None:
            found = bytes(view[at + 2 : at + 8])
            if found[0] & 1:
                raise MalformedPacket("ndp", "link-layer address is a group address")
        at += size
    raise MalformedPacket("ndp", "too many options")
