"""The part of a SPARCstation 5 that moves frames: RAM, IOMMU, LEDMA and Lance, wired and mapped.

No CPU: whoever drives the chip does so by calling `lance.read` and `lance.write`. Tests,
benchmarks and the Python driver (driver.py) use it, and the board around Unicorn has the same
parts.

Addresses, as in a small Sun:

    LANCE 0x000000 …  →  DVMA 0xfc000000 …  →  physical DMA_PHYS …       (WINDOW bytes)
    IOPTEs, 64 KiB for a window of 64 MiB, at physical IOPTE_PHYS

`slices(addr, length)` is what the CPU's MMU would show a driver: host views of what the chip finds
at LANCE address `addr`. With `scatter=True` neighbouring pages of DVMA are not neighbours in RAM,
so that everything longer than a page is in pieces.

`wrap(stage, path)` may put something around each stage's output (a capture tap): "lance" is what
the chip drives, "ledma" what LEDMA drives, "memory" what the IOMMU drives.

Does not do: the interrupt controller, timers, ESP, serial ports, or a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from dma import iommu, ledma
from dma.closing import Closing
from dma.iommu import Iommu
from dma.iovec import IoVec, PhysAddr
from dma.ledma import Ledma, Mode
from dma.memory import GuestMemory
from dma.transfer import DmaPath
from nic.lance import FRAME_MAX, Lance

PAGE_LEN: Final = 4096  # bytes
RAM_LEN: Final = 8 << 20  # bytes
IOPTE_PHYS: Final = 0x100000
DMA_PHYS: Final = 0x200000
WINDOW: Final = 4 << 20  # bytes that the LANCE can reach
DVMA_BASE: Final = 0xFC000000

CTRL_64_MIB: Final = 0x9  # RNGE 2, ENAB
IOPTE_FLAGS: Final = iommu.IOPTE_WRITE | iommu.IOPTE_VALID

_SCATTER: Final = 5  # odd, so that multiplying by it is a permutation of 2^n pages

Wrap: TypeAlias = Callable[[str, DmaPath], DmaPath]


def _bare(stage: str, path: DmaPath) -> DmaPath:
    return path


class Board(Closing):
    """Made by `sun4m_board`. `interrupt` is the level of LEDMA's line to the CPU.

    `on_interrupt()` is called where it rises, inside whatever raised it.
    """

    def __init__(self, mode: Mode, wrap: Wrap, scatter: bool, max_frame: int) -> None:
        self.interrupt = False
        self.on_interrupt: Callable[[], None] = lambda: None
        self.memory = GuestMemory(RAM_LEN)
        self.iommu = Iommu(wrap("memory", self.memory))
        self.ledma = Ledma(wrap("ledma", self.iommu), mode, self._set_interrupt)
        self.lance = Lance(
            wrap("lance", self.ledma), self.ledma.device_interrupt, max_frame=max_frame
        )
        self.ledma.reset = self.lance.reset
        self._multiplier = _SCATTER if scatter else 1

    def phys(self, addr: int) -> PhysAddr:
        """Where the byte at a LANCE address is in RAM."""
        page, offset = divmod(addr, PAGE_LEN)
        page = page * self._multiplier % (WINDOW // PAGE_LEN)
        return PhysAddr(DMA_PHYS + page * PAGE_LEN + offset)

    def slices(self, addr: int, length: int) -> IoVec:
        """Host views of what the chip finds at a LANCE address."""
        if self._multiplier == 1:
            return self.memory.slices(self.phys(addr), length)
        views = IoVec()
        while length > 0:
            size = min(length, PAGE_LEN - addr % PAGE_LEN)
            views += self.memory.slices(self.phys(addr), size)
            addr += size
            length -= size
        return views

    def power_on(self) -> None:
        """What firmware does: fill the IOPTEs, switch translation on, pulse RESET."""
        for page in range(WINDOW // PAGE_LEN):
            entry = self.phys(page * PAGE_LEN) >> 12 << 8 | IOPTE_FLAGS
            self.memory.write(PhysAddr(IOPTE_PHYS + 4 * page), entry.to_bytes(4, "big"))
        self.iommu.write(iommu.BASE, IOPTE_PHYS >> 4)
        self.iommu.write(iommu.CTRL, CTRL_64_MIB)
        self.iommu.write(iommu.TLBFLUSH, 0)
        self.ledma.write(ledma.E_CSR, ledma.RESET)
        self.ledma.write(ledma.E_CSR, ledma.INT_EN)
        self.ledma.write(ledma.E_BASE_ADDR, DVMA_BASE)

    def close(self) -> None:
        self.lance.close()
        self.memory.close()

    def _set_interrupt(self, level: bool) -> None:
        self.interrupt = level
        if level:
            self.on_interrupt()


def sun4m_board(
    *,
    mode: Mode = "in-place",
    wrap: Wrap = _bare,
    scatter: bool = False,
    max_frame: int = FRAME_MAX,
) -> Board:
    """RAM, IOMMU, LEDMA and Lance, wired, mapped and reset."""
    board = Board(mode, wrap, scatter, max_frame)
    board.power_on()
    return board
