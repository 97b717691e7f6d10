"""Both chains at once, with completions in any order: to the guest it is as one after another.

Two disks, each behind an ESP and ESPDMA of its own, and a Lance, on one IOMMU. A script says what
each device is to do and how it ends: in full, short, with an error of the host's, cancelled (a
claim cancelled; a channel reset with its transfer in flight), or with the Lance stopped and started
anew; what a stop takes from the wire comes again, as TCP's bytes do. One run does it in order,
everything completing at once. The other interleaves starts, host completions, polls and interrupts
as Hypothesis likes. Guest memory, images, frames both ways, descriptors, interrupts and sense must
be the same, and the host may not touch a byte of guest memory once a device was reset.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from nic import csr
from nic.port import Frame
from nic.receiver import RxClaim
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import DVMA_BASE, Board, sun4m_board
from tests.kit.lance import frame_of
from tests.kit.scsi import cdb_10

End = Literal["full", "short", "error", "cancelled", "stopped"]

DISKS: Final = 2
BLOCKS: Final = 32  # of an image
COUNT: Final = 12  # blocks of a command: more than a page
SIZE: Final = COUNT * 512  # bytes
AREA_LEN: Final = 0x4000  # bytes of guest memory for a command's data
AREAS: Final = 0x200000  # LANCE address of the first; the driver's rings are far below
OPEN_CLAIMS: Final = 4
RX_BUFFER: Final = 512  # bytes: long frames take chains


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
    serial: int = 0  # its place in the script, and its last byte


class Flight:
    """A claim that the host fills later: the host's side, which is told when to let go."""

    def __init__(self, claim: RxClaim, arrival: Arrival) -> None:
        self.arrival = arrival
        self.has_let_go = False
        self.iov = claim.iov
        self.claim = claim.hold(self.let_go)

    def let_go(self) -> None:
        assert not self.has_let_go, "once is enough"
        self.iov.copy_from(b"\xdd" * self.arrival.claimed)  # the kernel was about to be done
        self.has_let_go = True

    def fill(self, octets: bytes) -> None:
        if not self.has_let_go:
            self.iov.copy_from(octets)


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
    """The network's side: claims are made in order and end in any, and so do the guest's frames."""

    def __init__(self, board: Board, arrivals: list[Arrival], departures: list[int]) -> None:
        self.board = board
        self.lance = board.lance
        self.arrivals = deque(replace(a, serial=number) for number, a in enumerate(arrivals))
        self.open: list[Flight] = []
        self.committed: dict[int, Arrival] = {}  # and not yet received by the guest
        self.driver = LanceDriver(board, board.lance, rx_count=16, rx_buffer=RX_BUFFER, tx_count=4)
        self.driver.start()
        self.received: list[bytes] = []
        self.departures = deque(frame_of(size) for size in departures)
        self.held: list[Frame] = []
        self.sent: list[bytes] = []

    @property
    def is_over(self) -> bool:
        waiting = (self.arrivals, self.open, self.committed, self.departures, self.held)
        return not any(waiting) and not any(slot.view[2] >> 7 for slot in self.driver._tx)

    # To the guest

    def claim(self) -> None:
        if not self.arrivals or len(self.open) >= OPEN_CLAIMS:
            return
        claim = self.lance.claim(self.arrivals[0].claimed, (14, 20))
        if claim is not None:
            self.open.append(Flight(claim, self.arrivals.popleft()))

    def end(self, which: int) -> None:
        if not self.open:
            return
        flight = self.open.pop(which % len(self.open))
        arrival = flight.arrival
        if arrival.end == "stopped":
            self.stop(flight)
        elif arrival.end == "cancelled":
            flight.fill(b"\xee" * arrival.claimed)  # bytes came, and then came to nothing
            flight.claim.cancel()
        elif arrival.end == "error":
            flight.claim.cancel()
        else:
            size = arrival.claimed if arrival.end == "full" else 60
            flight.fill(frame_of(size - 1) + bytes((arrival.serial,)))
            flight.claim.commit(size)
            self.committed[arrival.serial] = arrival

    def stop(self, stopped: Flight) -> None:
        """With claims in flight: once STOP is written, guest memory is the guest's."""
        self.handle_interrupt()
        self.take(all_of_them=True)
        flights = [stopped, *self.open]
        self.driver.stop()
        assert all(flight.has_let_go for flight in flights)
        buffers = [slot.words for slot in self.driver._rx]
        for buffer in buffers:
            buffer.copy_from(b"\x99" * len(buffer))
        for flight in flights:  # what comes too late has no effect
            flight.fill(b"\xdd" * flight.arrival.claimed)
            flight.claim.commit(flight.arrival.claimed)
        self.poll()
        assert all(bytes(buffer) == b"\x99" * len(buffer) for buffer in buffers)
        assert not self.lance.read(csr.RDP) & csr.RINT
        again = [flight.arrival for flight in self.open] + list(self.committed.values())
        self.open.clear()
        self.committed.clear()
        self.arrivals.extendleft(sorted(again, key=lambda arrival: -arrival.serial))
        self.driver.start()

    # From the guest

    def send(self) -> None:
        if self.departures and self.driver.send(self.departures[0]):
            self.departures.popleft()

    def take(self, *, all_of_them: bool = False) -> None:
        """The host looks at what was sent; or at everything, and gives it back."""
        frame = next(iter(self.lance.frames()), None)
        while frame is not None:
            self.held.append(frame)
            self.sent.append(bytes(frame.iov))
            frame = next(iter(self.lance.frames()), None) if all_of_them else None
        while all_of_them and self.held:
            self.release(0)
        self.poll()

    def release(self, which: int) -> None:
        if self.held:
            self.held.pop(which % len(self.held)).release()

    def poll(self) -> None:
        self.lance.poll(0.0)

    def handle_interrupt(self) -> None:
        self.driver.handle_interrupt()
        for frame in self.driver.receive():
            self.received.append(frame)
            del self.committed[frame[-1]]

    def seen(self) -> tuple[object, ...]:
        owned = [slot.view[2] >> 7 for slot in (*self.driver._rx, *self.driver._tx)]
        names = ("rx_frames", "rx_errors", "tx_frames", "tx_errors", "merr")
        return self.received, self.sent, owned, {name: self.driver.stats[name] for name in names}


