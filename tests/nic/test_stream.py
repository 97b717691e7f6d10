"""Frames in a stream: cut anywhere, of any length, against a peer that is a plain socket."""

from __future__ import annotations

import random
import select
import socket
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.stream import FRAME_MAX, FRAME_MIN, PAD_TO, STAGING_LEN, MachineGone, StreamPort
from tests.kit.cuts import cut

HOSTILE = (0, 1, 13, FRAME_MAX + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Wire:
    """A port, the machine's end of its socket, and what was said when the machine went."""

    def __init__(self, mtu: int = 65521) -> None:
        ours, self.machine = socket.socketpair()
        self.machine.setblocking(False)
        self.gone: list[str] = []
        self.port = StreamPort(ours, mtu=mtu, on_gone=self.gone.append)

    def received(self) -> list[bytes]:
        return [bytes(frame.iov) for frame in self.port.frames()]

    def send(self, frame: bytes, headers: tuple[int, ...] = ()) -> bool:
        claim = self.port.claim(len(frame), headers)
        if claim is None:
            return False
        assert claim.iov.copy_from(frame) == len(frame)
        claim.commit(len(frame))
        return True

    def octets(self) -> bytes:
        """All that has come out at the machine's end."""
        out = b""
        try:
            while data := self.machine.recv(1 << 20):
                out += data
        except BlockingIOError:
            pass
        return out

    @property
    def readable(self) -> bool:
        return bool(select.select([self.port.fileno()], [], [], 0)[0])

    def close(self) -> None:
        self.port.close()
        self.machine.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def unframed(octets: bytes) -> list[bytes]:
    frames = []
    while octets:
        (length,) = struct.unpack_from("!I", octets)
        frames.append(octets[4 : 4 + length])
        assert len(frames[-1]) == length
        octets = octets[4 + length :]
    return frames


# From the guest


@settings(max_examples=60)
@given(
    st.lists(st.binary(min_size=FRAME_MIN, max_size=200), max_size=8),
    st.lists(st.integers(0, 1700), max_size=12),
)
def test_cuts_are_invisible(frames: list[bytes], at: list[int]) -> None:
    wire = Wire()
    got = []
    for piece in cut(framed(*frames), at):
        wire.machine.send(piece)
        got += wire.received()
    assert got == frames
    assert wire.received() == []
    assert wire.gone == []
    wire.close()


def test_a_header_may_come_octet_by_octet(wire: Wire) -> None:
    frames = [b"x" * 14, b"y" * 60]
    got = []
    for octet in framed(*frames):
        wire.machine.send(bytes((octet,)))
        got += wire.received()
    assert got == frames


def test_the_largest_frames_pass_many_at_a_time(wire: Wire) -> None:
    rng = random.Random(1)
    frames = [rng.randbytes(size) for size in (FRAME_MAX, FRAME_MIN, FRAME_MAX, 40_000, FRAME_MAX)]
    octets, got = memoryview(framed(*frames)), []
    while octets or wire.readable:
        if octets:
            octets = octets[wire.machine.send(octets[: rng.randrange(1, 90_000)]) :]
        got += wire.received()
    assert got == frames


def test_frames_are_views_of_one_buffer(wire: Wire) -> None:
    wire.machine.send(framed(*(bytes((n,)) * 100 for n in range(5))))
    memory = {id(frame.iov.segments[0].obj) for frame in wire.port.frames()}
    assert len(memory) == 1


def test_frames_that_nobody_took_yet_are_not_lost(wire: Wire) -> None:
    frames = [bytes((n,)) * 1000 for n in range(200)]
    wire.machine.setblocking(True)
    wire.machine.sendall(framed(*frames[:100]))
    got = [bytes(next(wire.port.frames()).iov)]
    wire.machine.sendall(framed(*frames[100:]))
    while len(got) < len(frames):
        got.append(bytes(next(wire.port.frames()).iov))
    assert got == frames


@pytest.mark.parametrize("length", HOSTILE)
def test_a_length_that_no_frame_has_ends_the_connection(wire: Wire, length: int) -> None:
    good = b"g" * 60
    wire.machine.send(framed(good) + struct.pack("!I", length) + framed(good))
    tracemalloc.start()
    frames = wire.received()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frames == [good]
    assert peak < 20_000
    (why,) = wire.gone
    assert str(length) in why
    assert wire.received() == []
    assert wire.port.claim(60) is None


@pytest.mark.parametrize("length", HOSTILE)
def test_a_bad_length_in_pieces(wire: Wire, length: int) -> None:
    for octet in struct.pack("!I", length):
        assert wire.gone == []
        wire.machine.send(bytes((octet,)))
        assert wire.received() == []
    assert len(wire.gone) == 1


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=60)
def test_any_octets_give_frames_or_an_end(octets: bytes, at: list[int]) -> None:
    wire = Wire()
    for piece in cut(octets, at):
        wire.machine.send(piece)
        for frame in wire.received():
            assert FRAME_MIN <= len(frame) <= FRAME_MAX
    assert len(wire.gone) <= 1
    wire.close()


