"""The first two scenarios of the 2007 e-mail: a SCSI disk reads 8 KiB into memory, and writes them.

    scsi-disk → ESP → ESPDMA → IOMMU → memory

The e-mail follows the (address, size) vectors from stage to stage by hand. Here the real stages do
it, driven through their registers, and what each leaves is printed (`pytest -s`) and compared:

- scsi-disk: (&dma_buf[0], 8192) in the e-mail. There is no dma_buf here; the disk's own address of
  the bytes is where they are in the image, so that is what it starts with.
- ESP: (0, 8192), the bytes' position in the request.
- ESPDMA: (0xfc000000, 8192). The e-mail's stage forces the top byte; ours has a register for all of
  the address, whose top byte is a latch.
- IOMMU: (0x1000, 4096) and (0x4000, 4096).
- memory: phys_ram_base+0x1000 and phys_ram_base+0x4000, as host views.

The e-mail's questions: the initial destination is not (NULL, 0), as there is one list and a
direction; nobody does the memcpy, since preadv and pwritev are given the two views; and source
vectors are not needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dma.espdma import D_ADDR, D_CSR, ERR_PEND, WRITE
from dma.iommu import TLBFLUSH
from dma.iovec import IoVec, PhysAddr, Range
from dma.scsi import esp as chip
from dma.scsi import registers as reg
from dma.scsi.disk import Disk
from dma.scsi.endpoint import Done, ImageFile
from dma.scsi.target import Target
from dma.transfer import DmaPath, Transfer
from tests.kit.scsi import DVMA, PAGE_LEN, PAGES, ScsiMachine, cdb_10

SIZE = 8192  # bytes: 16 blocks
BLOCK = 24  # where in the image
OFFSET = BLOCK * 512
PHYSICAL = [(0x1000, 4096), (0x4000, 4096)]
READ, WRITE_10 = 0x28, 0x2A


class Watch:
    """A DMA path around another: notes what each stage hands on, with its size."""

    def __init__(self, inner: DmaPath, stage: str, scenario: Scenario) -> None:
        self.inner = inner
        self.stage = stage
        self.scenario = scenario

    def open(self, transfer: Transfer) -> IoVec:
        if transfer.headers is not None:
            self.scenario.show(self.stage, transfer.ranges)
        return self.inner.open(transfer)


class WatchedImage(ImageFile):
    """Notes the views that preadv and pwritev are given."""

    def __init__(self, path: Path, scenario: Scenario) -> None:
        super().__init__(path)
        self.scenario = scenario

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self.scenario.show("preadv", self.scenario.host_ranges(iov))
        super().read(offset, iov, done)

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self.scenario.show("pwritev", self.scenario.host_ranges(iov))
        super().write(offset, iov, done)


class Scenario:
    """The machine of the e-mail with a real image."""

    def __init__(self, path: Path) -> None:
        self.trail: list[tuple[str, list[Range]]] = []
        self.lines: list[str] = []
        self.path = path
        self.image = WatchedImage(path, self)
        self.disk = Disk(self.image)
        self.machine = ScsiMachine({0: Target(self.disk)}, self.wrap)
        self.machine.ready()
        self.trail.clear()

    def wrap(self, stage: str, path: DmaPath) -> DmaPath:
        return Watch(path, stage, self)

    def show(self, stage: str, ranges: Sequence[Range]) -> None:
        self.trail.append((stage, list(ranges)))
        pieces = " ".join(f"({addr:#x},{length})" for addr, length in ranges)
        self.lines.append(f"{stage:<8} {pieces}")
        sys.stdout.write(self.lines[-1] + "\n")

    def host_ranges(self, iov: IoVec) -> list[Range]:
        """Where the views lie in the host, as the guest's physical addresses."""
        found: list[Range] = []
        for view in iov:
            pointer = _pointer(view)
            for start, end, ram in self.machine.memory.regions:
                offset = pointer - _pointer(ram)
                if 0 <= offset < end - start:
                    found.append((start + offset, len(view)))
        return found

    def start(self, opcode: int) -> None:
        """Command and data phase as a driver has them, up to where the bytes move."""
        phase = self.machine.select(cdb_10(opcode, BLOCK, SIZE // 512))[2]
        direction = WRITE if phase else 0
        self.machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, SIZE, direction)

    def end(self) -> tuple[int, int]:
        """Interrupt of the data phase, and status."""
        seen = self.machine.interrupt()[0]
        self.machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
        self.machine.interrupt()
        status = self.machine.esp.read(reg.FIFO)
        self.machine.esp.read(reg.FIFO)
        self.machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
        self.machine.interrupt()
        return seen, status

    def pages(self) -> bytes:
        memory = self.machine.memory
        return b"".join(memory.read(PhysAddr(addr), size) for addr, size in PHYSICAL)

    def close(self) -> None:
        self.machine.close()
        self.image.close()


def _pointer(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def content(seed: int, size: int) -> bytes:
    out = b""
    while len(out) < size:
        out += hashlib.sha256(b"%d %d" % (seed, len(out))).digest()
    return out[:size]


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[Scenario]:
    path = tmp_path / "disk"
    path.write_bytes(content(1, 64 * 512))
    s = Scenario(path)
    yield s
    s.close()


CHAIN = [
    ("scsi", [(OFFSET, SIZE)]),
    ("esp", [(0, SIZE)]),
    ("espdma", [(0xFC000000, SIZE)]),
    ("iommu", PHYSICAL),
]


def test_the_disk_reads_into_memory(scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    scenario.start(READ)
    assert scenario.trail == [*CHAIN, ("preadv", PHYSICAL)]
    esp, channel = scenario.machine.esp, scenario.machine.espdma
    assert not esp.read(reg.STATUS) & (reg.INT | reg.TC), "nothing before the loop runs"
    assert channel.read(D_ADDR) == DVMA
    assert scenario.end() == (reg.BUS_SERVICE, 0)
    assert channel.read(D_ADDR) == DVMA + SIZE
    assert scenario.pages() == content(1, 64 * 512)[OFFSET : OFFSET + SIZE]
    assert (scenario.disk.bytes_read, copied(scenario)) == (SIZE, 0)
    assert scenario.lines[-5:] == [
        "scsi     (0x3000,8192)",
        "esp      (0x0,8192)",
        "espdma   (0xfc000000,8192)",
        "iommu    (0x1000,4096) (0x4000,4096)",
        "preadv   (0x1000,4096) (0x4000,4096)",
    ]


def test_the_disk_writes_from_memory(scenario: Scenario) -> None:
    data = content(2, SIZE)
    for addr, size in PHYSICAL:
        scenario.machine.memory.write(PhysAddr(addr), data[:size])
        data = data[size:] + data[:size]
    scenario.start(WRITE_10)
    assert scenario.trail == [*CHAIN, ("pwritev", PHYSICAL)]
    assert scenario.end() == (reg.BUS_SERVICE, 0)
    image = scenario.path.read_bytes()
    before = content(1, 64 * 512)
    assert image == before[:OFFSET] + data + before[OFFSET + SIZE :]
    assert (scenario.disk.bytes_written, copied(scenario)) == (SIZE, 0)
    assert scenario.lines[-1] == "pwritev  (0x1000,4096) (0x4000,4096)"


def copied(scenario: Scenario) -> int:
    return scenario.machine.esp.copied_bytes + scenario.disk.copied_bytes


@pytest.mark.parametrize("opcode", [READ, WRITE_10])
def test_a_page_that_is_missing_stops_at_the_iommu(scenario: Scenario, opcode: int) -> None:
    """The e-mail has no path for errors: here it is ERR_PEND, and nothing has moved."""
    scenario.machine.map(1, 0, flags=0)
    before = scenario.path.read_bytes(), scenario.pages()
    scenario.start(opcode)
    assert scenario.trail == CHAIN[:3]
    assert scenario.machine.espdma.read(D_CSR) & ERR_PEND
    assert (scenario.path.read_bytes(), scenario.pages()) == before


def test_pages_that_follow_each_other_become_one(scenario: Scenario) -> None:
    scenario.machine.map(1, 0x2000)
    scenario.start(READ)
    assert scenario.trail[3:] == [("iommu", [(0x1000, SIZE)]), ("preadv", [(0x1000, SIZE)])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.permutations(PAGES),
    start=st.integers(0, PAGE_LEN * 4),
    blocks=st.integers(1, 32),
    lba=st.integers(0, 32),
    pieces=st.sampled_from([0, 512, 1000, 4096, 5000]),
)
def test_the_scatter_is_invisible(
    order: list[int], start: int, blocks: int, lba: int, pieces: int
) -> None:
    """Wherever the pages are, and however the driver cuts the phase: the bytes are the same."""
    data = content(3, 64 * 512)
    machine = ScsiMachine()
    machine.ready()
    for index, page in enumerate(order):
        machine.map(index, page)
    machine.iommu.write(TLBFLUSH, 0)
    machine.image.data[:] = data
    size, addr = blocks * 512, DVMA + start
    outcome = machine.run(cdb_10(READ, lba, blocks), into=size, addr=addr, pieces=pieces)
    assert (outcome.status, outcome.data) == (0, data[lba * 512 :][:size])
    fresh = content(4, size)
    outcome = machine.run(cdb_10(WRITE_10, lba, blocks), out=fresh, addr=addr, pieces=pieces)
    assert outcome.status == 0
    assert machine.image.data == data[: lba * 512] + fresh + data[lba * 512 + size :]
    assert machine.esp.copied_bytes == machine.disk.copied_bytes == 0
    machine.close()
