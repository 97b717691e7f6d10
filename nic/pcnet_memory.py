"""The Am79C970A's software styles: how init block and descriptors lie in memory (BCR20, SWSTYLE).

    style 0   the LANCE's: words, 8-byte descriptors, 24-bit addresses, rings of up to 128
    style 1   the ILACC's: doublewords, 16-byte descriptors, 32-bit addresses, rings of up to 512
    style 2   the PCnet-PCI's: as 1; bit 29 of a TX descriptor is ADD_FCS, not NO_FCS
    style 3   the PCnet-PCI II's: as 2, doublewords in an order that suits bursts

A descriptor of styles 1 and 2 is

     0               4                         8              12
    +---------------+-------------------------+--------------+------------+
    | buffer's addr | status, match | BCNT    | MCNT or TMD2 | the host's |
    +---------------+-------------------------+--------------+------------+

and style 3 has the first and the third doubleword exchanged. Everything is little-endian, PCI's
order. Status is bits 31:24 with the Am7990's names; of the byte below the receiver uses three bits,
which say why a frame was accepted. Inside the engine those are bits 15:8 of a status, and a
descriptor of style 0 has no room for them.

The guest's processor runs while we look, in another process. OWN is read before the rest and stored
after it, with a barrier between (nic/virtio/fence.py), whatever order the host's processor would
choose.

`emit` is for drivers: tests write the blocks and descriptors that `parse` reads.

Does not do: check reserved bits, or the four ones above BCNT.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from nic.ring import ENP, OWN, STP, Descriptor, Parse, Ring
from nic.virtio.fence import fence

# What the receiver says in bits 15:8 of a status
PAM: Final = 1 << 14  # PADR
LAFM: Final = 1 << 13  # LADRF
BAM: Final = 1 << 12  # broadcast

# Of a TX status
ADD_FCS: Final = 1 << 5  # styles 0, 2 and 3; in a frame's first descriptor
NO_FCS: Final = 1 << 5  # style 1; in its last
LTINT: Final = 1 << 4  # in its last, where CSR5.LTINTEN is set

SPACE_24: Final = 1 << 24  # bytes
SPACE_32: Final = 1 << 32
RLEN_MAX_16: Final = 7  # log2 of a ring's length
RLEN_MAX_32: Final = 9  # more means the same

_BLOCK_16: Final = struct.Struct("<H6s4HII")
_BLOCK_32: Final = struct.Struct("<HBB6sxx4HII")
_WORDS: Final = struct.Struct("<HBBHH")
_DWORDS: Final = struct.Struct("<IHBBII")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_STATUS_16: Final = 3  # offset of the byte with OWN
_STATUS_32: Final = 6  # offset of match and status


class Block(NamedTuple):
    """What INIT reads, whatever its form."""

    mode: int
    padr: bytes
    ladrf: tuple[int, ...]
    rlen: int  # log2 of the receive ring's length
    tlen: int
    rdra: int
    tdra: int


class Descriptor16(Descriptor):
    """Style 0."""

    __slots__ = ()

    def store(self, status: int, word3: int | None = None) -> None:
        view = self.view
        if word3 is not None:
            _U16.pack_into(view, 6, word3)
        fence()
        view[_STATUS_16] = status & 0xFF


class RxDescriptor32(Descriptor):
    """Styles 1 and 2: MCNT is the third doubleword."""

    __slots__ = ()

    def store(self, status: int, word3: int | None = None) -> None:
        _store_32(self.view, status, word3, 8)


class RxDescriptor3(Descriptor):
    """Style 3: MCNT is the first."""

    __slots__ = ()

    def store(self, status: int, word3: int | None = None) -> None:
        _store_32(self.view, status, word3, 0)


class TxDescriptor32(Descriptor):
    """Styles 1 and 2: TMD3's errors are the upper half of the third doubleword."""

    __slots__ = ()

    def store(self, status: int, word3: int | None = None) -> None:
        _store_32(self.view, status, None if word3 is None else word3 << 16, 8)


class TxDescriptor3(Descriptor):
    """Style 3: of the first."""

    __slots__ = ()

    def store(self, status: int, word3: int | None = None) -> None:
        _store_32(self.view, status, None if word3 is None else word3 << 16, 0)


