from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nic.vfio_user.intx import CLOSED, Intx


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def signals(fd: int) -> int:
    try:
        return int.from_bytes(os.read(fd, 8), "little")
    except BlockingIOError:
        return 0


def connected(event: int) -> Intx:
    intx = Intx()
    intx.connect(os.dup(event))
    return intx


def test_a_level_is_told_once_until_it_is_unmasked(event: int) -> None:
    intx = connected(event)
    intx.set_level(True)
    intx.set_level(True)
    assert signals(event) == 1
    intx.unmask()
    assert signals(event) == 1  # still up
    intx.set_level(False)
    intx.unmask()
    assert signals(event) == 0
    intx.set_level(True)
    assert signals(event) == 1
    intx.connect(CLOSED)


def test_a_masked_line_says_nothing(event: int) -> None:
    intx = connected(event)
    intx.mask()
    intx.set_level(True)
    assert signals(event) == 0
    intx.unmask()
    assert signals(event) == 1
    intx.connect(CLOSED)


def test_who_connects_later_hears_of_it(event: int) -> None:
    intx = Intx()
    intx.set_level(True)
    intx.trigger()
    assert signals(event) == 0
    intx.connect(os.dup(event))
    assert signals(event) == 1
    intx.trigger()
    assert signals(event) == 1
    intx.connect(CLOSED)
    intx.unmask()
    assert signals(event) == 0
