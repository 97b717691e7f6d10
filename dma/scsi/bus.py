"""A SCSI bus: one initiator, and targets by id.

A bus is what the two sides know each other by. The initiator attaches itself and selects; the
target that answers finds on the bus where its data go (`north`, towards memory), whose queue runs
its completions, and whom to tell that it requests again.

`north` is the initiator, unless someone who wants to watch puts a DMA path around it: what is
opened there has ranges in the unit's own space, the first stage of a disk's transfer.

Does not do: arbitration (one initiator always wins), reselection, more than eight ids, time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from dma.iovec import IoVec
from dma.scsi.target import Target
from dma.transfer import CompletionQueue, DmaPath, Transfer

IDS: Final = 8


class Initiator(Protocol):
    """The chip that selects targets. Is a DMA path for them."""

    queue: CompletionQueue

    def open(self, transfer: Transfer) -> IoVec: ...

    def requested(self) -> None:
        """The target asserts REQ, after a while in which it did not."""


class ScsiBus:
    """Targets by id. Is a TargetBus."""

    north: DmaPath
    queue: CompletionQueue

    def __init__(self, targets: Mapping[int, Target]) -> None:
        if not all(0 <= number < IDS for number in targets):
            raise ValueError(f"SCSI ids are 0 to {IDS - 1}: {sorted(targets)}")
        self._targets = dict(targets)
        self._initiator: Initiator | None = None

    def attach(self, initiator: Initiator) -> None:
        self.north = initiator
        self.queue = initiator.queue
        self._initiator = initiator

    def select(self, number: int, *, attention: bool) -> Target | None:
        """The target of this id, now connected; None: nobody answers."""
        target = self._targets.get(number)
        if target is not None:
            target.select(self, attention=attention)
        return target

    def requested(self) -> None:
        if self._initiator is not None:
            self._initiator.requested()

    def reset(self) -> None:
        """RST."""
        for target in self._targets.values():
            target.reset()
