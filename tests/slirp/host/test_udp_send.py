"""Datagrams to the kernel: whose failure it is, runs cut, queues that are counted."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.host import udp_send
from slirp.host.udp_send import cut, dropped_by_kernel, send_datagrams, widen_queue
from tests.kit.cuts import cuts

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        for sock in (near, far):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
        yield near, far


def views(*octets: bytes) -> tuple[memoryview, ...]:
    return tuple(map(memoryview, octets))


class Failing(socket.socket):
    """Fails as often as it is told to."""

    failures: list[int]
    runs_failures: list[int]

    def sendmsg(self, buffers: Any, ancillary: Any = (), *rest: Any) -> int:
        ours = self.runs_failures if ancillary else self.failures
        if ours:
            raise OSError(ours.pop(0), "as told")
        return super().sendmsg(buffers, ancillary, *rest)


@pytest.fixture
def failing() -> Iterator[Failing]:
    with Failing(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.failures, sock.runs_failures = [], []
        yield sock


def test_a_datagram_in_pieces(pair: Pair) -> None:
    near, far = pair
    assert send_datagrams(near, views(b"ab", b"", b"cd"), 0, far.getsockname()) == 0
    assert far.recv(10) == b"abcd"


def test_a_failure_that_does_not_stay_was_an_earlier_ones(failing: Failing, pair: Pair) -> None:
    to = pair[1].getsockname()
    failing.failures = [errno.ECONNREFUSED]
    assert send_datagrams(failing, views(b"x"), 0, to) == 0
    assert pair[1].recv(10) == b"x"
    failing.failures = [errno.ECONNREFUSED, errno.ENETUNREACH]
    assert send_datagrams(failing, views(b"x"), 0, to) == errno.ENETUNREACH


def test_a_full_queue_is_not_tried_again(failing: Failing, pair: Pair) -> None:
    failing.failures = [errno.EAGAIN]
    assert send_datagrams(failing, views(b"x"), 0, pair[1].getsockname()) == errno.EAGAIN


@pytest.mark.parametrize("failure", udp_send.REFUSALS)
def test_a_run_that_is_refused_goes_one_by_one(failure: int, failing: Failing, pair: Pair) -> None:
    failing.runs_failures = [failure] * 2
    assert send_datagrams(failing, views(b"aab", b"bc"), 2, pair[1].getsockname()) == 0
    assert [pair[1].recv(10) for _ in range(3)] == [b"aa", b"bb", b"c"]
    failing.runs_failures = [failure] * 2
    failing.failures = [errno.EHOSTUNREACH] * 2
    found = send_datagrams(failing, views(b"aabb"), 2, pair[1].getsockname())
    assert found == errno.EHOSTUNREACH, "of the first; the second went out"
    assert pair[1].recv(10) == b"bb"


def test_a_run_without_a_route_stays_one_failure(failing: Failing, pair: Pair) -> None:
    failing.runs_failures = [errno.ENETUNREACH] * 2
    found = send_datagrams(failing, views(b"aabb"), 2, pair[1].getsockname())
    assert found == errno.ENETUNREACH
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(10)


@given(cuts(min_size=1), st.integers(1, 100))
def test_a_run_is_cut_where_it_was_joined(octets: tuple[bytes, Any], size: int) -> None:
    data, iov = octets
    pieces = [b"".join(piece) for piece in cut(iov.segments, size)]
    assert b"".join(pieces) == data
    assert {len(piece) for piece in pieces[:-1]} <= {size}
    assert 0 < len(pieces[-1]) <= size


def test_drops_are_counted_by_the_kernel(pair: Pair) -> None:
    near, far = pair
    assert dropped_by_kernel(far) == 0
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(50):
        near.sendto(bytes(500), far.getsockname())
    far.setblocking(False)
    came = 0
    while True:
        try:
            far.recv(1000)
        except BlockingIOError:
            break
        came += 1
    assert came + dropped_by_kernel(far) == 50
    far.close()
    assert dropped_by_kernel(far) == 0


def test_a_wider_queue_takes_more_than_the_default(pair: Pair) -> None:
    near, far = pair
    widen_queue(far)
    for _ in range(400):
        near.sendto(b"x", far.getsockname())
    assert dropped_by_kernel(far) == 0
