"""The bus: who answers, and ids."""

from __future__ import annotations

import pytest

from dma.iovec import IoVec
from dma.scsi.bus import ScsiBus
from dma.scsi.disk import Disk
from dma.scsi.target import Phase, Target
from dma.transfer import CompletionQueue, Transfer
from tests.kit.scsi import MemoryImage


class Nobody:
    queue = CompletionQueue()

    def open(self, transfer: Transfer) -> IoVec:
        return IoVec()

    def requested(self) -> None:
        raise AssertionError("nobody asked")


def test_who_answers() -> None:
    target = Target(Disk(MemoryImage(bytes(512))))
    bus = ScsiBus({2: target})
    bus.attach(Nobody())
    assert bus.select(0, attention=True) is None
    assert bus.select(2, attention=True) is target
    assert target.phase is Phase.MESSAGE_OUT
    bus.reset()
    assert target.phase is None
    assert bus.select(2, attention=False) is target
    assert target.phase is Phase.COMMAND


def test_an_empty_bus_requests_nothing() -> None:
    bus = ScsiBus({})
    bus.requested()
    bus.reset()


@pytest.mark.parametrize("number", [-1, 8])
def test_ids(number: int) -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        ScsiBus({number: Target(Disk(MemoryImage(b"")))})
