"""Guest memory: views of any range, faults outside RAM, a share that another process can map."""

from __future__ import annotations

import gc
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import PhysAddr, Range
from dma.memory import PAGE_LEN, PHYS_LIMIT, GuestMemory
from dma.transfer import Direction, DmaFault, Transfer
from tests.kit.need import missing

# Two regions that touch, a hole, and one above 4 GiB.
REGIONS = [(0, 0x2000), (0x2000, 0x1000), (0x10000, 0x1000), (0xE_0000_0000, 0x1000)]


def opened(memory: GuestMemory, *ranges: Range) -> list[int]:
    views = memory.open(Transfer(Direction.FROM_DEVICE, ranges))
    return [len(view) for view in views]


def test_one_size_is_one_region_at_0() -> None:
    with GuestMemory(0x4000) as memory:
        assert [(region.start, region.end) for region in memory.regions] == [(0, 0x4000)]
        assert memory.read(PhysAddr(0), 0x4000) == bytes(0x4000)


def test_views_are_the_memory_itself() -> None:
    with GuestMemory(REGIONS) as memory:
        (view,) = memory.open(Transfer(Direction.FROM_DEVICE, ((0x10010, 4),)))
        view[:] = b"abcd"
        assert memory.read(PhysAddr(0x1000F), 6) == b"\0abcd\0"
        memory.write(PhysAddr(0x10010), b"WXYZ")
        assert bytes(view) == b"WXYZ"
        assert bytes(memory.view(PhysAddr(0x10010), 4)) == b"WXYZ"


def test_a_range_over_two_regions_is_two_views() -> None:
    with GuestMemory(REGIONS) as memory:
        assert opened(memory, (0x1FF0, 0x20), (0x0, 0x10)) == [0x10, 0x10, 0x10]
        memory.write(PhysAddr(0x1FFE), b"abcd")
        assert memory.read(PhysAddr(0x1FFE), 4) == b"abcd"
        with pytest.raises(DmaFault):
            memory.view(PhysAddr(0x1FFE), 4)


def test_empty_ranges_have_no_view_and_no_fault() -> None:
    with GuestMemory(REGIONS) as memory:
        assert opened(memory, (0x100, 0), (0x100, 4), (0x5000, 0)) == [4]
        assert memory.read(PhysAddr(0x5000), 0) == b""


@pytest.mark.parametrize(
    ("addr", "length", "where"),
    [
        (0x2FFF, 2, 0x3000),  # runs into the hole
        (0x3000, 1, 0x3000),  # begins in it
        (0xFFFF, 2, 0xFFFF),  # runs out of it
        (0x11000, 1, 0x11000),
        (0xE_0000_0FFF, 2, 0xE_0000_1000),
        (-1, 1, -1),
        (PHYS_LIMIT, 1, PHYS_LIMIT),
        (0, 1 << 40, 0x3000),
    ],
)
def test_outside_ram_is_a_fault_at_the_first_octet_outside(
    addr: int, length: int, where: int
) -> None:
    with GuestMemory(REGIONS) as memory:
        with pytest.raises(DmaFault) as raised:
            opened(memory, (0, 16), (addr, length))
        assert (raised.value.stage, raised.value.addr) == ("memory", where)
        with pytest.raises(DmaFault):
            memory.read(PhysAddr(addr), length)
        with pytest.raises(DmaFault):
            memory.view(PhysAddr(addr), length)


def test_a_write_that_would_leave_ram_stores_nothing() -> None:
    with GuestMemory(REGIONS) as memory:
        with pytest.raises(DmaFault):
            memory.write(PhysAddr(0x2FFE), b"abcd")
        assert memory.read(PhysAddr(0x2FFE), 2) == b"\0\0"


def test_a_negative_length_is_our_mistake() -> None:
    with GuestMemory(REGIONS) as memory, pytest.raises(ValueError, match="-1 bytes"):
        opened(memory, (0x100, -1))


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [(0, 0)],
        [(0, -PAGE_LEN)],
        [(0, 100)],
        [(16, PAGE_LEN)],
        [(-PAGE_LEN, PAGE_LEN)],
        [(0, 2 * PAGE_LEN), (PAGE_LEN, PAGE_LEN)],
        [(PHYS_LIMIT, PAGE_LEN)],
    ],
)
def test_layouts_that_cannot_be(regions: list[Range]) -> None:
    with pytest.raises(ValueError, match="region"):
        GuestMemory(regions)


def test_another_mapping_of_the_memfd_is_the_same_memory() -> None:
    if not hasattr(os, "memfd_create"):
        missing("no memfd on this host")
    with GuestMemory(REGIONS) as memory:
        assert len(memory.fds) == len(REGIONS)
        with mmap.mmap(memory.fds[2], 0x1000) as other:
            memory.write(PhysAddr(0x10010), b"abcd")
            assert other[0x10:0x14] == b"abcd"
            other[0x14] = 0x65
        assert memory.read(PhysAddr(0x10010), 5) == b"abcde"
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fds[2], 0)  # sealed: nobody can pull the memory from under us


def test_without_memfd_the_mapping_is_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with GuestMemory(REGIONS) as memory:
        assert memory.fds == ()
        memory.write(PhysAddr(0x10), b"abcd")
        assert memory.read(PhysAddr(0x10), 4) == b"abcd"


def test_close_while_views_are_held() -> None:
    memory = GuestMemory(REGIONS)
    view = memory.view(PhysAddr(0x10), 4)
    fds = memory.fds
    memory.close()
    memory.close()
    with pytest.raises(DmaFault):
        opened(memory, (0x10, 4))
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    view[:] = b"abcd"  # a socket call may still be in it
    assert bytes(view) == b"abcd"


def test_memory_that_is_forgotten_closes_its_descriptors() -> None:
    memory = GuestMemory(REGIONS)
    fds = memory.fds
    del memory
    gc.collect()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@given(
    st.lists(
        st.tuples(st.integers(0, 0x11100), st.integers(0, 0x1100)),
        max_size=6,
    )
)
def test_open_is_all_or_nothing_and_gives_the_addressed_octets(ranges: list[Range]) -> None:
    flat = bytearray(0x12000)
    ram = bytearray(0x12000)
    with GuestMemory(REGIONS) as memory:
        for start, size in REGIONS[:3]:
            data = bytes((start + i * 7) % 251 for i in range(size))
            memory.write(PhysAddr(start), data)
            flat[start : start + size] = data
            ram[start : start + size] = b"\1" * size
        transfer = Transfer(Direction.TO_DEVICE, ranges)
        if all(all(ram[addr : addr + length]) for addr, length in ranges):
            wanted = b"".join(flat[addr : addr + length] for addr, length in ranges)
            assert bytes(memory.open(transfer)) == wanted
        else:
            with pytest.raises(DmaFault):
                memory.open(transfer)
