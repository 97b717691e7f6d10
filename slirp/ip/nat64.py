"""IPv4 addresses inside IPv6 ones: RFC 6052, by which guests without IPv4 reach hosts without IPv6.

    length  bits 0 …            64 … 71   … 127
       32   prefix, v4 (32)     0         zero
       40   prefix, v4 (24)     0         v4 (8), zero
       48   prefix, v4 (16)     0         v4 (16), zero
       56   prefix, v4 (8)      0         v4 (24), zero
       64   prefix              0         v4 (32), zero
       96   prefix (its bits 64 to 71 are zero)    v4 (32)

Byte 8 is never part of the IPv4 address, since it tells what kind of interface identifier this is
(§2.2). An address in the prefix that has anything else where zeros belong is none of ours.

The well-known prefix, 64:ff9b::/96, is meant for the world's addresses alone (§3.1). Here it leads
to private ones too: a network at home is what its host reaches, and nobody routes by what a guest
writes. RFC 8215 has 64:ff9b:1::/48 for whoever wants to keep to the letter.

Does not do: packets (the flows on both sides are connections of their own), stateless mapping of
whole networks.
"""

from __future__ import annotations

from typing import Final

from slirp.address import Prefix

WELL_KNOWN: Final = Prefix.from_text("64:ff9b::/96")  # RFC 6052 §2.1
LENGTHS: Final = (32, 40, 48, 56, 64, 96)  # bits, RFC 6052 §2.2
RESERVED: Final = 8  # the byte that is not used


class Nat64:
    """The mapping of one network."""

    __slots__ = ("_head", "_places", "prefix")

    def __init__(self, prefix: Prefix = WELL_KNOWN) -> None:
        """Nothing is checked here: slirp.Config refuses a prefix that is no such one."""
        self.prefix = prefix
        start = prefix.length // 8
        self._head = prefix.addr[:start]
        behind = (index for index in range(start, 16) if index != RESERVED or start > RESERVED)
        self._places = tuple(behind)[:4]  # where the four bytes are

    def embed(self, addr: bytes) -> bytes:
        """The IPv6 address that stands for this IPv4 one."""
        found = bytearray(self.prefix.addr)
        for place, octet in zip(self._places, addr, strict=True):
            found[place] = octet
        return bytes(found)

    def extract(self, addr: bytes) -> bytes | None:
        """The IPv4 address that this IPv6 one stands for, or None."""
        if not addr.startswith(self._head) or len(addr) != 16:
            return None
        inner = bytes(addr[place] for place in self._places)
        return inner if self.embed(inner) == addr else None
