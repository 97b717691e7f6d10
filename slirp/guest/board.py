"""A SPARCstation 5, as far as network and disk go: CPU, RAM, IOMMU, DMA2, Lance, ESP, console.

    board = Board(Parameters(url="http://10.0.2.2:8000/file"), console=print)
    network.attach(board.lance)
    result = board.run(network.poll)

The CPU runs firmware/guest.bin, a program in C that drives the Lance as any operating system would,
and fetches a URL; with a disk on its SCSI bus (`targets`), onto that. Memory is one: what DMA
stores is what the CPU loads.

    CPU ── RAM ── IOMMU ─┬─ LEDMA ─── Lance ── network
     └ MMIO              └─ ESPDMA ── ESP ──── disks

Time passes in turns. While the program computes, nothing else runs. When it has nothing to do it
waits, and says how long at most; then `on_idle(timeout)` runs the network, which fills and empties
the rings, and the ESP's completions run. The Lance's interrupt goes through LEDMA to interrupt
level 6, the ESP's through ESPDMA to level 4, and the program's handler for the higher one runs
before its wait returns. A TX frame is on its way when the program next waits.

`wrap(stage, path)` may put something around each stage's output (a capture tap): "lance" is what
the chip drives, "ledma" what LEDMA drives, "memory" what the IOMMU drives; "scsi" what a disk asks
for, "esp" what the chip makes of it, "espdma" what ESPDMA drives.

Does not do: anything of the machine beyond the addresses below (an access elsewhere is a
GuestCrash), supervisor mode, register windows' traps, interrupts while the program computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final

from dma.closing import Closing
from dma.espdma import Espdma
from dma.iommu import Iommu
from dma.iovec import PhysAddr
from dma.ledma import Ledma, Mode
from dma.memory import GuestMemory
from dma.scsi.bus import ScsiBus
from dma.scsi.esp import Esp
from dma.scsi.target import Target
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
ESP_ADDR: Final = 0x7880_0000
LANCE_ADDR: Final = 0x78C0_0000

PAGE_LEN: Final = 4096
IOMMU_LEN: Final = 4 * PAGE_LEN
IOMMU_VERSION: Final = 0x0500_0000  # the SS-5 family's
CHANNEL_LEN: Final = 0x10  # of ESPDMA and LEDMA each, in the DMA2 block

RAM_LEN: Final = 8 << 20  # bytes
RAM_MIN: Final = 3 << 20  # the program, its stack, and some buffers
RAM_MAX: Final = 256 << 20

TRAP_ENTRY_LEN: Final = 16  # bytes of the trap table per trap type
TRAP_INTERRUPT: Final = 0x10  # trap type of interrupt level 0
ETHERNET_LEVEL: Final = 6
SCSI_LEVEL: Final = 4
ETHERNET_HANDLER: Final = ENTRY + TRAP_ENTRY_LEN * (TRAP_INTERRUPT + ETHERNET_LEVEL)
SCSI_HANDLER: Final = ENTRY + TRAP_ENTRY_LEN * (TRAP_INTERRUPT + SCSI_LEVEL)

OnIdle = Callable[[float], object]  # run the network, for at most so many seconds
Wrap = Callable[[str, DmaPath], DmaPath]


def _bare(_stage: str, path: DmaPath) -> DmaPath:
    return path


class Board(Closing):
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
        targets: Mapping[int, Target] | None = None,
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
        self.espdma = Espdma(wrap("espdma", self.iommu), interrupt=self._scsi_interrupt)
        self.bus = ScsiBus(targets or {})
        self.esp = Esp(
            wrap("esp", self.espdma), self.espdma.room, self.bus, self.espdma.device_interrupt
        )
        self.espdma.reset, self.espdma.request = self.esp.reset, self.esp.channel_ready
        self.bus.north = wrap("scsi", self.bus.north)
        self._ethernet_pending = self._scsi_pending = False
        self._clock = clock
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

    def _map_devices(self, counter: Counter) -> None:
        cpu = self._cpu
        cpu.map_device(IOMMU_ADDR, IOMMU_LEN, _Words(self.iommu.read, self.iommu.write))
        cpu.map_device(SERIAL_ADDR, PAGE_LEN, self._serial)
        cpu.map_device(COUNTER_ADDR, PAGE_LEN, counter)
        cpu.map_device(DMA2_ADDR, PAGE_LEN, _Dma2(self.espdma, self.ledma))
        cpu.map_device(ESP_ADDR, PAGE_LEN, _Octets(self.esp.read, self.esp.write))
        cpu.map_device(LANCE_ADDR, PAGE_LEN, _Words(self.lance.read, self.lance.write))

    def _wait(self, timeout: float) -> int:
        self._poll_scsi()
        self._on_idle(0.0 if self._ethernet_pending or self._scsi_pending else timeout)
        self._poll_scsi()
        if self._ethernet_pending:
            return ETHERNET_HANDLER
        return SCSI_HANDLER if self._scsi_pending else 0

    def _poll_scsi(self) -> None:
        while self.esp.poll(self._clock()) is not None:
            pass

    def _ethernet_interrupt(self, level: bool) -> None:
        self._ethernet_pending = level

    def _scsi_interrupt(self, level: bool) -> None:
        self._scsi_pending = level


class _Words:
    """Registers that have one width, whatever width the CPU uses."""

    def __init__(self, read: Callable[[int], int], write: Callable[[int, int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(offset, value)


class _Octets:
    """The ESP's registers: bytes, four apart. The chip repeats every 64."""

    def __init__(self, read: Callable[[int], int], write: Callable[[int, int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read(offset >> 2)

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(offset >> 2, value)


class _Dma2:
    """The DMA2 block: ESPDMA in its first 16 bytes, LEDMA in the next 16, 0 behind."""

    def __init__(self, espdma: Espdma, ledma: Ledma) -> None:
        self._channels: tuple[Espdma | Ledma, ...] = (espdma, ledma)

    def read(self, offset: int, size: int) -> int:
        channel = offset // CHANNEL_LEN
        return self._channels[channel].read(offset, size) if channel < 2 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        channel = offset // CHANNEL_LEN
        if channel < 2:
            self._channels[channel].write(offset, value, size)


def load_firmware() -> bytes:
    """The program that comes with the package."""
    return resources.files("slirp.guest").joinpath("firmware", "guest.bin").read_bytes()


def _nothing(_timeout: float) -> None:
    """No network: nothing ever happens."""
