"""A SCSI target: the phases that one connection to a logical unit goes through, and its messages.

    select → MESSAGE OUT (IDENTIFY …) → COMMAND → DATA → STATUS → MESSAGE IN → bus free

The target drives the phase lines, `phase`, and asserts REQ, `is_requesting`; the initiator moves
bytes with `take` (MESSAGE OUT, COMMAND), `give` (STATUS, MESSAGE IN), `acknowledge` (the message's
last handshake) and `move` (DATA), and asserts ATN, `attention`, to be heard. All but `move` change
the lines at once and move no more than a few bytes.

Data are a transfer (dma/transfer.py) that the target opens through `bus.north`: ranges in the
unit's own space, which the initiator, its channel and so on translate until they are host views.
The unit moves them. REQ falls, and when the completions run, the last of them (the target's, which
was pushed first) sets the lines for what comes next and tells the bus, which tells the initiator.

What takes the unit time without moving data (a flush, and simply deciding) is a transfer of no
ranges in the same queue: so the phase after COMMAND comes from the loop as well, and a command that
completes at once looks like one that completes late.

Messages heard: IDENTIFY, ABORT and BUS DEVICE RESET (both end in bus free), NO OPERATION, and those
that report errors of our messages, which need no answer. SDTR is answered with offset 0, which says
asynchronous; everything else with MESSAGE REJECT. When nothing is left to say the target goes on
where it was. ATN raised in between is honoured at the next change of phase.

Bounds: MESSAGE_OUT_MAX bytes per MESSAGE OUT phase are looked at, a CDB has at most 12, one
connection at a time, and one command per connection.

Does not do: disconnection and reselection, tags, linked commands, wide or synchronous transfers,
parity.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import Final, Protocol

from dma.scsi.task import LogicalUnit, Moved, Task
from dma.transfer import UNFINISHED, CompletionQueue, Direction, DmaPath, Transfer


class Phase(enum.IntEnum):
    """MSG, C/D and I/O, as the lines of the bus have them."""

    DATA_OUT = 0
    DATA_IN = 1
    COMMAND = 2
    STATUS = 3
    MESSAGE_OUT = 6
    MESSAGE_IN = 7


# Messages, SCSI-2 §6.5
COMMAND_COMPLETE: Final = 0x00
EXTENDED: Final = 0x01
ABORT: Final = 0x06
MESSAGE_REJECT: Final = 0x07
BUS_DEVICE_RESET: Final = 0x0C
IDENTIFY: Final = 0x80
SDTR: Final = 0x01  # extended message code
SDTR_LEN: Final = 3  # bytes after the length
_NO_ANSWER: Final = frozenset({0x05, MESSAGE_REJECT, 0x08, 0x09})  # errors of ours, no operation
_TWO_OCTETS: Final = range(0x20, 0x30)

MESSAGE_OUT_MAX: Final = 64  # bytes
CDB_LENGTHS: Final = (6, 10, 10, 6, 6, 12, 6, 6)  # by group; reserved and vendor groups as group 0


class TargetBus(Protocol):
    """What a target needs of the bus that it is on."""

    north: DmaPath  # where data go: towards the initiator
    queue: CompletionQueue  # the initiator's

    def requested(self) -> None:
        """REQ is asserted again, after a while in which it was not."""


class Target:
    """One device on the bus, with one logical unit; the unit knows that it is number 0."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._disconnect()

    def _disconnect(self) -> None:
        self.phase: Phase | None = None  # None: the bus is free
        self.is_requesting = False
        self.attention = False  # ATN
        self._bus: TargetBus | None = None
        self._after: Phase | None = None  # the phase to go on with after messages
        self._lun: int | None = None  # as IDENTIFY said
        self._heard = bytearray()
        self._to_say = bytearray()
        self._cdb = bytearray()
        self._task: Task | None = None
        self._offset = 0  # bytes of the data phase that are done

    # The initiator's side

    def select(self, bus: TargetBus, *, attention: bool) -> None:
        self._disconnect()
        self._bus = bus
        self.attention = attention
        self._after = Phase.COMMAND
        self._enter(Phase.COMMAND)

    def abandon(self) -> None:
        """The initiator is gone without a word."""
        if self._task is not None:
            self._unit.withdraw()
        self._disconnect()

    def reset(self) -> None:
        """RST on the bus, or BUS DEVICE RESET."""
        self._unit.reset()
        self._disconnect()

    def take(self, octets: bytes) -> int:
        """Message or command bytes; how many the target took before it changed the phase.

        All that are sent in MESSAGE OUT are taken; while ATN stays on, more are expected.
        """
        if self.phase is Phase.MESSAGE_OUT:
            self._heard += octets[: MESSAGE_OUT_MAX - len(self._heard)]
            if not self.attention:
                self._hear()
            return len(octets)
        taken = 0
        while taken < len(octets) and self.phase is Phase.COMMAND and self._task is None:
            self._cdb.append(octets[taken])
            taken += 1
            if len(self._cdb) == CDB_LENGTHS[self._cdb[0] >> 5]:
                self._execute()
        return taken

    def give(self) -> int:
        """The byte of STATUS, or the next of MESSAGE IN, which wants to be acknowledged."""
        if self.phase is Phase.STATUS and self._task is not None:
            status = self._task.status
            self._to_say = bytearray((COMMAND_COMPLETE,))
            self._after = None
            self._enter(Phase.MESSAGE_IN)
            return status
        return self._to_say[0] if self._to_say else COMMAND_COMPLETE

    def acknowledge(self) -> None:
        """The initiator has accepted the message byte that it was given."""
        if self.phase is not Phase.MESSAGE_IN:
            return
        del self._to_say[:1]
        if self._to_say and not self.attention:
            return
        self._to_say.clear()
        if self._after is None and not self.attention:
            self._disconnect()
        else:
            self._enter(self._after)

    def move(self, limit: int) -> None:
        """Up to `limit` bytes of the data phase. DmaFault: none, and all is as before."""
        bus, task = self._bus, self._task
        if bus is None or task is None or task.direction is None or task.move is None:
            return
        size = min(limit, task.length - self._offset)
        ranges = ((task.address + self._offset, size),)
        transfer = Transfer(task.direction, ranges, headers=(), command=bytes(self._cdb))
        transfer.completions.append(partial(self._moved, task, size))
        iov = bus.north.open(transfer)
        self.is_requesting = False
        bus.queue.start(transfer)
        task.move(self._offset, iov, _finisher(bus.queue, transfer))

    # Messages

    def _hear(self) -> None:
        """ATN is off: the messages are complete."""
        heard, self._heard = bytes(self._heard), bytearray()
        while heard:
            message, heard = _split(heard)
            code = message[0]
            if code & IDENTIFY:
                self._lun = code & 7
            elif code == BUS_DEVICE_RESET:
                self.reset()
                return
            elif code == ABORT:
                self.abandon()
                return
            elif message[:3] == bytes((EXTENDED, SDTR_LEN, SDTR)) and len(message) == 5:
                self._to_say += message[:4] + b"\0"  # the period as asked for, offset 0
            elif code not in _NO_ANSWER:
                self._to_say.append(MESSAGE_REJECT)
        self._enter(Phase.MESSAGE_IN if self._to_say else self._after)

    # The command

    def _execute(self) -> None:
        cdb = bytes(self._cdb)
        lun = cdb[1] >> 5 if self._lun is None else self._lun
        self._task = task = self._unit.execute(cdb, lun)
        self.is_requesting = False
        if task.direction is None:
            following = Phase.STATUS
        else:
            is_in = task.direction is Direction.FROM_DEVICE
            following = Phase.DATA_IN if is_in else Phase.DATA_OUT
        self._wait(task, task.prepare, following)

    def _moved(self, task: Task, wanted: int, size: int) -> None:
        """Completion: bytes of the data phase have moved, and the path has done its part."""
        if task is not self._task or self._after is None:
            return
        self._offset += size
        if size == wanted and self._offset < task.length:
            self._go_on(task, self._after)
        elif task.finish is None or task.status:
            self._go_on(task, Phase.STATUS)
        else:
            self._wait(task, task.finish, Phase.STATUS)

    def _wait(self, task: Task, work: Work | None, following: Phase) -> None:
        """A transfer without bytes: the phase comes from the loop when the work is done."""
        bus = self._bus
        if bus is None:
            return
        transfer = Transfer(Direction.TO_DEVICE, ())
        transfer.completions.append(lambda _size: self._go_on(task, following))
        bus.queue.start(transfer)
        done = _finisher(bus.queue, transfer)
        if work is None:
            done(0)
        else:
            work(done)

    # The lines

    def _go_on(self, task: Task, phase: Phase) -> None:
        """Completion: the next phase, some time after the last one."""
        if task is not self._task:
            return  # the connection is another by now
        self._after = phase
        self._enter(phase)
        if self._bus is not None:
            self._bus.requested()

    def _enter(self, phase: Phase | None) -> None:
        """Ask for bytes in this phase, or hear first what the initiator wants to say."""
        self.phase = Phase.MESSAGE_OUT if self.attention else phase
        self.is_requesting = self.phase is not None


class Work(Protocol):
    """Something that a unit does, and says when it is done."""

    def __call__(self, done: Moved, /) -> None: ...


def _finisher(queue: CompletionQueue, transfer: Transfer) -> Moved:
    def done(size: int) -> None:
        if transfer.size == UNFINISHED:  # else it was cancelled meanwhile
            queue.finish(transfer, size)

    return done


def _split(octets: bytes) -> tuple[bytes, bytes]:
    """The first message, and the rest. One that is cut short is what there is of it."""
    size = 1
    if octets[0] == EXTENDED and len(octets) > 1:
        size = 2 + (octets[1] or 256)
    elif octets[0] in _TWO_OCTETS:
        size = 2
    return octets[:size], octets[size:]
