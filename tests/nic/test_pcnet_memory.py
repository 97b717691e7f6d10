from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nic.pcnet_memory import (
    BAM,
    LAFM,
    PAM,
    STYLES,
    Block,
    emit_block_16,
    emit_block_32,
    parse_block_16,
    parse_block_32,
)
from nic.ring import CRC, ENP, ERR, OWN, STP, TMD3_LCAR, Descriptor
from tests.kit.pcnet import MAC, PcnetChip

words = st.integers(0, 0xFFFF)
ladrfs = st.tuples(words, words, words, words)
macs = st.binary(min_size=6, max_size=6)


@given(words, macs, ladrfs, st.integers(0, 7), st.integers(0, 7), st.data())
def test_blocks_of_words_are_read_as_written(
    mode: int, padr: bytes, ladrf: tuple[int, ...], rlen: int, tlen: int, data: st.DataObject
) -> None:
    address = st.integers(0, 0xFFFFFF)
    block = Block(mode, padr, ladrf, rlen, tlen, data.draw(address), data.draw(address))
    assert parse_block_16(emit_block_16(block)) == block


@given(words, macs, ladrfs, st.integers(0, 15), st.integers(0, 15), st.data())
def test_blocks_of_doublewords_are_read_as_written(
    mode: int, padr: bytes, ladrf: tuple[int, ...], rlen: int, tlen: int, data: st.DataObject
) -> None:
    address = st.integers(0, 0xFFFFFFFF)
    block = Block(mode, padr, ladrf, rlen, tlen, data.draw(address), data.draw(address))
    assert parse_block_32(emit_block_32(block)) == block


def test_the_block_that_linux_writes() -> None:
    octets = struct.pack(
        "<HH6sHIIII", 0x0000, 4 << 12 | 5 << 4, MAC, 0, 0x40, 0x80000000, 0x02B2C000, 0x02B2D000
    )
    assert parse_block_32(octets) == Block(
        0, MAC, (0x40, 0, 0, 0x8000), 5, 4, 0x02B2C000, 0x02B2D000
    )


def loaded(style: int, octets: bytes, *, tx: bool = False) -> Descriptor | None:
    parse = STYLES[style].parse_tx if tx else STYLES[style].parse_rx
    return parse(memoryview(bytearray(octets)))


@pytest.mark.parametrize("style", range(4))
@given(st.integers(0, 0xFFFFFF), st.integers(1, 4096), st.integers(0, 0x7F))
def test_descriptors_are_read_as_written(style: int, addr: int, length: int, status: int) -> None:
    octets = PcnetChip(style=style, memory=4096).descriptor(addr, length, OWN | status)
    for tx in (False, True):
        descriptor = loaded(style, octets, tx=tx)
        assert descriptor is not None
        assert descriptor[:3] == (OWN | status, addr, length)


@pytest.mark.parametrize("style", range(4))
@given(st.data())
def test_what_the_guest_owns_is_not_loaded(style: int, data: st.DataObject) -> None:
    octets = bytearray(data.draw(st.binary(min_size=16, max_size=16)))
    octets[3 if style == 0 else 7] &= 0x7F
    assert loaded(style, bytes(octets[: STYLES[style].step])) is None


def test_addresses_of_32_bits() -> None:
    octets = struct.pack("<IIII", 0xFEDCBA98, 0x8000F9F8, 0, 0)
    descriptor = loaded(2, octets)
    assert descriptor is not None
    assert (descriptor.addr, descriptor.length) == (0xFEDCBA98, 1544)


@pytest.mark.parametrize(("style", "at"), [(1, 8), (2, 8), (3, 0)])
def test_a_received_frame_is_stored(style: int, at: int) -> None:
    octets = PcnetChip(style=style, memory=4096).descriptor(0x3000, 1544, OWN)
    descriptor = loaded(style, octets)
    assert descriptor is not None
    descriptor.store(STP | ENP | CRC | ERR | PAM | BAM, 64)
    stored = bytes(descriptor.view)
    assert stored[at : at + 4] == struct.pack("<I", 64)
    assert stored[6:8] == bytes((0x50, 0x4B))
    assert stored[4:6] == octets[4:6]  # BCNT is the host's


def test_a_short_descriptor_has_no_room_for_the_match() -> None:
    descriptor = loaded(0, PcnetChip(style=0, memory=4096).descriptor(0x3000, 1544, OWN))
    assert descriptor is not None
    descriptor.store(STP | ENP | LAFM, 64)
    assert bytes(descriptor.view) == bytes.fromhex("0030 0003 f8f9 4000")


@pytest.mark.parametrize(("style", "at"), [(0, 6), (1, 10), (2, 10), (3, 2)])
def test_the_errors_of_a_frame_that_was_sent(style: int, at: int) -> None:
    octets = PcnetChip(style=style, memory=4096).descriptor(0x3000, 60, OWN | STP | ENP)
    descriptor = loaded(style, octets, tx=True)
    assert descriptor is not None
    descriptor.store(STP | ENP | ERR, TMD3_LCAR)
    assert bytes(descriptor.view[at : at + 2]) == struct.pack("<H", TMD3_LCAR)


@pytest.mark.parametrize("style", range(4))
@given(st.integers(0, 0xFFFFFFFF), st.integers(1, 65536), st.integers(0, 1 << 40))
def test_rings_stay_on_their_grid(style: int, base: int, entries: int, position: int) -> None:
    ring = STYLES[style].ring(base, entries)
    assert ring.address(position) % ring.step == 0
    assert ring.address(position) < STYLES[style].space