def _store_32(view: memoryview, status: int, dword: int | None, at: int) -> None:
    if dword is not None:
        _U32.pack_into(view, at, dword)
    view[_STATUS_32] = status >> 8 & 0xF0
    fence()
    view[_STATUS_32 + 1] = status & 0xFF


def parse_16(view: memoryview) -> Descriptor | None:
    if not view[_STATUS_16] & OWN:  # before the rest, see nic/ring.py
        return None
    fence()
    low, high, status, count, _ = _WORDS.unpack_from(view)
    return Descriptor16(status, high << 16 | low, 4096 - (count & 0xFFF), view)


def _parser(kind: type[Descriptor], is_style_3: bool) -> Parse:
    def parse(view: memoryview) -> Descriptor | None:
        if not view[_STATUS_32 + 1] & OWN:
            return None
        fence()
        first, count, _, status, third, _ = _DWORDS.unpack_from(view)
        return kind(status, third if is_style_3 else first, 4096 - (count & 0xFFF), view)

    return parse


def parse_block_16(octets: bytes) -> Block:
    mode, padr, *ladrf, rdra, tdra = _BLOCK_16.unpack(octets)
    top = SPACE_24 - 1
    return Block(mode, padr, tuple(ladrf), rdra >> 29, tdra >> 29, rdra & top, tdra & top)


def parse_block_32(octets: bytes) -> Block:
    mode, rlen, tlen, padr, *ladrf, rdra, tdra = _BLOCK_32.unpack(octets)
    return Block(mode, padr, tuple(ladrf), rlen >> 4, tlen >> 4, rdra, tdra)


def emit_block_16(block: Block) -> bytes:
    mode, padr, ladrf, rlen, tlen, rdra, tdra = block
    return _BLOCK_16.pack(mode, padr, *ladrf, rdra | rlen << 29, tdra | tlen << 29)


def emit_block_32(block: Block) -> bytes:
    mode, padr, ladrf, rlen, tlen, rdra, tdra = block
    return _BLOCK_32.pack(mode, rlen << 4, tlen << 4, padr, *ladrf, rdra, tdra)


class Style(NamedTuple):
    """One software style."""

    number: int
    bits: int  # of BCR20, read-only: CSRPCNET 9, SSIZE32 8
    block_len: int  # bytes
    parse_block: Callable[[bytes], Block]
    rlen_max: int
    step: int  # bytes of a descriptor
    space: int  # bytes that addresses reach
    parse_rx: Parse
    parse_tx: Parse
    makes_fcs: int  # TX status bits, see nic/transmitter.py
    no_fcs: int
    kept: int

    def ring(self, base: int, entries: int) -> Ring:
        """A ring at `base`, whose low bits the chip takes as zero."""
        return Ring(base % self.space & -self.step, entries, self.step, self.space)


CSRPCNET: Final = 1 << 9
SSIZE32: Final = 1 << 8
_KEPT: Final = STP | ENP

_16: Final = (_BLOCK_16.size, parse_block_16, RLEN_MAX_16, 8, SPACE_24)
_32: Final = (_BLOCK_32.size, parse_block_32, RLEN_MAX_32, 16, SPACE_32)
_RX_32: Final = _parser(RxDescriptor32, False)
_TX_32: Final = _parser(TxDescriptor32, False)
_RX_3: Final = _parser(RxDescriptor3, True)
_TX_3: Final = _parser(TxDescriptor3, True)

STYLES: Final = (
    Style(0, CSRPCNET, *_16, parse_16, parse_16, ADD_FCS, 0, _KEPT | ADD_FCS),
    Style(1, SSIZE32, *_32, _RX_32, _TX_32, 0, NO_FCS, _KEPT | NO_FCS),
    Style(2, CSRPCNET | SSIZE32, *_32, _RX_32, _TX_32, ADD_FCS, 0, _KEPT | ADD_FCS),
    Style(3, CSRPCNET | SSIZE32, *_32, _RX_3, _TX_3, ADD_FCS, 0, _KEPT | ADD_FCS),
)
