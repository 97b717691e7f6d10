"""A task: what a logical unit makes of one command, for the target to run on the bus.

The unit decides everything that can be known from the command alone before the first phase: the
direction and length of the data, and whether there will be data at all. Then the target calls, in
this order and only what is there:

    prepare(done)               work before the first phase: a cache flush
    move(offset, iov, done)     bytes [offset, offset + len(iov)) of the data phase, as often as
                                the initiator asks, in order
    finish(done)                work after the last byte
    status                      read last

Each `done(octets)` is called once, at once or later. A `move` that could not move all says so by
fewer bytes: the data phase ends there, and `status` says CHECK CONDITION.

Does not do: phases, messages, queues. A task is of one command; tasks are not linked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

from dma.iovec import IoVec, scatter_copy
from dma.transfer import Direction

GOOD: Final = 0x00  # status bytes, SCSI-2 §7.3
CHECK_CONDITION: Final = 0x02

Moved: TypeAlias = Callable[[int], None]  # told how many bytes


@dataclass(slots=True)
class Task:
    """One command under way."""

    status: int = GOOD
    direction: Direction | None = None  # None: no data phase
    length: int = 0  # bytes of the data phase
    address: int = 0  # of the first of them in the unit's own space: bytes from its beginning
    prepare: Callable[[Moved], None] | None = None
    move: Callable[[int, IoVec, Moved], None] | None = None
    finish: Callable[[Moved], None] | None = None


class LogicalUnit(Protocol):
    """What answers commands."""

    def execute(self, cdb: bytes, lun: int) -> Task:
        """Never raises; what cannot be done is a CHECK CONDITION."""

    def withdraw(self) -> None:
        """The initiator is gone: no view of a task under way is touched after this."""

    def reset(self) -> None:
        """The bus was reset, or the device: the same, and a unit attention is due."""


def reply(data: bytes, allocation_len: int) -> Task:
    """A task that sends these bytes, as many as the initiator has room for."""
    data = data[:allocation_len]
    direction = Direction.FROM_DEVICE if data else None
    return Task(direction=direction, length=len(data), move=partial(_send, data))


def _send(data: bytes, offset: int, iov: IoVec, done: Moved) -> None:
    done(scatter_copy(iov.segments, (memoryview(data)[offset:],)))
