from __future__ import annotations

import os

import pytest

from dma.memory import GuestMemory
from dma.transfer import Direction, DmaFault, Transfer
from nic.vfio_user.memory import READABLE, REGIONS_MAX, WRITABLE, Exists, MachineMemory

BOTH = READABLE | WRITABLE


def opened(memory: MachineMemory, addr: int, length: int, *, write: bool) -> bytes:
    direction = Direction.FROM_DEVICE if write else Direction.TO_DEVICE
    return bytes(memory.open(Transfer(direction, ((addr, length),))))


@pytest.fixture
def ram() -> GuestMemory:
    ram = GuestMemory(0x4000)
    ram.write(0x1000, b"abcd")  # type: ignore[arg-type]
    return ram


def test_a_region_is_the_clients_memory(ram: GuestMemory) -> None:
    memory = MachineMemory()
    memory.add(0x100000, 0x2000, BOTH, ram.fds[0], 0x1000)
    assert opened(memory, 0x100000, 4, write=False) == b"abcd"
    views = memory.open(Transfer(Direction.FROM_DEVICE, ((0x101000, 4),)))
    views.copy_from(b"wxyz")
    assert ram.read(0x2000, 4) == b"wxyz"  # type: ignore[arg-type]
    with pytest.raises(DmaFault):
        opened(memory, 0x101FFE, 4, write=False)
    memory.clear()
    with pytest.raises(DmaFault):
        opened(memory, 0x100000, 4, write=False)


def test_what_may_only_be_read(ram: GuestMemory) -> None:
    memory = MachineMemory()
    read_only = os.open(f"/proc/self/fd/{ram.fds[0]}", os.O_RDONLY)
    memory.add(0, 0x2000, READABLE, read_only, 0)
    os.close(read_only)
    assert opened(memory, 0x1000, 4, write=False) == b"abcd"
    with pytest.raises(DmaFault):
        opened(memory, 0x1000, 4, write=True)


def test_a_window_of_a_device_is_a_fault() -> None:
    memory = MachineMemory()
    memory.add(0x1000, 0x1000, BOTH, None, 0)
    with pytest.raises(DmaFault):
        opened(memory, 0x1000, 4, write=False)
    assert memory.remove(0x1000, 0x1000)
    assert not memory.remove(0x1000, 0x1000)


def test_regions_that_cannot_be(ram: GuestMemory) -> None:
    memory, fd = MachineMemory(), ram.fds[0]
    memory.add(0x2000, 0x2000, BOTH, fd, 0)
    with pytest.raises(Exists):
        memory.add(0x3000, 0x1000, BOTH, fd, 0)
    for addr, size, offset in (
        *((0, 0, 0), (1, 0x1000, 0), (0x8000, 0x1001, 0), (0x8000, 0x5000, 0)),
        *((0x8000, 0x1000, 0x4000), (1 << 64, 0x1000, 0), (0x8000, 1 << 63, 0)),
    ):
        with pytest.raises((ValueError, OverflowError)):
            memory.add(addr, size, BOTH, fd, offset)
    reader, writer = os.pipe()
    with pytest.raises((ValueError, OSError)):
        memory.add(0x8000, 0x1000, BOTH, reader, 0)
    os.close(reader)
    os.close(writer)
    assert not memory.remove(0x8000, 0x1000)


def test_so_many_and_no_more() -> None:
    memory = MachineMemory()
    for number in range(REGIONS_MAX):
        memory.add(0x1000 * number, 0x1000, BOTH, None, 0)
    with pytest.raises(ValueError, match="more than"):
        memory.add(0x1000 * REGIONS_MAX, 0x1000, BOTH, None, 0)


def test_who_holds_a_view_keeps_it(ram: GuestMemory) -> None:
    memory = MachineMemory()
    memory.add(0, 0x4000, BOTH, ram.fds[0], 0)
    views = memory.open(Transfer(Direction.TO_DEVICE, ((0x1000, 4),)))
    memory.remove(0, 0x4000)
    assert bytes(views) == b"abcd"
