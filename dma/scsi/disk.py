"""A SCSI-2 disk of 512-byte blocks over an endpoint; a logical unit.

`execute` turns a command into a task (dma/scsi/task.py). Everything that can be refused is refused
there, before any data phase: an unknown command, a bad field, a block beyond the end, a write to a
read-only image. What is left can only fail in the host, and that becomes sense as well: an image
that is short or gives EIO is an unrecovered read error at the block where it happened, and the
blocks before it have been read. No error of the host is ever an exception here.

Blocks move between the endpoint and the views that the task is given, which are the guest's own
pages: `copied_bytes` stays 0 but for VERIFY with BytChk, which has to hold both sides to compare.

The write cache is the host's: what was written is on the host's disk after SYNCHRONIZE CACHE, a
stop, or a WRITE(10) with FUA. Unit attention (power on, bus reset) meets the first command that is
not INQUIRY or REQUEST SENSE. Sense data are kept until REQUEST SENSE or the next command.

Refused, so that nobody loses an image by accident or believes in a setting: FORMAT UNIT (an image
has its size from the host), MODE SELECT, linked commands, relative addresses, saved mode pages.

Does not do: commands of more than 12 bytes, tags, reservations that mean anything (there is one
initiator), reassigning blocks, media changes. A write that is broken off in the middle of a block,
by the initiator or the host, leaves part of it written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dma.iovec import IoVec
from dma.scsi import pages, sense
from dma.scsi.endpoint import Endpoint
from dma.scsi.pages import BLOCK_LEN
from dma.scsi.sense import Sense
from dma.scsi.task import CHECK_CONDITION, Moved, Task, reply
from dma.transfer import Direction

TEST_UNIT_READY: Final = 0x00
REQUEST_SENSE: Final = 0x03
READ_6: Final = 0x08
WRITE_6: Final = 0x0A
INQUIRY: Final = 0x12
RESERVE: Final = 0x16
RELEASE: Final = 0x17
MODE_SENSE_6: Final = 0x1A
START_STOP: Final = 0x1B
PREVENT_REMOVAL: Final = 0x1E
READ_CAPACITY: Final = 0x25
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
VERIFY_10: Final = 0x2F
SYNCHRONIZE_CACHE: Final = 0x35

BLOCKS_MAX: Final = 1 << 32  # what a CDB of 10 bytes can address
REL_ADR: Final = 1 << 0  # byte 1 of a 10-byte CDB
BYT_CHK: Final = 1 << 1
FUA: Final = 1 << 3
LINK_OR_FLAG: Final = 3  # of the control byte, a CDB's last
DBD: Final = 1 << 3  # MODE SENSE: no block descriptor
START: Final = 1 << 0
SCRATCH_LEN: Final = 65536  # bytes; what VERIFY reads goes there again and again

_ANYTIME: Final = frozenset({INQUIRY, REQUEST_SENSE})
_WITHOUT_MEDIUM: Final = _ANYTIME | {START_STOP, MODE_SENSE_6, PREVENT_REMOVAL, RESERVE, RELEASE}


class Disk:
    """Logical unit 0 of a target. Is a LogicalUnit."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.copied_bytes = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.blocks = min(endpoint.size // BLOCK_LEN, BLOCKS_MAX)
        self._endpoint = endpoint
        self._scratch: bytearray | None = None
        self._sense = sense.NO_SENSE
        self._is_stopped = False
        self._attention: Sense | None = sense.POWER_ON_OR_RESET
        self._commands: dict[int, Callable[[bytes], Task]] = {
            TEST_UNIT_READY: lambda _cdb: Task(),
            READ_6: self._read_6,
            WRITE_6: self._write_6,
            INQUIRY: self._inquiry,
            RESERVE: self._reserve,
            RELEASE: self._reserve,
            MODE_SENSE_6: self._mode_sense,
            START_STOP: self._start_stop,
            PREVENT_REMOVAL: lambda _cdb: Task(),
            READ_CAPACITY: self._read_capacity,
            READ_10: self._read_10,
            WRITE_10: self._write_10,
            VERIFY_10: self._verify,
            SYNCHRONIZE_CACHE: self._synchronize,
        }

    def reset(self) -> None:
        self._endpoint.withdraw()
        self._sense = sense.NO_SENSE
        self._is_stopped = False
        self._attention = sense.POWER_ON_OR_RESET

    def withdraw(self) -> None:
        self._endpoint.withdraw()

    def execute(self, cdb: bytes, lun: int) -> Task:
        opcode = cdb[0]
        if opcode == REQUEST_SENSE:
            return self._request_sense(cdb, lun)
        self._sense = sense.NO_SENSE
        if self._attention and opcode not in _ANYTIME:
            attention, self._attention = self._attention, None
            return self._refuse(attention)
        if cdb[-1] & LINK_OR_FLAG:
            return self._refuse(sense.INVALID_FIELD)
        if lun and opcode == INQUIRY:
            return reply(pages.inquiry(lun), cdb[4])
        if lun:
            return self._refuse(sense.LUN_NOT_SUPPORTED)
        command = self._commands.get(opcode)
        if command is None:
            return self._refuse(sense.INVALID_OPCODE)
        if opcode not in _WITHOUT_MEDIUM and self._is_stopped:
            return self._refuse(sense.NOT_READY_STOPPED)
        if opcode not in _WITHOUT_MEDIUM and not self.blocks:
            return self._refuse(sense.NO_MEDIUM)
        return command(cdb)

    def _refuse(self, reason: Sense) -> Task:
        self._sense = reason
        return Task(CHECK_CONDITION)

    # What the disk says of itself

    def _request_sense(self, cdb: bytes, lun: int) -> Task:
        found = sense.LUN_NOT_SUPPORTED if lun else self._sense
        self._sense = sense.NO_SENSE
        return reply(found.emit(), cdb[4])

    def _inquiry(self, cdb: bytes) -> Task:
        if cdb[1] & 1 or cdb[2]:  # EVPD, page
            return self._refuse(sense.INVALID_FIELD)
        return reply(pages.inquiry(0), cdb[4])

    def _read_capacity(self, cdb: bytes) -> Task:
        if cdb[1] & REL_ADR or (not cdb[8] & 1 and any(cdb[2:6])):  # PMI clear: no address
            return self._refuse(sense.INVALID_FIELD)
        return reply(pages.capacity(self.blocks), 8)

    def _mode_sense(self, cdb: bytes) -> Task:
        control, page = cdb[2] >> 6, cdb[2] & 0x3F
        if control == 3:
            return self._refuse(sense.NOT_SAVED)
        octets = pages.mode_sense(
            page,
            self.blocks,
            read_only=self._endpoint.read_only,
            brief=bool(cdb[1] & DBD),
            changeable=control == 1,
        )
        return reply(octets, cdb[4]) if octets else self._refuse(sense.INVALID_FIELD)

    # Commands without data

    def _reserve(self, cdb: bytes) -> Task:
        if cdb[1] & 0x11:  # extents, third party
            return self._refuse(sense.INVALID_FIELD)
        return Task()

    def _start_stop(self, cdb: bytes) -> Task:
        self._is_stopped = not cdb[4] & START
        task = Task()
        if self._is_stopped:
            task.prepare = partial(self._sync, task)
        return task

    def _synchronize(self, cdb: bytes) -> Task:
        lba, count = int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
        if cdb[1] & REL_ADR:
            return self._refuse(sense.INVALID_FIELD)
        if lba + count > self.blocks:
            return self._refuse(sense.LBA_OUT_OF_RANGE)
        task = Task()
        task.prepare = partial(self._sync, task)
        return task

    def _sync(self, task: Task, done: Moved) -> None:
        if self._endpoint.read_only:
            done(0)
        else:
            self._endpoint.sync(partial(self._synced, task, done))

    def _synced(self, task: Task, done: Moved, _size: int, error: int) -> None:
        if error:
            self._fail(task, sense.WRITE_FAILED)
        done(0)

    # Blocks

    def _read_6(self, cdb: bytes) -> Task:
        return self._read(*_address_6(cdb))

    def _read_10(self, cdb: bytes) -> Task:
        if cdb[1] & REL_ADR:
            return self._refuse(sense.INVALID_FIELD)
        return self._read(*_address_10(cdb))

    def _write_6(self, cdb: bytes) -> Task:
        return self._write(*_address_6(cdb))

    def _write_10(self, cdb: bytes) -> Task:
        if cdb[1] & REL_ADR:
            return self._refuse(sense.INVALID_FIELD)
        task = self._write(*_address_10(cdb))
        if cdb[1] & FUA and not task.status:
            task.finish = partial(self._sync, task)
        return task

    def _read(self, lba: int, count: int) -> Task:
        task = self._of_blocks(Direction.FROM_DEVICE, lba, count)
        task.move = partial(self._read_blocks, task)
        return task

    def _write(self, lba: int, count: int) -> Task:
        if self._endpoint.read_only:
            return self._refuse(sense.WRITE_PROTECTED)
        task = self._of_blocks(Direction.TO_DEVICE, lba, count)
        task.move = partial(self._write_blocks, task)
        return task

    def _verify(self, cdb: bytes) -> Task:
        lba, count = _address_10(cdb)
        if cdb[1] & REL_ADR:
            return self._refuse(sense.INVALID_FIELD)
        task = self._of_blocks(Direction.TO_DEVICE, lba, count)
        if cdb[1] & BYT_CHK:
            task.move = partial(self._compare_blocks, task)
        elif task.direction is not None:
            task.prepare = partial(self._verify_blocks, task, task.length)
            task.direction, task.length = None, 0
        return task

    def _of_blocks(self, direction: Direction, lba: int, count: int) -> Task:
        """A task over these blocks; refused if one is not there, without data if there are none."""
        if lba + count > self.blocks:
            return self._refuse(sense.LBA_OUT_OF_RANGE)
        if not count:
            return Task()
        return Task(direction=direction, length=count * BLOCK_LEN, address=lba * BLOCK_LEN)

    def _read_blocks(self, task: Task, offset: int, iov: IoVec, done: Moved) -> None:
        after = partial(self._read_done, task, offset, len(iov), done)
        self._endpoint.read(task.address + offset, iov, after)

    def _read_done(
        self, task: Task, offset: int, wanted: int, done: Moved, size: int, error: int
    ) -> None:
        if error or size < wanted:
            self._fail(task, sense.UNRECOVERED_READ, offset + size)
            size = max(0, (offset + size) // BLOCK_LEN * BLOCK_LEN - offset)  # whole blocks
        self.bytes_read += size
        done(size)

    def _write_blocks(self, task: Task, offset: int, iov: IoVec, done: Moved) -> None:
        after = partial(self._write_done, task, offset, len(iov), done)
        self._endpoint.write(task.address + offset, iov, after)

    def _write_done(
        self, task: Task, offset: int, wanted: int, done: Moved, size: int, error: int
    ) -> None:
        if error or size < wanted:
            self._fail(task, sense.WRITE_FAILED, offset + size)
        self.bytes_written += size
        done(size)

    def _verify_blocks(self, task: Task, length: int, done: Moved) -> None:
        if self._scratch is None:
            self._scratch = bytearray(SCRATCH_LEN)
        whole, rest = divmod(length, SCRATCH_LEN)
        views = [memoryview(self._scratch)] * whole + [memoryview(self._scratch)[:rest]]
        after = partial(self._verified, task, length, done)
        self._endpoint.read(task.address, IoVec.of(*views), after)

    def _verified(self, task: Task, length: int, done: Moved, size: int, error: int) -> None:
        if error or size < length:
            self._fail(task, sense.UNRECOVERED_READ, size)
        done(0)

    def _compare_blocks(self, task: Task, offset: int, iov: IoVec, done: Moved) -> None:
        room = bytearray(len(iov))
        after = partial(self._compared, task, offset, iov, room, done)
        self._endpoint.read(task.address + offset, IoVec.of(room), after)

    def _compared(
        self,
        task: Task,
        offset: int,
        iov: IoVec,
        room: bytearray,
        done: Moved,
        size: int,
        error: int,
    ) -> None:
        self.copied_bytes += size
        if error or size < len(room):
            self._fail(task, sense.UNRECOVERED_READ, offset + size)
        elif not task.status and bytes(iov) != room:
            self._fail(task, sense.MISCOMPARE)
        done(len(room))

    def _fail(self, task: Task, reason: Sense, offset: int | None = None) -> None:
        """The task ends in CHECK CONDITION; `offset` is where in it."""
        task.status = CHECK_CONDITION
        if offset is not None:
            reason = reason.at((task.address + offset) // BLOCK_LEN)
        self._sense = reason


def _address_6(cdb: bytes) -> tuple[int, int]:
    """Block and count; a count of 0 is 256."""
    return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256


def _address_10(cdb: bytes) -> tuple[int, int]:
    return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
