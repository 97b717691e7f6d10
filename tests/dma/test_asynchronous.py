"""Both chains at once, with completions in any order: to the guest it is as one after another.

Two disks, each behind an ESP and ESPDMA of its own, and a Lance, on one IOMMU. A script says what
each device is to do and how it ends: in full, short, with an error of the host's, or cancelled (a
claim cancelled; a channel reset with its transfer in flight). One run does it in order, everything
completing at once. The other interleaves starts, host completions, polls and interrupts as
Hypothesis likes. Guest memory, images, frames, descriptors, interrupts and sense must be the same.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dma.espdma import D_ADDR, D_CSR, EN_DMA, INT_EN, RESET, WRITE, Espdma
from dma.iovec import IoVec, scatter_copy
from dma.scsi import esp as chip
from dma.scsi import registers as reg
from dma.scsi.bus import ScsiBus
from dma.scsi.disk import Disk
from dma.scsi.endpoint import Done
from dma.scsi.esp import Esp
from dma.scsi.registers import DMA
from dma.scsi.target import Target
from nic.receiver import RxClaim
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import DVMA_BASE, Board, sun4m_board
from tests.kit.lance import frame_of
from tests.kit.scsi import cdb_10

End = Literal["full", "short", "error", "cancelled"]

DISKS: Final = 2
BLOCKS: Final = 32  # of an image
COUNT: Final = 12  # blocks of a command: more than a page
SIZE: Final = COUNT * 512  # bytes
AREA_LEN: Final = 0x4000  # bytes of guest memory for a command's data
AREAS: Final = 0x200000  # LANCE address of the first; the driver's rings are far below
OPEN_CLAIMS: Final = 4


@dataclass(frozen=True)
class Command:
    """One read or write of a disk."""

    is_read: bool
    block: int
    start: int  # in its area
    end: End


@dataclass(frozen=True)
class Arrival:
    """One frame towards the guest: what was claimed, and what came of it."""

    claimed: int
    end: End


class HeldImage:
    """An endpoint whose requests end when the test says so."""

    read_only = False

    def __init__(self, number: int) -> None:
        self.data = bytearray(bytes((number + 1,)) * BLOCKS * 512)
        self.size = len(self.data)
        self.held: deque[Callable[[End], None]] = deque()

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self.held.append(lambda how: self._end(how, offset, iov, done, is_read=True))

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self.held.append(lambda how: self._end(how, offset, iov, done, is_read=False))

    def _end(self, how: End, offset: int, iov: IoVec, done: Done, *, is_read: bool) -> None:
        """An error comes after a third of the bytes; a short image ends in the middle."""
        size = {"full": len(iov), "short": len(iov) // 2, "error": len(iov) // 3}[how]
        part = (memoryview(self.data)[offset : offset + size],)
        moved = scatter_copy(*((iov.segments, part) if is_read else (part, iov.segments)))
        done(moved, errno.EIO if how == "error" else 0)

    def sync(self, done: Done) -> None:
        done(0, 0)

    def withdraw(self) -> None:
        self.held.clear()

    def fileno(self) -> int | None:
        return None

    def poll(self) -> None:
        """Nothing ends by itself."""

    def close(self) -> None:
        """There is nothing to give back."""


@dataclass
class DiskHost:
    """One chip with one disk, and a driver that does its commands one after another."""

    board: Board
    number: int
    commands: deque[Command]
    told: list[tuple[int, int, int]] = field(default_factory=list)  # INTERRUPT, step, phase
    statuses: list[int] = field(default_factory=list)  # -1: cancelled
    levels: list[bool] = field(default_factory=list)  # of the line to the CPU

    def __post_init__(self) -> None:
        self.image = HeldImage(self.number)
        self.channel = Espdma(self.board.iommu, interrupt=self.levels.append)
        self.disk = Disk(self.image)
        bus = ScsiBus({0: Target(self.disk)})
        self.esp = Esp(self.channel, self.channel.room, bus, self.channel.device_interrupt)
        self.channel.reset, self.channel.request = self.esp.reset, self.esp.channel_ready
        self.area = AREAS + self.number * 2 * AREA_LEN
        self.block_addr = self.area + AREA_LEN
        self.serial = 0
        self.running: Command | None = None
        self.disk.execute(bytes(6), 0)  # takes the unit attention

    @property
    def is_over(self) -> bool:
        return not self.commands and self.running is None

    def start(self) -> None:
        """The next command, if none is under way."""
        if self.running is not None or not self.commands:
            return
        command = self.running = self.commands.popleft()
        self.serial += 1
        block = b"\x80" + cdb_10(0x28 if command.is_read else 0x2A, command.block, COUNT)
        self.board.slices(self.block_addr, len(block)).copy_from(block)
        if not command.is_read:
            data = bytes((self.number, self.serial, *range(254))) * (SIZE // 256)
            self.board.slices(self.area + command.start, SIZE).copy_from(data)
        self.dma(chip.SELECT_ATN, self.block_addr, len(block), 0)

    def dma(self, code: int, addr: int, size: int, direction: int) -> None:
        self.channel.write(D_CSR, INT_EN | EN_DMA | direction)
        self.channel.write(D_ADDR, DVMA_BASE + addr)
        self.esp.write(reg.TCLOW, size & 0xFF)
        self.esp.write(reg.TCMID, size >> 8)
        self.esp.write(reg.COMMAND, DMA | code)

    def poll(self) -> None:
        self.esp.poll(0.0)

    def complete(self) -> None:
        """The host's side of the request that is held, as the script wants it."""
        if self.running is not None and self.image.held:
            if self.running.end == "cancelled":
                self.reset()
            else:
                self.image.held.popleft()(self.running.end)

    def reset(self) -> None:
        """With the transfer in flight: whoever held the views must have let go when it returns."""
        self.channel.write(D_CSR, RESET)
        self.channel.write(D_CSR, INT_EN)
        self.esp.write(reg.COMMAND, chip.NOP)
        assert (len(self.image.held), self.esp.queue.pending) == (0, 0)
        self.statuses.append(-1)
        self.running = None

    def handle_interrupt(self) -> None:
        if not self.esp.read(reg.STATUS) & reg.INT or self.running is None:
            return
        phase = self.esp.read(reg.STATUS) & reg.PHASE
        step = self.esp.read(reg.STEP)
        interrupt = self.esp.read(reg.INTERRUPT)
        self.told.append((interrupt, step, phase))
        if interrupt == reg.DISCONNECTED:
            self.running = None
        elif interrupt == reg.FUNCTION_COMPLETE:
            self.statuses.append(self.esp.read(reg.FIFO))
            self.esp.read(reg.FIFO)
            self.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
        elif phase == 3:
            self.esp.write(reg.COMMAND, chip.FLUSH_FIFO)
            self.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
        else:
            direction = WRITE if self.running.is_read else 0
            addr = self.area + self.running.start
            self.dma(chip.TRANSFER_INFORMATION, addr, SIZE, direction)

    def seen(self) -> tuple[object, ...]:
        memory = bytes(self.board.slices(self.area, AREA_LEN))
        sense = self.disk.execute(bytes((3, 0, 0, 0, 18, 0)), 0)
        octets = IoVec.of(bytearray(18))
        assert sense.move is not None
        sense.move(0, octets, lambda _size: None)
        return self.told, self.statuses, self.levels, memory, bytes(self.image.data), bytes(octets)


