"""DMA to device registers, which are no memory: as it is, a fault; and what it would take.

Translation ends in host memory, so an address behind which a device answers has nothing that it
could end in. The project has no device that another one addresses, and says so with a fault before
a byte moves. A stage that hands out a buffer instead, and pushes a completion that makes the
accesses, is all it would take: `RegisterWindow` is one, in front of guest memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.measure import Effort, progress, turn_about
from dma import iommu
from dma.iommu import Iommu
from dma.iovec import IoVec, PhysAddr
from dma.memory import PAGE_LEN, GuestMemory
from dma.transfer import Direction, DmaFault, DmaPath, Transfer

SIZES: Final = (4, 16, 64, 256, 1024, 4096)  # bytes
RAM_LEN: Final = 0x200000
TABLE: Final = 0x100000
DEVICE: Final = 0x10000000  # physical address of a device's registers
DVMA: Final = 0xFC000000
WORD: Final = 4  # bytes of a register

FROM_DEVICE: Final = Direction.FROM_DEVICE


class Registers:
    """A device whose registers are words that can be read and written, and do nothing else."""

    def __init__(self) -> None:
        self.words = [0] * (PAGE_LEN // WORD)

    def read(self, offset: int) -> int:
        return self.words[offset // WORD]

    def write(self, offset: int, value: int) -> None:
        self.words[offset // WORD] = value


class RegisterWindow:
    """A DMA path: whole transfers to [DEVICE, DEVICE + 4 KiB) are bounced, others go to memory."""

    def __init__(self, memory: DmaPath, device: Registers) -> None:
        self._memory = memory
        self._device = device

    def open(self, transfer: Transfer) -> IoVec:
        (first, length), *others = transfer.ranges
        offset = first - DEVICE
        if others or not 0 <= offset <= offset + length <= PAGE_LEN:
            return self._memory.open(transfer)
        bounce = bytearray(length)
        if transfer.direction is FROM_DEVICE:
            transfer.completions.append(partial(self._write, offset, bounce))
        else:
            for at in range(0, length, WORD):
                word = self._device.read(offset + at)
                bounce[at : at + WORD] = word.to_bytes(WORD, "big")
        return IoVec((memoryview(bounce),))

    def _write(self, offset: int, bounce: bytearray, size: int) -> None:
        """Completion: one access per register, in order."""
        for at in range(0, size, WORD):
            self._device.write(offset + at, int.from_bytes(bounce[at : at + WORD], "big"))


def mapped(path: DmaPath, memory: GuestMemory) -> Iommu:
    """Two pages of DVMA: one is RAM, the next a device."""
    made = Iommu(path)
    made.write(iommu.CTRL, 0x9)
    made.write(iommu.BASE, TABLE >> 4)
    for index, page in enumerate((0x4000, DEVICE)):
        entry = page >> 12 << 8 | iommu.IOPTE_WRITE | iommu.IOPTE_VALID
        memory.write(PhysAddr(TABLE + 4 * index), entry.to_bytes(4, "big"))
    return made


def registers(effort: Effort) -> Answer:
    """A transfer to RAM, to registers as a fault, and to registers through a bounce buffer."""
    rows: list[tuple[Cell, ...]] = []
    with GuestMemory(RAM_LEN) as memory:
        device = Registers()
        plain, window = mapped(memory, memory), mapped(RegisterWindow(memory, device), memory)
        for size in effort.some(SIZES):
            progress(f"registers: {size}")
            octets = bytes(range(1, 5)) * (size // WORD)
            ways: dict[str, Callable[[], None]] = {
                "memory": partial(move, plain, DVMA, octets),
                "fault": partial(fault, plain, octets),
                "bounced": partial(move, window, DVMA + PAGE_LEN, octets),
            }
            device.words[:] = [0] * len(device.words)
            ways["bounced"]()
            assert device.words[: size // WORD] == [0x01020304] * (size // WORD)
            times = turn_about(ways, effort)
            rows.append((size, *map(times.us, ways), times.ratio("bounced", "memory")))
    table = Table(
        (
            "bytes",
            "to memory, µs",
            "to registers: a fault, µs",
            "to registers, bounced, µs",
            "bounced ÷ memory",
        ),
        rows,
        "IOMMU and what is behind it, a register of four bytes at a time",
    )
    plot = Plot.of(
        table,
        table.head[1:4],
        name="registers",
        title="A transfer to memory and to a device's registers",
        y_label="CPU time, µs",
    )
    return Answer((table,), (plot,))


def move(path: Iommu, addr: int, octets: bytes) -> None:
    transfer = Transfer(FROM_DEVICE, ((addr, len(octets)),))
    path.open(transfer).copy_from(octets)
    transfer.complete(len(octets))


def fault(path: Iommu, octets: bytes) -> None:
    """What the initiating device is told; nothing has moved."""
    try:
        move(path, DVMA + PAGE_LEN, octets)
    except DmaFault:
        return
    raise AssertionError("there is no memory")
