"""A SPARCstation 5, as far as its network goes: CPU, RAM, IOMMU, LEDMA, Lance, console, counter.

    board = Board(Parameters(url="http://10.0.2.2:8000/file"), console=print)
    network.attach(board.lance)
    result = board.run(network.poll)

The CPU runs firmware/guest.bin, a program in C that drives the Lance as any operating system would,
and fetches a URL. Memory is one: what DMA stores is what the CPU loads.

    CPU ── RAM ── IOMMU ── LEDMA ── Lance ── network
     └ MMIO ────────┴────────┴───────┘

Time passes in turns. While the program computes, nothing else runs. When it has nothing to do it
waits, and says how long at most; then `on_idle(timeout)` runs the network, which fills and empties
the rings. The Lance's interrupt goes through LEDMA to interrupt level 6, and the program's handler
runs before its wait returns. A TX frame is on its way when the program next waits.

`wrap(stage, path)` may put something around each stage's output (a capture tap): "lance" is what
the chip drives, "ledma" what LEDMA drives, "memory" what the IOMMU drives.

Does not do: anything of the machine beyond the addresses below (an access elsewhere is a
GuestCrash), supervisor mode, register windows' traps, interrupts while the program computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from types import TracebackType
from typing import Final

from dma.iommu import Iommu
from dma.iovec import PhysAddr
from dma.ledma import Ledma, Mode
from dma.memory import GuestMemory
from dma.transfer import DmaPath
from nic.lance import Lance
from slirp.errors import ConfigError
from slirp.guest.cpu import SparcCpu
from slirp.guest.prom import PARAMETERS_ADDR, RESULT, RESULT_ADDR, Parameters, Result
from slirp.guest.slavio import Counter, SerialLine

# Physical addresses of a SPARCstation 5.
ENTRY: Final = 0x4000
IOMMU_ADDR: Final = 0x1000_0000
SERIAL_ADDR: Final = 0x7110_0000
COUNTER_ADDR: Final = 0x71D0_0000
DMA2_ADDR: Final = 0x7840_0000
LANCE_ADDR: Final = 0x78C0_0000

PAGE_LEN: Final = 4096
IOMMU_LEN: Final = 4 * PAGE_LEN
IOMMU_VERSION: Final = 0x0500_0000  # the SS-5 family's
LEDMA_OFFSET: Final = 0x10  # behind ESPDMA in the DMA2 block
LEDMA_LEN: Final = 0x10

RAM_LEN: Final = 8 << 20  # bytes
RAM_MIN: Final = 3 << 20  # the program, its stack, and some buffers
RAM_MAX: Final = 256 << 20

TRAP_ENTRY_LEN: Final = 16  # bytes of the trap table per trap type
TRAP_INTERRUPT: Final = 0x10  # trap type of interrupt level 0
ETHERNET_LEVEL: Final = 6
ETHERNET_HANDLER: Final = ENTRY + TRAP_ENTRY_LEN * (TRAP_INTERRUPT + ETHERNET_LEVEL)

OnIdle = Callable[[float], object]  # run the network, for at most so many seconds
Wrap = Callable[[str, DmaPath], DmaPath]


def _bare(_stage: str, path: DmaPath) -> DmaPath:
    return path


class Board:
    """One machine with its program in RAM, ready to run once."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        console: Callable[[str], None] | None = None,
        ram_len: int = RAM_LEN,
        lane_mode: Mode = "in-place",
        wrap: Wrap = _bare,
        clock: Callable[[], float] = time.monotonic,
        firmware: bytes | None = None,
    ) -> None:
        block = parameters.pack(ram_len)
        if not RAM_MIN <= ram_len <= RAM_MAX or ram_len % PAGE_LEN:
            raise ConfigError(f"ram_len {ram_len}: choose {RAM_MIN} to {RAM_MAX}, in 4 KiB pages")
        self.memory = GuestMemory(ram_len)
        self.memory.write(PhysAddr(PARAMETERS_ADDR), block)
        self.memory.write(PhysAddr(ENTRY), load_firmware() if firmware is None else firmware)
        self.iommu = Iommu(wrap("memory", self.memory), IOMMU_VERSION)
        self.ledma = Ledma(wrap("ledma", self.iommu), lane_mode, interrupt=self._ethernet_interrupt)
        self.lance = Lance(wrap("lance", self.ledma), self.ledma.device_interrupt)
        self.ledma.reset = self.lance.reset
        self._interrupt_pending = False
        self._on_idle: OnIdle = _nothing
        self._serial = SerialLine(console)
        self._cpu = SparcCpu(self.memory)
        self._map_devices(Counter(clock))

    def run(self, on_idle: OnIdle) -> Result:
        """Run the program to its end. Raises GuestCrash, and whatever `on_idle` raises."""
        self._on_idle = on_idle
        try:
            self._cpu.run(ENTRY, self._wait)
        finally:
            self._on_idle = _nothing
            self._serial.close()
        return self.result()

    def stop(self) -> None:
        """End `run` when the guest next waits; its result is then "running"."""
        self._cpu.stop()

    def result(self) -> Result:
        """As of now, also while the guest runs."""
        return Result.unpack(self.memory.read(PhysAddr(RESULT_ADDR), RESULT.size))

    def close(self) -> None:
        self._cpu.close()
        self.memory.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _map_devices(self, counter: Counter) -> None:
        cpu = self._cpu
        cpu.map_device(IOMMU_ADDR, IOMMU_LEN, _Words(self.iommu.read, self.iommu.write))
        cpu.map_device(SERIAL_ADDR, PAGE_LEN, self._serial)
        cpu.map_device(COUNTER_ADDR, PAGE_LEN, counter)
        cpu.map_device(DMA2_ADDR, PAGE_LEN, _Dma2(self.ledma))
        cpu.map_device(LANCE_ADDR, PAGE_LEN, _Words(self.lance.read, self.lance.write))

    def _wait(self, timeout: float) -> int:
        self._on_idle(0.0 if self._interrupt_pending else timeout)
        return ETHERNET_HANDLER if self._interrupt_pending else 0

    def _ethernet_interrupt(self, level: bool) -> None:
        self._interrupt_pending = level


class _Words:
    """Registers that have one width, whatever width the CPU uses."""

    def __init__(self, read: Callable[[int], int], write: Callable[[int, int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(offset, value)


class _Dma2:
    """The DMA2 block. ESPDMA in its first 16 bytes is not there: it reads 0."""

    def __init__(self, ledma: Ledma) -> None:
        self._ledma = ledma

    def read(self, offset: int, size: int) -> int:
        offset -= LEDMA_OFFSET
        return self._ledma.read(offset, size) if 0 <= offset < LEDMA_LEN else 0

    def write(self, offset: int, size: int, value: int) -> None:
        offset -= LEDMA_OFFSET
        if 0 <= offset < LEDMA_LEN:
            self._ledma.write(offset, value, size)


def load_firmware() -> bytes:
    """The program that comes with the package."""
    return resources.files("slirp.guest").joinpath("firmware", "guest.bin").read_bytes()


def _nothing(_timeout: float) -> None:
    """No network: nothing ever happens."""
