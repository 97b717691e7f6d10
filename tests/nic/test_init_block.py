from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nic.init_block import InitBlock
from nic.ring import Ring

WORKED = bytes.fromhex("0000 0008 0120 0302 0000 0000 0000 0040 2000 8001 2080 8001")


def test_the_worked_block() -> None:
    block = InitBlock.parse(WORKED)
    assert block == InitBlock(
        mode=0,
        padr=bytes.fromhex("080020010203"),
        ladrf=(0, 0, 0, 0x0040),
        rx_ring=Ring(0x012000, 16),
        tx_ring=Ring(0x012080, 16),
    )
    assert block.emit() == WORKED


def test_reserved_bits_and_low_address_bits_are_ignored() -> None:
    words = bytearray(WORKED)
    words[0x11] |= 0x07  # RDRA 2:0
    words[0x12] |= 0x1F  # reserved, 12:8
    assert InitBlock.parse(bytes(words)) == InitBlock.parse(WORKED)


@given(st.binary(min_size=24, max_size=24))
def test_any_block_is_a_block(octets: bytes) -> None:
    block = InitBlock.parse(octets)
    for ring in (block.rx_ring, block.tx_ring):
        assert ring.base % 8 == 0
        assert ring.base < 1 << 24
        assert ring.entries in (1, 2, 4, 8, 16, 32, 64, 128)
    assert InitBlock.parse(block.emit()) == block
