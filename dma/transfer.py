"""A transfer: a list of ranges plus a stack of completions.

Every stage of the DMA path (LEDMA, IOMMU, memory) has one verb, `open(transfer)`: it translates
`transfer.ranges` from its own address space to the next one's, may push a completion, and passes
the transfer down; memory answers with the host views. Nothing is copied on the way. When the
octets have arrived, the completions run, last added first, each with the number of octets that
really came.

A `CompletionQueue` belongs to one device. Completions never run inside the call that started or
finished a transfer: the loop runs the queue, in the order in which the transfers were started,
whether the octets came at once or later (the 2007 discussion's sync/async question, S4).

Does not do: DMA to device registers (a target that is not RAM is a fault).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from dma.iovec import IoVec, Ranges

Completion: TypeAlias = Callable[[int], None]  # told how many octets really came


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

    `headers` is None for a device's own business (descriptors, init block). For a frame's octets
    it holds the lengths of the leading headers as far as they are known, so that whoever watches
    the path can name the parts of the vector at every stage.
    """

    __slots__ = ("completions", "direction", "headers", "lanes", "ranges")

    def __init__(
        self,
        direction: Direction,
        ranges: Ranges,
        lanes: Lanes = Lanes.STRAIGHT,
        headers: Sequence[int] | None = None,
    ) -> None:
        self.direction = direction
        self.ranges = ranges
        self.lanes = lanes
        self.headers = headers
        self.completions: list[Completion] = []

    def complete(self, size: int) -> None:
        """Run the completions, last added first. Only a loop calls this (see CompletionQueue)."""
        completions = self.completions
        while completions:
            completions.pop()(size)


class DmaPath(Protocol):
    """Anything that serves a device's addresses: a bus, a bridge, an IOMMU, plain memory."""

    def open(self, transfer: Transfer) -> IoVec:
        """Host views of the ranges, in order. Raises DmaFault, and then nothing is held."""
