from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nic import pci
from nic.pci import Bar, ConfigSpace, Identity

IDENTITY = Identity(0x1022, 0x2000, 0x020000, 0x10, 0, 0x0280, 0xFF06, 0x0147, 0xF900)


def a_space() -> ConfigSpace:
    return ConfigSpace.build(IDENTITY, (Bar(32, True), Bar(4096, False)))


def dword(space: ConfigSpace, offset: int) -> int:
    return int.from_bytes(space.read(offset, 4), "little")


def test_who_it_is() -> None:
    space = a_space()
    assert space.read(0, 4) == bytes.fromhex("22100020")
    assert dword(space, 8) == 0x02000010
    assert space.read(pci.INTERRUPT_PIN, 1) == b"\1"


def test_base_address_registers_are_sized_by_ones() -> None:
    space = a_space()
    for offset in (0x10, 0x14, 0x18):
        space.write(offset, b"\xff" * 4)
    assert dword(space, 0x10) == 0xFFFFFFE1
    assert dword(space, 0x14) == 0xFFFFF000
    assert dword(space, 0x18) == 0
    space.write(0x10, (0xC040).to_bytes(4, "little"))
    assert dword(space, 0x10) == 0xC041


def test_status_bits_are_written_1_to_clear() -> None:
    space = a_space()
    space.set_bits(pci.STATUS, pci.MASTER_ABORT)
    assert space.word(pci.STATUS) == 0x2280
    space.write(pci.STATUS, b"\0\0")
    assert space.word(pci.STATUS) == 0x2280
    space.write(pci.STATUS, b"\xff\xff")
    assert space.word(pci.STATUS) == 0x0280


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=8))))
def test_what_cannot_be_written_stays(writes: list[tuple[int, bytes]]) -> None:
    space = a_space()
    for offset, data in writes:
        space.write(offset, data[: 256 - offset])
    assert space.read(0, 4) == bytes.fromhex("22100020")
    assert space.word(pci.COMMAND) & ~0x0147 == 0
    assert dword(space, 0x10) & 0x1F == 1
    space.reset()
    assert space.read(0, 256) == a_space().read(0, 256)
