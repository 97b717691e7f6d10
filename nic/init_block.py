"""The Am7990's initialization block: twelve words that INIT reads, once.

    0x00 MODE     0x02 PADR (3 words)     0x08 LADRF (4 words)
    0x10 RDRA low     0x12 RLEN 15:13, RDRA 23:16 in 7:0
    0x14 TDRA low     0x16 TLEN 15:13, TDRA 23:16 in 7:0

The chip drives sixteen data lines, and DAL[15:8] is the even byte of a big-endian bus: every word
here and in a descriptor is a big-endian u16, whatever CSR3.BSWP says. The low byte of PADR's first
word is the first byte on the wire, so PADR looks pair-swapped in memory.

`emit` is for drivers: tests and the Python guest write the block that `parse` reads.

Does not do: checks. Reserved bits are ignored, and ring addresses lose their low three bits.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, Self

from nic.ring import Ring

# MODE
PROM: Final = 1 << 15
INTL: Final = 1 << 6
DRTY: Final = 1 << 5
COLL: Final = 1 << 4
DTCR: Final = 1 << 3
LOOP: Final = 1 << 2
DTX: Final = 1 << 1
DRX: Final = 1 << 0

INIT_BLOCK_LEN: Final = 24  # bytes
_BLOCK: Final = struct.Struct(">H6s4H4H")


class InitBlock(NamedTuple):
    """What INIT reads."""

    mode: int
    padr: bytes  # as on the wire
    ladrf: tuple[int, ...]
    rx_ring: Ring
    tx_ring: Ring

    @classmethod
    def parse(cls, block: bytes) -> Self:
        mode, padr, *words = _BLOCK.unpack(block)
        return cls(
            mode=mode,
            padr=_exchange_pairs(padr),
            ladrf=tuple(words[:4]),
            rx_ring=_parse_ring(words[4], words[5]),
            tx_ring=_parse_ring(words[6], words[7]),
        )

    def emit(self) -> bytes:
        return _BLOCK.pack(
            self.mode,
            _exchange_pairs(self.padr),
            *self.ladrf,
            *_emit_ring(self.rx_ring),
            *_emit_ring(self.tx_ring),
        )


def _exchange_pairs(octets: bytes) -> bytes:
    return bytes(octets[i ^ 1] for i in range(len(octets)))


def _parse_ring(low: int, high: int) -> Ring:
    return Ring(base=(high & 0xFF) << 16 | low & 0xFFF8, entries=1 << (high >> 13))


def _emit_ring(ring: Ring) -> tuple[int, int]:
    rlen = ring.entries.bit_length() - 1
    return ring.base & 0xFFFF, rlen << 13 | ring.base >> 16
