"""One connection, both ways, whatever comes in which order: the bytes that arrive are those sent.

Hypothesis plays the host, the guest, the guest's port and the clock: it sends, loses, withholds
acknowledgements, closes the window, takes room away, and lets time pass. Then everybody behaves,
and both streams have to arrive whole; or one side ends it in the middle of all that, in order or
not, and what that side had sent has to arrive before the end does.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slirp.host import tcp_flow
from slirp.host.tcp_farewell import LOOK_AFTER
from tests.kit.clock import Clock
from tests.kit.guest import ACK, GATEWAY, PSH, Lab, Stream
from tests.kit.port import MemoryPort

pytestmark = pytest.mark.usefixtures("every_endpoint")

PATTERN = bytes(n * 7 % 251 for n in range(1 << 17))

ACTIONS = st.one_of(
    st.tuples(st.just("host sends"), st.integers(1, 9000)),
    st.tuples(st.just("guest sends"), st.integers(1, 4000)),
    st.tuples(st.just("guest sends again"), st.integers(0, 3000)),
    st.tuples(st.just("frames are lost"), st.integers(1, 3)),
    st.tuples(st.just("room"), st.sampled_from([0, 1, 2, 5, 1000])),
    st.tuples(st.just("window"), st.sampled_from([0, 1, 700, 4000, 65535])),
    st.tuples(st.just("acknowledge"), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([0.002, 0.3, 3.0, 40.0])),
    st.tuples(st.just("turn"), st.integers(1, 3)),
)


class Play:
    """The connection, and what each side has sent."""

    def __init__(self, piece: int, listener: socket.socket) -> None:
        self.clock = Clock()
        self.lab = Lab(MemoryPort(piece=piece), clock=self.clock)
        self.stream: Stream = self.lab.guest.connect((GATEWAY, listener.getsockname()[1]))
        self.base = self.stream.seq
        self.peer, _ = listener.accept()
        self.peer.setblocking(False)
        # Nagle's algorithm would hold bytes back for real milliseconds, which do not pass here.
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.from_host = 0
        self.from_guest = 0
        self.at_host = bytearray()
        self.host_saw_the_end = False

    def turn(self) -> None:
        self.lab.network.poll(0)
        self.lab.guest.read()
        if self.peer.fileno() < 0 or self.host_saw_the_end:
            return
        with contextlib.suppress(BlockingIOError):
            try:
                data = self.peer.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            self.at_host += data
            self.host_saw_the_end = not data

    def do(self, action: str, value: int) -> None:
        stream = self.stream
        match action:
            case "host sends":
                view = memoryview(PATTERN)[self.from_host : self.from_host + value]
                with contextlib.suppress(BlockingIOError):
                    self.from_host += self.peer.send(view)
            case "guest sends":
                room = stream.una + stream.peer_window - stream.seq
                size = min(value, room, len(PATTERN) - self.from_guest)
                for at in range(0, size, 1460):
                    piece = PATTERN[self.from_guest : self.from_guest + min(1460, size - at)]
                    stream.put(ACK | PSH, piece)
                    self.from_guest += len(piece)
            case "guest sends again":
                start = max(0, self.from_guest - value)
                again = PATTERN[start : min(start + 1460, self.from_guest)]
                stream.put(ACK, again, seq=self.base + start)
            case "frames are lost":
                self.lab.network.poll(0)
                del self.lab.port.sent[:value]
            case "room":
                self.lab.port.grant(value)
            case "window":
                stream.window = value
                stream.put(ACK)
            case "acknowledge":
                stream.auto_ack = bool(value)
            case "time":
                self.clock.advance(value)
            case "turn":
                for _ in range(value):
                    self.turn()

    def end(self) -> None:
        """From now on all behave."""
        self.lab.port.grant(None)
        self.stream.auto_ack = True
        self.stream.window = 65535
        self.stream.put(ACK)
        for turn in range(200):
            self.lab.arrive()
            self.turn()
            if self.whole():
                return
            self.do("guest sends again", self.base + self.from_guest - self.stream.una)
            # A round trip that took 40 s, for all that is known, makes for a long timeout.
            self.clock.advance(0.05 if turn < 100 else 30.0)

    def break_off(self, end: str) -> None:
        """One side ends it; from now on all behave."""
        self.lab.port.grant(None)
        self.stream.auto_ack = True
        self.stream.window = 65535
        if end == "guest resets":
            self.stream.reset()
            step = LOOK_AFTER
        else:
            self.peer.close()  # in order, or by a reset where something is unread
            self.stream.put(ACK)
            step = 0.2
        for _ in range(2000):
            self.lab.arrive()
            self.turn()
            told = self.stream.got_reset or self.stream.got_fin
            if self.host_saw_the_end or (told and end != "guest resets"):
                return  # a guest that has reset and acknowledges on is reset in its turn
            self.lab.network.poll(0.001)  # the host's kernel has a clock of its own
            self.clock.advance(step)

    def whole(self) -> bool:
        return (
            len(self.at_host) == self.from_guest
            and len(self.stream.received) == self.from_host
            and self.stream.una == self.stream.seq
        )

    def part(self, guest_first: bool) -> None:
        """Both close, one after the other; nothing of the connection is left."""
        ends: list[Callable[[], None]] = [
            self.stream.finish,
            lambda: self.peer.shutdown(socket.SHUT_WR),
        ]
        for end in ends if guest_first else reversed(ends):
            end()
            self.turn()
        for _ in range(20):
            self.lab.arrive()
            self.turn()
            self.clock.advance(0.5)
        assert self.stream.got_fin
        assert self.lab.network.stats()["tcp"]["flows"] == 0
        assert self.lab.network._loop.deadline() is None

    def close(self) -> None:
        self.peer.close()
        self.lab.close()


@contextlib.contextmanager
def played(piece: int, *, peek_offset: bool = True) -> Iterator[Play]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.MonkeyPatch.context() as patch,
    ):
        if not peek_offset:
            patch.setattr(tcp_flow, "peek_offset_works", lambda family: False)
        play = Play(piece, listener)
        try:
            yield play
        finally:
            play.close()


# What was to be sent again when the guest had no room was forgotten once it had some.
NO_ROOM_TO_SEND_AGAIN = [
    ("host sends", 1), ("frames are lost", 1), ("room", 0), ("window", 0), ("window", 1),
    ("frames are lost", 1), ("time", 0.3), ("frames are lost", 1),
]  # fmt: skip


@settings(max_examples=150)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([0, 9, 500]), st.booleans())
@example(NO_ROOM_TO_SEND_AGAIN, 0, True)
def test_both_streams_arrive_whole(
    actions: list[tuple[str, int]], piece: int, peek_offset: bool
) -> None:
    with played(piece, peek_offset=peek_offset) as play:
        for action, value in actions:
            play.do(action, value)
        play.end()
        assert not play.stream.got_reset
        assert play.at_host == PATTERN[: play.from_guest]
        assert play.stream.received == PATTERN[: play.from_host]
        assert play.whole()
        play.part(guest_first=bool(len(actions) & 1))
        assert not play.lab.malformed()


SHORT = ACTIONS.filter(lambda action: action[0] != "time" or action[1] < 1)


@settings(max_examples=150)
@given(
    st.lists(SHORT, max_size=20),
    st.sampled_from(["host closes", "guest resets"]),
    st.booleans(),
)
def test_what_was_sent_arrives_before_the_end(
    actions: list[tuple[str, int]], end: str, peek_offset: bool
) -> None:
    with played(0, peek_offset=peek_offset) as play:
        for action, value in actions:
            play.do(action, value)
        play.break_off(end)
        if end == "guest resets":
            assert play.host_saw_the_end
            assert play.at_host == PATTERN[: play.from_guest]
        else:
            assert play.stream.got_reset or play.stream.got_fin
            assert play.stream.received == PATTERN[: play.from_host]
        assert not play.lab.malformed()
