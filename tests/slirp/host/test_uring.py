"""The ring itself, judged by the kernel: order, results, cancellation, a kernel that is short."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from slirp.host import uring
from slirp.host.uring import CANCEL, Ring
from slirp.linux.syscalls import libc
from tests.kit.need import missing
from tests.slirp.host.conftest import open_fds

ENTRIES = 4


@pytest.fixture
def ring() -> Iterator[Ring]:
    if reason := uring.why_not():
        missing(reason)
    made = Ring(ENTRIES)
    yield made
    while made.under_way:
        made.take(wait=True)
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_many_times_around_both_queues(ring: Ring, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    for number in range(10 * ENTRIES):
        os.write(write_end, number.to_bytes(2, "big"))
        high, low = bytearray(1), bytearray(1)
        asked = ring.readv(read_end, [memoryview(high), memoryview(low)], 0)
        ring.submit()
        assert ring.take(wait=True) == (asked, 2)
        assert high + low == number.to_bytes(2, "big")
    assert ring.under_way == 0


def test_more_than_fit_are_submitted_on_the_way(ring: Ring, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.write(write_end, bytes(range(2 * ENTRIES)))
    areas = [bytearray(1) for _ in range(2 * ENTRIES)]
    asked = {ring.readv(read_end, [memoryview(area)], 0) for area in areas}
    ring.submit()
    assert {ring.take(wait=True) for _ in areas} == {(request_id, 1) for request_id in asked}
    assert sorted(b"".join(areas)) == list(range(2 * ENTRIES))


def test_writes_and_flushes(ring: Ring, tmp_path: Any) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    views = [memoryview(bytearray(b"in ")), memoryview(bytearray(b"place"))]
    written = ring.writev(fd, views, 7)
    ring.submit()
    assert ring.take(wait=True) == (written, 8)
    flushed = ring.fsync(fd)
    ring.submit()
    assert ring.take(wait=True) == (flushed, 0)
    assert os.pread(fd, 100, 0) == bytes(7) + b"in place"
    os.close(fd)


def test_an_error_is_an_errno_below_0(ring: Ring) -> None:
    asked = ring.readv(1 << 20, [memoryview(bytearray(1))], 0)
    ring.submit()
    assert ring.take(wait=True) == (asked, -errno.EBADF)


def test_nothing_to_take(ring: Ring) -> None:
    assert ring.ready() == 0
    with pytest.raises(BlockingIOError):
        ring.take()


def test_what_is_cancelled_still_completes(ring: Ring, pipe: tuple[int, int]) -> None:
    asked = ring.readv(pipe[0], [memoryview(bytearray(1))], 0)
    ring.submit()
    assert ring.ready() == 0
    ring.cancel(asked)
    ring.submit()
    results = dict(ring.take(wait=True) for _ in range(2))
    assert results == {asked: -errno.ECANCELED, CANCEL: 0}


def test_the_bell_rings_for_a_completion(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.readv(pipe[0], [memoryview(bytearray(1))], 0)
    ring.submit()
    assert select.select([ring], [], [], 0)[0] == []
    os.write(pipe[1], b"x")
    assert select.select([ring], [], [], 10)[0] == [ring]
    ring.clear_bell()
    assert ring.ready() == 1


class ShortKernel:
    """A C library whose kernel has no memory for requests, so many times."""

    def __init__(self, times: int, number: int) -> None:
        self.times = times
        self.number = number

    def syscall(self, *args: Any) -> int:
        if self.times:
            self.times -= 1
            ctypes.set_errno(self.number)
            return -1
        result: int = libc.syscall(*args)
        return result


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_what_the_kernel_has_no_memory_for_is_tried_again(
    ring: Ring, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    os.write(pipe[1], b"x")
    monkeypatch.setattr(uring, "libc", ShortKernel(2, number))
    asked = ring.readv(pipe[0], [memoryview(bytearray(1))], 0)
    ring.submit()
    assert select.select([ring], [], [], 0)[0] == [ring], "so that the loop comes back"
    ring.clear_bell()
    assert ring.ready() == 0
    assert select.select([ring], [], [], 0)[0] == [ring]
    assert ring.ready() == 1
    assert ring.take() == (asked, 1)


def test_other_refusals_are_errors(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.fsync(0)
    with monkeypatch.context() as patched:
        patched.setattr(uring, "libc", ShortKernel(1, errno.EPERM))
        with pytest.raises(PermissionError):
            ring.submit()
    ring.submit()


def test_nothing_is_left_open() -> None:
    if reason := uring.why_not():
        missing(reason)
    before = open_fds()
    Ring(ENTRIES).close()
    assert open_fds() == before
