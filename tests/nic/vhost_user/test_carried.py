"""Another port goes on with a front-end's connection: between any two things that happen to it."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.vhost_user.port import VhostUserPort
from tests.kit.heir import moved
from tests.nic.vhost_user.test_port import FRAME, KINDS, MODERN, PACKED, Wire
from tests.slirp.host.conftest import open_fds


def hand_over(wire: Wire) -> None:
    """From here on another port turns the wire."""
    wire.port = moved(wire.port, lambda sock: VhostUserPort(sock, on_gone=wire.gone.append))


@pytest.fixture(params=list(KINDS))
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    wire = Wire(KINDS[request.param])
    yield wire
    wire.close()


def test_no_descriptor_is_left(wire: Wire) -> None:
    gc.collect()
    before = len(open_fds())
    for _ in range(3):
        hand_over(wire)
    gc.collect()  # a mapping has a descriptor, until it is gone
    assert len(open_fds()) == before


def deliver(wire: Wire, frame: bytes) -> bool:
    claim = wire.port.claim(len(frame), (14,))
    if claim is None:
        return False
    claim.iov.copy_from(frame)
    claim.commit(len(frame))
    return True


def test_frames_both_ways_before_and_after(wire: Wire) -> None:
    for number in range(4):
        wire.front.receive.post(2048)
        wire.front.receive.post(2048)
        frame = bytes((number,)) * 60
        assert deliver(wire, frame)
        wire.front.transmit.send(frame)
        hand_over(wire)  # what came is shown, and who kicked is heard
        wire.turn()
        assert [data for _, data in wire.front.receive.collect()] == [frame]
        assert wire.sent.pop() == frame
    assert not wire.gone


def test_room_that_was_claimed_is_there_again(wire: Wire) -> None:
    wire.front.receive.post(2048)
    claim = wire.port.claim(60)
    assert claim is not None
    hand_over(wire)
    claim.commit(60)  # without effect: it is void
    wire.turn()
    assert wire.front.receive.collect() == []
    assert deliver(wire, FRAME)
    wire.turn()
    assert [data for _, data in wire.front.receive.collect()] == [FRAME]


def test_the_one_that_gave_it_away_may_go_on(wire: Wire) -> None:
    wire.front.receive.post(2048)
    wire.front.transmit.send(FRAME)
    for fd in made(wire):
        os.close(fd)
    wire.turn()
    assert wire.sent == [FRAME]
    assert deliver(wire, FRAME)
    wire.turn()
    assert [data for _, data in wire.front.receive.collect()] == [FRAME]


@pytest.mark.parametrize("features", [MODERN, PACKED])
def test_the_record_of_buffers_in_flight_goes_along(features: int) -> None:
    wire = Wire(started=False)
    wire.front.negotiate(features)
    wire.front.keep_inflight()
    wire.front.start()
    gc.collect()
    before = len(open_fds())
    for number in range(3):
        frame = bytes((number,)) * 60
        wire.front.receive.post(2048)
        wire.front.receive.post(2048)
        assert wire.port.claim(60) is not None
        hand_over(wire)
        assert deliver(wire, frame)
        wire.front.transmit.send(frame)
        wire.turn()
        assert [data for _, data in wire.front.receive.collect()] == [frame]
        assert wire.sent.pop() == frame
        assert any(os.pread(wire.front.inflight_fd, 16, 0)), "it is kept still"
    gc.collect()
    assert len(open_fds()) == before
    wire.close()


def made(wire: Wire) -> list[int]:
    """What another port would get; nobody takes it."""
    fds: list[int] = []

    def place(fd: int) -> int:
        fds.append(os.dup(fd))
        return len(fds) - 1

    wire.port.carried(place)
    return fds


def test_half_a_message() -> None:
    wire = Wire()
    payload = struct.pack("=II", 0, 0)
    whole = struct.pack("=III", 18, 1, len(payload)) + payload
    for cut in (5, 12, 15):
        wire.front.sock.send(whole[:cut])
        wire.turn()
        hand_over(wire)
        wire.front.sock.send(whole[cut:])
        wire.turn()
        assert wire.port.claim(60) is None, "its ring is disabled now"
        wire.front.send(18, struct.pack("=II", 0, 1))
        wire.front.receive.post(2048)
        wire.turn()
        assert deliver(wire, FRAME)
    wire.close()


def test_a_front_end_that_says_no_more_than_hello() -> None:
    wire = Wire(started=False)
    hand_over(wire)
    wire.front.negotiate(MODERN)
    hand_over(wire)
    wire.front.start()
    wire.front.transmit.send(FRAME)
    wire.turn()
    assert wire.sent == [FRAME]
    wire.close()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([MODERN, PACKED]), st.lists(st.sampled_from("rtph"), max_size=60))
def test_any_order(features: int, steps: list[str]) -> None:
    """Frames go in order and none is lost, wherever the port is another one."""
    wire = Wire(features, size=8)
    expected_in: list[bytes] = []
    expected_out: list[bytes] = []
    got: list[bytes] = []
    for number, step in enumerate(steps):
        frame = bytes((number,)) * 64
        if step == "r" and deliver(wire, frame):
            expected_in.append(frame)
        elif step == "t" and wire.front.transmit.room > 1:
            wire.front.transmit.send(frame)
            wire.front.transmit.used()
            expected_out.append(frame)
        elif step == "p" and wire.front.receive.room > 1:
            wire.front.receive.post(128)
        elif step == "h":
            hand_over(wire)
        if step in "rt":
            wire.turn()
            got += [data for _, data in wire.front.receive.collect()]
    wire.turn()
    got += [data for _, data in wire.front.receive.collect()]
    assert (got, wire.sent) == (expected_in, expected_out)
    wire.close()


@pytest.mark.parametrize("features", [MODERN, PACKED])
def test_a_record_that_cannot_be_ends_its_machine_and_not_who_asked(features: int) -> None:
    """A front-end can write there at any time, and it is read as rings are started again."""
    wire = Wire(started=False)
    wire.front.negotiate(features)
    wire.front.keep_inflight()
    wire.front.start()
    os.pwrite(wire.front.inflight_fd, b"\2\0", 8)  # its version
    fds: list[int] = []

    def place(fd: int) -> int:
        fds.append(fd)
        return len(fds) - 1

    values = wire.port.carried(place)
    ours, theirs = socket.socketpair()
    heir = VhostUserPort(ours)
    with theirs, pytest.raises(ValueError, match="version 2"):
        heir.resume(values, fds)
    heir.close()
    wire.turn()
    assert len(wire.gone) == 1
    assert "version 2" in wire.gone[0]
    wire.close()
