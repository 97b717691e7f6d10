from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec, PhysAddr
from dma.memory import GuestMemory
from dma.transfer import Transfer
from nic.busmaster import BusMaster
from nic.ring import OWN, DescriptorRing, Ring, bcnt


def a_ring(octets: bytes, faults: list[str] | None = None) -> DescriptorRing:
    memory = GuestMemory(0x20000)
    memory.slices(0x12000, len(octets)).copy_from(octets)  # type: ignore[arg-type]
    noted = faults if faults is not None else []
    return DescriptorRing(Ring(0x12000, 2), BusMaster(memory, lambda: noted.append("fault")))


@pytest.mark.parametrize(
    ("length", "word"), [(1544, 0xF9F8), (60, 0xFFC4), (64, 0xFFC0), (4096, 0xF000)]
)
def test_known_byte_counts(length: int, word: int) -> None:
    assert bcnt(length) == word


@given(st.integers(1, 4096), st.integers(0, 15))
def test_the_ones_above_bcnt_do_not_matter(length: int, nibble: int) -> None:
    word = nibble << 12 | bcnt(length) & 0xFFF
    descriptor = a_ring(b"\x30\x00\x80\x01" + word.to_bytes(2, "big") + b"\0\0").load(0)
    assert descriptor is not None
    assert descriptor.length == length


def test_the_worked_descriptor() -> None:
    ring = a_ring(bytes.fromhex("3000 8001 f9f8 0000"))
    descriptor = ring.load(0)
    assert descriptor is not None
    assert (descriptor.status, descriptor.addr, descriptor.length) == (OWN, 0x013000, 1544)
    descriptor.store(0x03, 64)
    assert bytes(descriptor.view) == bytes.fromhex("3000 0301 f9f8 0040")


def test_what_the_guest_owns_is_not_loaded() -> None:
    assert a_ring(bytes.fromhex("3000 7f01 f9f8 0000")).load(0) is None


def test_positions_count_on_round_the_ring() -> None:
    ring = a_ring(bytes.fromhex("1000 8000 ffc0 0000 2000 8000 ffc0 0000"))
    addrs = [d.addr for d in map(ring.load, range(5)) if d]
    assert addrs == [0x1000, 0x2000, 0x1000, 0x2000, 0x1000]


def test_a_ring_may_wrap_at_the_end_of_the_address_space() -> None:
    ring = Ring(0xFFFFF8, 4)
    assert [ring.address(i) for i in range(4)] == [0xFFFFF8, 0, 8, 16]


def test_a_fault_is_told_and_loads_nothing() -> None:
    faults: list[str] = []
    master = BusMaster(GuestMemory(4096), lambda: faults.append("fault"))
    ring = DescriptorRing(Ring(0x12000, 2), master)
    assert ring.load(0) is None
    assert list(ring.walk(0, 2)) == []
    assert faults == ["fault", "fault"]


def test_a_descriptor_that_comes_in_pieces_is_a_memory_error() -> None:
    class Odd:
        def open(self, transfer: Transfer) -> IoVec:
            return IoVec.of(bytearray(b"\0\0\x80"), bytearray(5))

    faults: list[str] = []
    master = BusMaster(Odd(), lambda: faults.append("fault"))
    ring = DescriptorRing(Ring(0x12000, 2), master)
    assert ring.load(0) is None
    assert list(ring.walk(0, 2)) == []
    assert faults == ["fault", "fault"]


@given(st.integers(0, 7), st.integers(0, 511), st.integers(0, 300), st.integers(0, 128))
def test_a_walk_is_as_many_loads(rlen: int, base: int, position: int, owned: int) -> None:
    """From any position of a ring anywhere in a page, up to the first that is not owned."""
    entries = 1 << rlen
    memory = GuestMemory(0x20000)
    ring = Ring(0x12000 + 8 * base, entries)
    for offset in range(min(owned, entries)):
        address = ring.address(position + offset)
        memory.write(PhysAddr(address), bytes([0, offset, 0x80, 0, 0xFF, 0xC0, 0, 0]))
    walked = list(
        DescriptorRing(ring, BusMaster(memory, pytest.fail)).walk(position, position + 90)
    )
    expected = min(owned, 90) if owned < entries else 90
    assert [d.addr for d in walked] == [n % entries for n in range(expected)]


def test_a_walk_faults_no_earlier_than_a_load() -> None:
    faults: list[str] = []
    memory = GuestMemory(0x1000)
    memory.write(PhysAddr(0xFF0), bytes.fromhex("0000 8000 ffc0 0000 0000 8000 ffc0 0000"))
    ring = DescriptorRing(Ring(0xFF0, 8), BusMaster(memory, lambda: faults.append("fault")))
    walk = ring.walk(0, 8)
    assert next(walk)
    assert next(walk)
    assert faults == []
    assert list(walk) == []
    assert faults == ["fault"]


def test_own_is_read_before_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest in another process gives a descriptor back while the chip looks at it."""
    memory = GuestMemory(1 << 16)
    descriptors = DescriptorRing(Ring(0x100, 1), BusMaster(memory, pytest.fail))
    view = memory.view(PhysAddr(0x100), 8)
    view[:] = struct.pack(">4H", 0x3000, 0x0300, bcnt(64), 0)  # the guest's: buffer 0x003000

    class Torn:
        """Reads the address, then the guest has its turn, then reads the rest."""

        def unpack_from(self, octets: memoryview) -> tuple[int, ...]:
            (low,) = struct.unpack_from(">H", octets)
            view[:] = struct.pack(">4H", 0x4000, OWN << 8, bcnt(64), 0)  # buffer 0x004000
            return (low, *struct.unpack_from(">BBH", octets, 2))

    monkeypatch.setattr("nic.ring._LOAD", Torn())
    assert descriptors.load(0) is None  # and never the old buffer with the new OWN
