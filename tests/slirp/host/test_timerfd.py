"""Timers that are descriptors."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest

from slirp.host import timerfd


@pytest.fixture
def timer() -> Iterator[int]:
    fd = timerfd.create()
    yield fd
    os.close(fd)


def rings(fd: int, within: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], within)[0])


def test_it_is_not_set_at_first(timer: int) -> None:
    assert not rings(timer)


@pytest.mark.parametrize("at", [0.0, 0.25, 1.0, -1.0])
def test_the_past_rings_at_once(timer: int, at: float) -> None:
    timerfd.set_at(timer, at)
    assert rings(timer, 5)
    timerfd.clear(timer)
    assert not rings(timer)
    timerfd.clear(timer)


def test_it_rings_at_its_instant_and_not_before(timer: int) -> None:
    at = time.monotonic() + 0.02
    timerfd.set_at(timer, at)
    assert rings(timer, 5)
    assert time.monotonic() >= at


def test_it_can_be_moved_and_taken_back(timer: int) -> None:
    timerfd.set_at(timer, 0.0)
    timerfd.set_at(timer, time.monotonic() + 1000)
    assert not rings(timer)
    timerfd.set_at(timer, 0.0)
    timerfd.set_at(timer, None)
    assert not rings(timer, 0.01)


def test_it_is_not_inherited(timer: int) -> None:
    assert not os.get_inheritable(timer)
    assert not os.get_blocking(timer)
