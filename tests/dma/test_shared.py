"""Memory of another process: mapped by descriptor, sealed, with regions that come and go."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from dma.iovec import PhysAddr
from dma.shared import SharedMemory
from dma.transfer import DmaFault

SIZE = 0x4000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("theirs", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, bytes(range(256)) * (SIZE // 256), 0)
    yield fd
    os.close(fd)


def test_a_region_is_a_part_of_the_file(fd: int) -> None:
    memory = SharedMemory()
    memory.add(0x8000_0000, 0x1000, fd, 0x2010)
    assert memory.read(PhysAddr(0x8000_0000), 2) == b"\x10\x11"
    memory.write(PhysAddr(0x8000_0000), b"ours")
    assert os.pread(fd, 4, 0x2010) == b"ours"
    with pytest.raises(DmaFault):
        memory.read(PhysAddr(0x8000_0FFF), 2)


def test_there_is_nothing_before_a_region_is_added() -> None:
    with pytest.raises(DmaFault):
        SharedMemory().read(PhysAddr(0), 1)


def test_regions_come_and_go_and_views_stay(fd: int) -> None:
    memory = SharedMemory()
    memory.add(0x10000, 0x1000, fd, 0x1000)
    memory.add(0, 0x1000, fd, 0)
    memory.add(0x1000, 0x1000, fd, 0x2000)
    view = memory.view(PhysAddr(0x10000), 4)
    assert [region.start for region in memory.regions] == [0, 0x1000, 0x10000]
    assert len(memory.slices(PhysAddr(0xFFF), 2).segments) == 2
    assert memory.remove(0x10000, 0x1000)
    assert not memory.remove(0x10000, 0x1000)
    with pytest.raises(DmaFault):
        memory.view(PhysAddr(0x10000), 4)
    view[:] = b"kept"
    assert os.pread(fd, 4, 0x1000) == b"kept"


@pytest.mark.parametrize(
    ("start", "size", "offset"),
    [
        (0, 0, 0),
        (0, SIZE + 1, 0),
        (0, 0x1000, SIZE),
        (0, 1 << 63, 1 << 63),
        ((1 << 64) - 1, 2, 0),
        (0x1FFF, 0x10, 0),  # over the one that is there
        (0x3000 - 1, 0x10, 0),
    ],
)
def test_what_cannot_be_a_region(fd: int, start: int, size: int, offset: int) -> None:
    memory = SharedMemory()
    memory.add(0x2000, 0x1000, fd, 0)
    with pytest.raises(ValueError, match="a region"):
        memory.add(start, size, fd, offset)
    assert len(memory.regions) == 1


def test_what_is_no_file_cannot_be_mapped() -> None:
    memory = SharedMemory()
    reader, writer = os.pipe()
    event = os.eventfd(0)
    try:
        for fd in (reader, event):
            with pytest.raises((ValueError, OSError)):
                memory.add(0, 0x1000, fd, 0)
    finally:
        for fd in (reader, writer, event):
            os.close(fd)


def test_a_memfd_cannot_shrink_any_more(fd: int) -> None:
    SharedMemory().add(0, 0x1000, fd, 0)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
