"""A transfer: a list of ranges plus a stack of completions; and the queue that runs them.

Every stage of the DMA path (LEDMA, IOMMU, memory) has one verb, `open(transfer)`: it translates
`transfer.ranges` from its own address space to the next one's, may push a completion, and passes
the transfer down; memory answers with the host views. Nothing is copied on the way. When the
bytes have arrived, the completions run, last added first, each told how many bytes really came.

The device pushes its own completion (status, OWN bit, interrupt) before it opens; a stage below it
pushes one after the next stage has answered. So what is nearest to the host runs first and the
device last: a lane exchange comes before the OWN bit, who watches the path above the bridge sees
the bytes before the exchange, and who watches below it sees them after.

A `CompletionQueue` belongs to one device. Completions never run inside the call that started or
finished a transfer: the loop runs the queue, in the order in which the transfers were started,
whether the bytes came at once or later (the 2007 discussion's sync/async question, S4). A transfer
that finished early waits behind one that has not; a cancelled one is gone, as if never started.

    transfer = Transfer(Direction.FROM_DEVICE, ((0x1000, 1518),))
    transfer.completions.append(store_status)
    iov = bus.open(transfer)              # DmaFault: nothing is held, forget the transfer
    queue.start(transfer)
    size = socket.recvmsg_into(iov)[0]    # now, or many turns of the loop later
    queue.finish(transfer, size)          # or queue.cancel(transfer)
    queue.run(limit)                      # the loop: store_status(size)

The queue has no bound of its own: a device starts at most as many transfers as its rings have
descriptors, and a cancelled one leaves at once, so the rings bound it.

Does not do: DMA to device registers (a target that is not RAM is a fault), priorities, threads.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from dma.iovec import IoVec, Ranges

Completion: TypeAlias = Callable[[int], None]  # told how many bytes really came

UNFINISHED: Final = -1  # Transfer.size until the queue is told how many bytes came
CANCELLED: Final = -2


class DmaFault(Exception):
    """An address that the path cannot serve. `addr` is in the faulting stage's own space."""

    def __init__(self, stage: str, addr: int, reason: str) -> None:
        super().__init__(f"{stage}: {addr:#x}: {reason}")
        self.stage = stage
        self.addr = addr
        self.reason = reason


class Direction(enum.Enum):
    """Seen from the device: gather from guest memory, or scatter into it."""

    TO_DEVICE = "to device"
    FROM_DEVICE = "from device"


class Lanes(enum.Enum):
    """What the chip does with the two byte lanes of a 16-bit word."""

    STRAIGHT = "straight"  # even byte first: descriptors, init block, packet data with BSWP=1
    EXCHANGED = "exchanged"  # odd byte first: packet data with BSWP=0 on a big-endian bus


class Transfer:
    """Ranges in the address space of the stage that holds it now, and what to do when it is over.

    `headers` is None for a device's own business (descriptors, init block). For a frame's bytes
    it holds the lengths of the leading headers as far as they are known, so that whoever watches
    the path can name the parts of the vector at every stage. A disk's bytes have no headers, ();
    `command` is then the SCSI command that moves them, for the same watchers.
    """

    __slots__ = ("command", "completions", "direction", "headers", "lanes", "ranges", "size")

    def __init__(
        self,
        direction: Direction,
        ranges: Ranges,
        lanes: Lanes = Lanes.STRAIGHT,
        headers: Sequence[int] | None = None,
        command: bytes = b"",
    ) -> None:
        self.direction = direction
        self.ranges = ranges
        self.lanes = lanes
        self.headers = headers
        self.command = command
        self.completions: list[Completion] = []
        self.size = UNFINISHED

    def complete(self, size: int) -> None:
        """Run the completions, last added first. Only a loop calls this (see CompletionQueue)."""
        completions = self.completions
        while completions:
            completions.pop()(size)


class DmaPath(Protocol):
    """Anything that serves a device's addresses: a bus, a bridge, an IOMMU, plain memory."""

    def open(self, transfer: Transfer) -> IoVec:
        """Host views of the ranges, in order. Raises DmaFault, and then nothing is held.

        Views of a TO_DEVICE transfer hold the guest's bytes when this returns; those of a
        FROM_DEVICE transfer are to be filled from the front.
        """


class CompletionQueue:
    """One device's transfers under way, oldest first."""

    __slots__ = ("_running", "_started")

    def __init__(self) -> None:
        self._started: deque[Transfer] = deque()
        self._running = False

    @property
    def pending(self) -> int:
        """Transfers started and neither completed nor cancelled."""
        return len(self._started)

    def start(self, transfer: Transfer) -> None:
        """The transfer takes its place in the order of completions."""
        self._started.append(transfer)

    def finish(self, transfer: Transfer, size: int) -> None:
        """`size` bytes came, which may be fewer than asked for. Runs nothing."""
        if transfer.size != UNFINISHED or size < 0:
            raise ValueError(f"finish({size}) of a transfer with size {transfer.size}")
        transfer.size = size

    def cancel(self, transfer: Transfer) -> None:
        """The transfer never was: its completions are dropped unrun, those behind it move up."""
        started = self._started
        if started and started[-1] is transfer:
            started.pop()
        else:
            started.remove(transfer)
        transfer.size = CANCELLED
        transfer.completions.clear()

    def clear(self) -> None:
        """Cancel everything, finished or not: the device was reset."""
        while self._started:
            self.cancel(self._started[-1])

    def run(self, limit: int) -> int:
        """Complete up to `limit` finished transfers in the order of their start; how many.

        Called by a completion (an interrupt handler may lead here) it does nothing and says 0: the
        outer run goes on afterwards, and the order stays.
        """
        if self._running:
            return 0
        started = self._started
        count = 0
        self._running = True
        try:
            while count < limit and started and started[0].size != UNFINISHED:
                transfer = started.popleft()
                count += 1
                transfer.complete(transfer.size)
        finally:
            self._running = False
        return count
