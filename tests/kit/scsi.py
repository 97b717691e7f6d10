"""A machine with a SCSI bus, and a driver that talks to the ESP as Linux' and NetBSD's do.

Guest memory is pages that go down in RAM as DVMA goes up, so that none follow each other; the two
of the e-mail (0xfc000000 → 0x1000, 0xfc001000 → 0x4000) are the first. COMMAND_BLOCK is a page of
the driver's own.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dma import espdma
from dma.espdma import D_ADDR, D_CSR, EN_DMA, INT_EN, INVALIDATE, WRITE, Espdma
from dma.iommu import BASE, CTRL, Iommu
from dma.iovec import IoVec, PhysAddr, scatter_copy
from dma.memory import GuestMemory
from dma.scsi import esp as chip
from dma.scsi import registers as reg
from dma.scsi.bus import ScsiBus
from dma.scsi.disk import Disk
from dma.scsi.endpoint import Done, Endpoint
from dma.scsi.esp import Esp
from dma.scsi.registers import DMA
from dma.scsi.target import Target
from dma.transfer import DmaPath

DVMA: Final = 0xFC000000
PAGE_LEN: Final = 4096
PAGES: Final = (0x1000, 0x4000, 0xF000, 0xE000, 0xC000, 0xA000, 0x8000, 0x6000)
COMMAND_BLOCK: Final = DVMA + 0x10000
COMMAND_PAGE: Final = 0x12000
TABLE: Final = 0x00100000
BLOCK_LEN: Final = 512

Wrap = Callable[[str, DmaPath], DmaPath]


class MemoryImage:
    """An endpoint over a bytearray that completes at once, and can be made to fail."""

    def __init__(self, data: bytes = b"", *, read_only: bool = False) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.read_only = read_only
        self.bad_from = len(data)  # bytes from here on give EIO
        self.syncs = 0
        self.sync_error = 0
        self.withdrawn = 0

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        source = memoryview(self.data)[offset : max(offset, self.bad_from)]
        done(*self._result(scatter_copy(iov.segments, (source,)), offset, len(iov)))

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        room = memoryview(self.data)[offset : max(offset, self.bad_from)]
        done(*self._result(scatter_copy((room,), iov.segments), offset, len(iov)))

    def _result(self, size: int, offset: int, wanted: int) -> tuple[int, int]:
        is_bad = size < wanted and offset + size >= self.bad_from < len(self.data)
        return size, errno.EIO if is_bad else 0

    def sync(self, done: Done) -> None:
        self.syncs += 1
        done(0, self.sync_error)

    def withdraw(self) -> None:
        self.withdrawn += 1

    def fileno(self) -> int | None:
        return None

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Outcome:
    """What the driver saw of one command."""

    status: int = -1
    data: bytes = b""
    interrupts: list[tuple[int, int, int]] = field(default_factory=list)  # INTERRUPT, step, phase
    residue: int = 0  # of the data phase


def _as_it_is(_stage: str, path: DmaPath) -> DmaPath:
    return path


class ScsiMachine:
    """ESP, ESPDMA, IOMMU, memory and targets; `wrap` may put something around each stage."""

    def __init__(
        self,
        targets: Mapping[int, Target] | None = None,
        wrap: Wrap = _as_it_is,
        endpoints: Sequence[Endpoint] = (),
    ) -> None:
        self.endpoints = endpoints  # those that complete later
        self.image = MemoryImage(bytes(64 * BLOCK_LEN))
        self.disk = Disk(self.image)
        self.memory = GuestMemory([(0, 0x14000), (TABLE, 0x1000)])
        self.iommu = Iommu(wrap("iommu", self.memory))
        self.levels: list[bool] = []
        self.espdma = Espdma(wrap("espdma", self.iommu), interrupt=self.levels.append)
        self.bus = ScsiBus({0: Target(self.disk)} if targets is None else targets)
        self.esp = Esp(
            wrap("esp", self.espdma),
            self.espdma.room,
            self.bus,
            self.espdma.device_interrupt,
        )
        self.espdma.reset = self.esp.reset
        self.espdma.request = self.esp.channel_ready
        self.bus.north = wrap("scsi", self.bus.north)
        self.iommu.write(BASE, TABLE >> 4)
        self.iommu.write(CTRL, 0x00000009)
        self.frames: dict[int, int] = {}  # physical page by index of DVMA page
        for index, page in enumerate(PAGES):
            self.map(index, page)
        self.map((COMMAND_BLOCK - DVMA) // PAGE_LEN, COMMAND_PAGE)

    def map(self, index: int, page: int, flags: int = 0x06) -> None:
        self.frames[index] = page
        iopte = (page >> 12) << 8 | flags
        self.memory.write(PhysAddr(TABLE + 4 * index), iopte.to_bytes(4, "big"))

    def close(self) -> None:
        self.memory.close()

    # Guest memory, as the driver has it

    def store(self, addr: int, data: bytes) -> None:
        for index, octet in enumerate(data):
            self.memory.write(self._phys(addr + index), bytes((octet,)))

    def load(self, addr: int, length: int) -> bytes:
        return b"".join(self.memory.read(self._phys(addr + i), 1) for i in range(length))

    def _phys(self, addr: int) -> PhysAddr:
        index, inside = divmod(addr - DVMA, PAGE_LEN)
        return PhysAddr(self.frames[index] + inside)

    # The driver

    def poll(self) -> None:
        """Until nothing is under way that ends by itself."""
        for _ in range(1000):
            if self.esp.poll(0.0) is None and not (self.esp.queue.pending and self.wait()):
                return
        raise AssertionError("the chip does not come to rest")

    def wait(self) -> bool:
        """Wait until an endpoint has something to say, and hear it. False: there is none."""
        bells = [bell for bell in (e.fileno() for e in self.endpoints) if bell is not None]
        if bells and not select.select(bells, [], [], 10.0)[0]:
            raise AssertionError("no endpoint completes")
        for endpoint in self.endpoints:
            endpoint.poll()
        return bool(bells)

    def interrupt(self) -> tuple[int, int, int]:
        """What the handler reads, in its order: INTERRUPT, step, phase."""
        self.poll()
        assert self.esp.read(reg.STATUS) & reg.INT, "an interrupt was expected"
        phase = self.esp.read(reg.STATUS) & reg.PHASE
        step = self.esp.read(reg.STEP)
        return self.esp.read(reg.INTERRUPT), step, phase

    def start(self) -> None:
        """Channel, chip and bus reset (this one without interrupt), as drivers start."""
        self.espdma.write(D_CSR, espdma.RESET)
        self.espdma.write(D_CSR, 0)
        self.espdma.write(D_CSR, INT_EN)
        self.esp.write(reg.COMMAND, chip.CHIP_RESET)
        self.esp.write(reg.COMMAND, DMA | chip.NOP)
        self.esp.write(reg.CONFIG1, 0x07 | reg.CONFIG1_NO_RESET_INTERRUPT)
        self.esp.write(reg.COMMAND, chip.BUS_RESET)
        self.esp.write(reg.CONFIG1, 0x07)
        self.esp.read(reg.INTERRUPT)

    def set_count(self, count: int) -> None:
        self.esp.write(reg.TCLOW, count & 0xFF)
        self.esp.write(reg.TCMID, count >> 8 & 0xFF)

    def dma_on(self, addr: int, direction: int) -> None:
        """As Linux: enable, then address."""
        self.espdma.write(D_CSR, INT_EN | EN_DMA | direction)
        self.espdma.write(D_ADDR, addr)

    def dma_off(self) -> None:
        self.espdma.write(D_CSR, INT_EN | INVALIDATE)
        self.espdma.write(D_CSR, INT_EN)

    def dma_command(self, command: int, addr: int, count: int, direction: int) -> None:
        self.dma_on(addr, direction)
        self.set_count(count)
        self.esp.write(reg.COMMAND, DMA | command)

    def select(self, cdb: bytes, target: int = 0, lun: int = 0) -> tuple[int, int, int]:
        """IDENTIFY and CDB by DMA."""
        block = bytes((0x80 | lun,)) + cdb
        self.store(COMMAND_BLOCK, block)
        self.esp.write(reg.BUS_ID, target)
        self.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, len(block), 0)
        seen = self.interrupt()
        self.dma_off()
        return seen

    def finish(self, outcome: Outcome) -> Outcome:
        """Status, message, bus free."""
        self.esp.write(reg.COMMAND, chip.FLUSH_FIFO)
        self.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
        outcome.interrupts.append(self.interrupt())
        outcome.status = self.esp.read(reg.FIFO)
        assert self.esp.read(reg.FIFO) == 0x00, "COMMAND COMPLETE"
        self.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
        outcome.interrupts.append(self.interrupt())
        self.esp.write(reg.COMMAND, chip.ENABLE_SELECTION)
        return outcome

    def run(
        self,
        cdb: bytes,
        *,
        into: int = 0,
        out: bytes = b"",
        addr: int = DVMA,
        target: int = 0,
        lun: int = 0,
        pieces: int = 0,
    ) -> Outcome:
        """A command with `into` bytes to come or `out` to go, in TIs of `pieces` bytes."""
        outcome = Outcome()
        seen = self.select(cdb, target, lun)
        outcome.interrupts.append(seen)
        if seen[0] == reg.DISCONNECTED:
            return outcome
        if out:
            self.store(addr, out)
        left = into or len(out)
        position = addr
        phase = seen[2]
        while phase in (0, 1) and left:
            count = min(left, pieces or left)
            direction = WRITE if phase else 0
            self.dma_command(chip.TRANSFER_INFORMATION, position, count, direction)
            seen = self.interrupt()
            outcome.interrupts.append(seen)
            self.dma_off()
            residue = self.esp.read(reg.TCLOW) | self.esp.read(reg.TCMID) << 8
            position += count - residue
            left -= count - residue
            phase = seen[2]
        outcome.residue = left
        outcome.data = self.load(addr, position - addr) if into else b""
        return self.finish(outcome) if phase == 3 else outcome

    def sense(self, target: int = 0, lun: int = 0) -> tuple[int, int, int]:
        """Key, ASC, ASCQ by REQUEST SENSE."""
        cdb = bytes((3, 0, 0, 0, 18, 0))
        outcome = self.run(cdb, into=18, addr=COMMAND_BLOCK + 0x100, target=target, lun=lun)
        assert outcome.status == 0
        return outcome.data[2], outcome.data[12], outcome.data[13]

    def ready(self) -> None:
        """Start, and take the unit attention of target 0."""
        self.start()
        assert self.run(bytes(6)).status == 2
        assert self.sense() == (6, 0x29, 0)


def cdb_10(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    return (
        bytes((opcode, flags)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    )


def cdb_6(opcode: int, lba: int, count: int) -> bytes:
    return bytes((opcode,)) + lba.to_bytes(3, "big") + bytes((count, 0))
