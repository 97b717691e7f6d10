"""A port under the network: order, room, loss."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from slirp.host.attachment import BACKLOG_MAX, Attachment, payload_views, write_headers
from tests.kit.port import POISON, MemoryPort


@pytest.fixture
def port() -> Iterator[MemoryPort]:
    made = MemoryPort()
    yield made
    made.close()


class Waiter:
    """Somebody who wants room; with `frames` it sends that many when it has some."""

    def __init__(self, attachment: Attachment, frames: int = 0) -> None:
        self.attachment = attachment
        self.frames = frames
        self.resumed = 0

    def resume(self, now: float) -> None:
        self.resumed += 1
        while self.frames:
            if not self.attachment.try_send((b"from a waiter",)):
                self.attachment.wait(self)
                return
            self.frames -= 1


def test_a_frame_with_headers_and_payload(port: MemoryPort) -> None:
    attachment = Attachment(port, "name", 1)
    attachment.send((b"ether", b"ip"), (memoryview(b"pay"), memoryview(b"load")), 7)
    attachment.send((b"alone",))
    assert port.take() == [b"etherippayload", b"alone"]
    assert attachment.frames_out == 2


def test_frames_wait_in_order_and_beyond_the_bound_are_lost(port: MemoryPort) -> None:
    attachment = Attachment(port, "name", 1)
    port.room = 0
    payload = bytearray(b"....")
    for number in range(BACKLOG_MAX + 5):
        payload[:] = number.to_bytes(4, "big")
        attachment.send((b"no",), (memoryview(payload),), 4)
    payload[:] = b"gone"  # what waits has its own copy
    assert attachment.lost == 5
    assert attachment.congested
    port.room = 10
    attachment.room(1.0)
    attachment.send((b"late",))  # behind those that wait
    assert len(port.take()) == 10
    port.room = None
    attachment.room(1.0)
    frames = port.take()
    assert frames[-1] == b"late"
    assert [int.from_bytes(f[2:], "big") for f in frames[:-1]] == list(range(10, BACKLOG_MAX))
    assert not attachment.congested


def test_who_waits_goes_on_after_the_backlog(port: MemoryPort) -> None:
    attachment = Attachment(port, "name", 1)
    port.room = 0
    attachment.send((b"backlog",))
    waiters = [Waiter(attachment, 2), Waiter(attachment, 2)]
    for waiter in waiters:
        attachment.wait(waiter)
        attachment.wait(waiter)
    attachment.room(1.0)
    assert [waiter.resumed for waiter in waiters] == [0, 0], "nobody overtakes the backlog"
    port.room = 2
    attachment.room(1.0)
    assert port.take() == [b"backlog", b"from a waiter"]
    assert [waiter.frames for waiter in waiters] == [1, 2]
    port.room = 1
    attachment.room(1.0)
    assert [waiter.frames for waiter in waiters] == [1, 1], "they take turns"
    port.room = None
    attachment.room(1.0)
    assert [waiter.frames for waiter in waiters] == [0, 0]
    assert not attachment.congested


def test_who_is_forgotten_is_not_resumed(port: MemoryPort) -> None:
    attachment = Attachment(port, "name", 1)
    waiter = Waiter(attachment)
    attachment.wait(waiter)
    attachment.forget(waiter)
    attachment.forget(waiter)
    attachment.room(1.0)
    assert not waiter.resumed


def test_after_the_port_has_left_there_is_no_room(port: MemoryPort) -> None:
    attachment = Attachment(port, "name", 1)
    port.room = 0
    attachment.send((b"never",))
    waiter = Waiter(attachment, 1)
    attachment.wait(waiter)
    port.room = None
    attachment.leave(1.0)
    attachment.send((b"nor this",))
    attachment.room(1.0)
    assert not port.sent
    assert waiter.frames == 1


@given(
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4),
    st.integers(0, 30),
    st.integers(1, 40),
    st.booleans(),
)
def test_headers_and_payload_however_the_claim_is_cut(
    headers: list[bytes], room: int, piece: int, asked: bool
) -> None:
    lengths = tuple(map(len, headers))
    size = sum(lengths) + room
    port = MemoryPort(piece=piece)
    claim = port.claim(size, lengths if asked else ())
    assert claim is not None
    write_headers(claim.iov.segments, headers, lengths)
    views = payload_views(claim.iov.segments, lengths, size)
    assert len(IoVec(views)) == room
    for view in views:
        view[:] = b"p" * len(view)
    assert bytes(claim.iov) == b"".join(headers) + b"p" * room
    assert bytes((POISON,)) not in bytes(claim.iov) or any(POISON in h for h in headers)
    claim.cancel()
    port.close()