class Wire:
    """The network's side: claims are made in order, and end in any."""

    def __init__(self, board: Board, arrivals: deque[Arrival]) -> None:
        self.board = board
        self.arrivals = arrivals
        self.open: list[tuple[RxClaim, Arrival, int]] = []
        self.driver = LanceDriver(board, board.lance, rx_count=16, rx_buffer=512)
        self.driver.start()
        self.received: list[bytes] = []
        self.serial = 0

    @property
    def is_over(self) -> bool:
        return not self.arrivals and not self.open

    def claim(self) -> None:
        if not self.arrivals or len(self.open) >= OPEN_CLAIMS:
            return
        claim = self.board.lance.claim(self.arrivals[0].claimed, (14, 20))
        if claim is not None:
            self.open.append((claim, self.arrivals.popleft(), self.serial))
            self.serial += 1

    def end(self, which: int) -> None:
        if not self.open:
            return
        claim, arrival, serial = self.open.pop(which % len(self.open))
        if arrival.end == "cancelled":
            claim.iov.copy_from(b"\xee" * arrival.claimed)  # bytes came, and then came to nothing
            claim.cancel()
            return
        size = arrival.claimed if arrival.end == "full" else 60
        claim.iov.copy_from(frame_of(size - 1) + bytes((serial,)))
        claim.commit(size)

    def poll(self) -> None:
        self.board.lance.poll(0.0)

    def handle_interrupt(self) -> None:
        self.driver.handle_interrupt()
        self.received += self.driver.receive()

    def seen(self) -> tuple[object, ...]:
        owned = [slot.view[2] >> 7 for slot in self.driver._rx]
        counted = {name: self.driver.stats[name] for name in ("rx_frames", "rx_errors", "merr")}
        return self.received, owned, counted