@pytest.mark.parametrize(
    ("octets", "inside"),
    [(b"", False), (framed(b"f" * 60), False), (b"\0\0", True), (framed(b"f" * 60)[:-1], True)],
)
def test_the_end_of_the_stream(wire: Wire, octets: bytes, inside: bool) -> None:
    wire.machine.send(octets)
    wire.machine.close()
    frames = wire.received() + wire.received()
    assert len(frames) == (len(octets) == 64)
    (why,) = wire.gone
    assert ("inside a frame" in why) is inside
    assert not wire.readable  # a port that is gone must not be found ready for ever


def test_a_reset_is_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        machine = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    gone: list[str] = []
    port = StreamPort(ours, on_gone=gone.append)
    machine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    machine.close()
    assert list(port.frames()) == []
    assert "Connection reset" in gone[0]
    port.close()


def test_without_a_listener_the_end_is_raised() -> None:
    ours, machine = socket.socketpair()
    port = StreamPort(ours)
    machine.close()
    with pytest.raises(MachineGone, match="closed its connection"):
        list(port.frames())
    port.close()


# Towards the guest


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.binary(min_size=FRAME_MIN, max_size=200), st.integers(0, 100)), max_size=8
    )
)
def test_frames_arrive_as_they_were_committed(frames: list[tuple[bytes, int]]) -> None:
    """Each claim asks for more than is committed; the rest must not show."""
    wire = Wire()
    for frame, more in frames:
        claim = wire.port.claim(len(frame) + more, (14,))
        assert claim is not None
        assert len(claim.iov) == len(frame) + more
        claim.iov.copy_from(frame + b"\xdb" * more)
        claim.commit(len(frame))
    wire.port.poll(0.0)
    assert unframed(wire.octets()) == [f.ljust(PAD_TO, b"\0") for f, _ in frames]
    wire.close()


def test_headers_are_segments_of_their_own(wire: Wire) -> None:
    claim = wire.port.claim(1514, (14, 20, 32))
    assert claim is not None
    assert list(map(len, claim.iov)) == [14, 20, 32, 1448]
    claim = wire.port.claim(54, (14, 20, 20))
    assert claim is not None
    assert list(map(len, claim.iov)) == [14, 20, 20]


def test_a_cancelled_claim_leaves_no_trace(wire: Wire) -> None:
    wire.send(b"a" * 100)
    claim = wire.port.claim(500)
    assert claim is not None
    claim.iov.copy_from(b"\xdb" * 500)
    claim.cancel()
    wire.send(b"b" * 14)
    wire.port.poll(0.0)
    assert unframed(wire.octets()) == [b"a" * 100, (b"b" * 14).ljust(PAD_TO, b"\0")]


def test_one_turn_is_one_batch(wire: Wire) -> None:
    for _ in range(5):
        wire.send(b"f" * 1000)
    assert wire.octets() == b""
    assert wire.port.poll(0.0) is None
    assert len(unframed(wire.octets())) == 5


def test_a_large_batch_does_not_wait_for_the_turn_to_end(wire: Wire) -> None:
    for _ in range(3):
        wire.send(b"f" * 65_000)
    assert wire.octets()


def test_a_machine_that_does_not_read_stops_the_claims(wire: Wire) -> None:
    """And costs nothing meanwhile: the descriptor is silent until there is room."""
    rng = random.Random(2)
    sent, got = [], b""
    for _ in range(3):
        while wire.send(frame := rng.randbytes(rng.randrange(60, 65_000))):
            sent.append(frame)
            assert sum(map(len, sent)) < len(got) + STAGING_LEN + (8 << 20)
        assert wire.port.poll(0.0) is None
        assert not wire.readable
        assert wire.received() == []  # trying again changes nothing
        assert not wire.readable
        while chunk := wire.octets():
            got += chunk
            assert wire.readable or wire.port.claim(60) is not None
            assert wire.received() == []
        assert not wire.readable
        wire.port.poll(0.0)
    got += wire.octets()
    assert unframed(got) == sent


def test_frames_come_in_while_frames_wait_to_go_out(wire: Wire) -> None:
    while wire.send(b"o" * 60_000):
        pass
    wire.machine.send(framed(b"i" * 60))
    assert wire.readable
    assert wire.received() == [b"i" * 60]
    assert wire.port.claim(60) is None


def test_a_machine_that_goes_while_frames_wait(wire: Wire) -> None:
    while wire.send(b"o" * 60_000):
        pass
    wire.machine.close()
    assert wire.readable
    assert wire.received() == []
    assert len(wire.gone) == 1
    assert wire.port.poll(0.0) is None
    assert not wire.readable


def test_writing_to_a_machine_that_left_is_told_by_reading(wire: Wire) -> None:
    wire.machine.close()
    wire.send(b"f" * 60)
    wire.port.poll(0.0)
    assert wire.gone == []
    assert wire.received() == []
    assert len(wire.gone) == 1


def test_a_claim_beyond_the_mtu_is_our_mistake() -> None:
    wire = Wire(mtu=1500)
    assert wire.port.max_frame == 1514
    with pytest.raises(ValueError, match="1515"):
        wire.port.claim(1515)
    wire.close()