class Machine:
    def __init__(
        self, commands: list[list[Command]], arrivals: list[Arrival], departures: list[int]
    ) -> None:
        self.board = sun4m_board(scatter=True)
        self.disks = [DiskHost(self.board, n, deque(commands[n])) for n in range(DISKS)]
        self.wire = Wire(self.board, arrivals, departures)

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
            self.wire.send()
            self.wire.take(all_of_them=True)
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
            "send": wire.send,
            "take": wire.take,
            "release": lambda: wire.release(which),
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
            for what in ("claim", "end", "send", "take", "release", "poll wire", "handle wire"):
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
    st.sampled_from(["full", "full", "short", "error", "cancelled", "stopped"]),
)
DEEDS: Final = (
    *("start", "complete", "poll", "handle"),
    *("claim", "end", "send", "take", "release", "poll wire", "handle wire"),
)
STEPS: Final = st.tuples(st.sampled_from(DEEDS), st.integers(0, 7))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(COMMANDS, min_size=1, max_size=4), min_size=DISKS, max_size=DISKS),
    st.lists(ARRIVALS, min_size=3, max_size=10),
    st.lists(st.sampled_from([60, 600, 1514]), max_size=6),
    st.lists(STEPS, min_size=60, max_size=160),
)
def test_any_order_of_completions_is_what_one_after_another_gives(
    commands: list[list[Command]],
    arrivals: list[Arrival],
    departures: list[int],
    steps: list[tuple[str, int]],
) -> None:
    expected, mixed = (Machine(commands, arrivals, departures) for _ in range(2))
    expected.in_order()
    for what, which in steps:
        mixed.do(what, which)
    mixed.finish()
    assert mixed.seen() == expected.seen()
    for machine in (expected, mixed):
        assert all(disk.esp.copied_bytes == disk.disk.copied_bytes == 0 for disk in machine.disks)
        machine.board.close()