class Machine:
    def __init__(self, commands: list[list[Command]], arrivals: list[Arrival]) -> None:
        self.board = sun4m_board(scatter=True)
        self.disks = [DiskHost(self.board, n, deque(commands[n])) for n in range(DISKS)]
        self.wire = Wire(self.board, deque(arrivals))

    def in_order(self) -> None:
        """One thing after another, each done at once."""
        for disk in self.disks:
            while not disk.is_over:
                for deed in (disk.start, disk.poll, disk.complete, disk.poll):
                    deed()
                disk.handle_interrupt()
        while not self.wire.is_over:
            self.wire.claim()
            self.wire.end(0)
            self.wire.poll()
            self.wire.handle_interrupt()

    def do(self, what: str, which: int) -> None:
        disk, wire = self.disks[which % DISKS], self.wire
        deeds: dict[str, Callable[[], None]] = {
            "start": disk.start,
            "complete": disk.complete,
            "poll": disk.poll,
            "handle": disk.handle_interrupt,
            "claim": wire.claim,
            "end": lambda: wire.end(which),
            "poll wire": wire.poll,
            "handle wire": wire.handle_interrupt,
        }
        deeds[what]()

    def finish(self) -> None:
        """Whatever is left, everything in turn."""
        for _ in range(400):
            for what in ("start", "poll", "complete", "handle"):
                for number in range(DISKS):
                    self.do(what, number)
            for what in ("claim", "end", "poll wire", "handle wire"):
                self.do(what, 0)
            if self.wire.is_over and all(disk.is_over for disk in self.disks):
                return
        raise AssertionError("something never ends")

    def seen(self) -> list[tuple[object, ...]]:
        return [*(disk.seen() for disk in self.disks), self.wire.seen()]


COMMANDS: Final = st.builds(
    Command,
    st.booleans(),
    st.integers(0, BLOCKS - COUNT),
    st.integers(0, AREA_LEN - SIZE),
    st.sampled_from(["full", "full", "short", "error", "cancelled"]),
)
ARRIVALS: Final = st.builds(
    Arrival,
    st.sampled_from([60, 600, 1514]),
    st.sampled_from(["full", "full", "short", "cancelled"]),
)
DEEDS: Final = ("start", "complete", "poll", "handle", "claim", "end", "poll wire", "handle wire")
STEPS: Final = st.tuples(st.sampled_from(DEEDS), st.integers(0, 7))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(COMMANDS, min_size=1, max_size=4), min_size=DISKS, max_size=DISKS),
    st.lists(ARRIVALS, min_size=3, max_size=10),
    st.lists(STEPS, min_size=60, max_size=120),
)
def test_any_order_of_completions_is_what_one_after_another_gives(
    commands: list[list[Command]], arrivals: list[Arrival], steps: list[tuple[str, int]]
) -> None:
    expected, mixed = Machine(commands, arrivals), Machine(commands, arrivals)
    expected.in_order()
    for what, which in steps:
        mixed.do(what, which)
    mixed.finish()
    assert mixed.seen() == expected.seen()
    for machine in (expected, mixed):
        assert all(disk.esp.copied_bytes == disk.disk.copied_bytes == 0 for disk in machine.disks)
        machine.board.close()
