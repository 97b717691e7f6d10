"""The Am7990's address filter: which destinations a receiver takes.

In order: MODE.PROM takes everything; an individual address must equal PADR; the broadcast address
is always taken; any other group address is hashed, and taken where its bit of LADRF is set. The
hash is the top six bits of the FCS polynomial's remainder over the six bytes, not inverted.

The same CRC, inverted, is the FCS at a frame's end; both are here, so that the polynomial's
conventions are written down once.

Does not do: runts, loopback, or anything beyond the six bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

BROADCAST: Final = b"\xff" * 6
GROUP: Final = 0x01  # of the first byte on the wire

FCS_LEN: Final = 4  # bytes
FCS_RESIDUE: Final = 0x2144DF1C  # CRC-32 over a frame and its own FCS


def hash_index(address: bytes) -> int:
    """Which of LADRF's 64 bits speaks for a group address."""
    return (zlib.crc32(address) ^ 0xFFFFFFFF) >> 26


def is_hashed(address: bytes, ladrf: Sequence[int]) -> bool:
    """Is the bit of LADRF set that speaks for a group address?"""
    index = hash_index(address)
    return bool(ladrf[index >> 4] >> (index & 15) & 1)


def logical_address_filter(addresses: Iterable[bytes]) -> tuple[int, int, int, int]:
    """The LADRF words that let these group addresses through (and those that hash alike)."""
    words = [0, 0, 0, 0]
    for address in addresses:
        index = hash_index(address)
        words[index >> 4] |= 1 << (index & 15)
    return words[0], words[1], words[2], words[3]


def crc_of(segments: Iterable[memoryview]) -> int:
    """CRC-32 over scattered bytes."""
    crc = 0
    for segment in segments:
        crc = zlib.crc32(segment, crc)
    return crc


def fcs_of(segments: Iterable[memoryview]) -> bytes:
    """The four bytes that follow a frame on the wire."""
    return crc_of(segments).to_bytes(FCS_LEN, "little")


class AddressFilter(NamedTuple):
    """PADR, LADRF and MODE.PROM as INIT read them."""

    padr: bytes
    ladrf: tuple[int, ...]  # four words, bits 16i+15..16i in word i
    prom: bool = False

    def accepts(self, dst: bytes) -> bool:
        if dst == self.padr or self.prom:
            return True
        if not dst[0] & GROUP:
            return False
        return dst == BROADCAST or is_hashed(dst, self.ladrf)
