from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from nic.doorbell import Doorbell


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.fixture(params=["eventfd", "pipe"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorbell]:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd")
    doorbell = Doorbell()
    yield doorbell
    doorbell.close()


def test_readable_exactly_while_set(bell: Doorbell) -> None:
    fd = bell.fileno()
    assert not is_readable(fd)
    bell.set()
    bell.set()
    assert is_readable(fd)
    bell.clear()
    assert not is_readable(fd)
    bell.clear()
    bell.set()
    assert is_readable(fd)


def test_set_before_anyone_asked_for_a_descriptor(bell: Doorbell) -> None:
    bell.set()
    assert is_readable(bell.fileno())


def test_cleared_before_anyone_asked_for_a_descriptor(bell: Doorbell) -> None:
    bell.set()
    bell.clear()
    assert not is_readable(bell.fileno())


def test_closed_twice(bell: Doorbell) -> None:
    fd = bell.fileno()
    bell.close()
    bell.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
