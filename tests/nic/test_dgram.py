"""A frame a datagram: the machine's end is a plain socket, the kernel's queues are real."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.dgram import FRAMES_PER_CALL, RETRY_AFTER, DgramPort
from nic.port import Shortage
from nic.stream import FRAME_MAX, FRAME_MIN, PAD_TO


def received(port: DgramPort) -> list[bytes]:
    return [bytes(frame.iov) for frame in port.frames()]


def send(port: DgramPort, frame: bytes) -> bool:
    claim = port.claim(len(frame))
    if claim is None:
        return False
    claim.iov.copy_from(frame)
    claim.commit(len(frame))
    return True


def readable(port: DgramPort) -> bool:
    return bool(select.select([port.fileno()], [], [], 0)[0])


def taken(machine: socket.socket) -> list[bytes]:
    frames = []
    while select.select([machine], [], [], 0)[0]:
        frames.append(machine.recv(70_000))
    return frames


Pair = tuple[DgramPort, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A port whose socket is connected to the machine's."""
    ours, machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = DgramPort(ours, mtu=65521)
    yield port, machine
    port.close()
    machine.close()


# Connected


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=100), max_size=8))
def test_each_datagram_is_a_frame_or_is_dropped(datagrams: list[bytes]) -> None:
    ours, machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port = DgramPort(ours)
    for datagram in datagrams:
        machine.send(datagram)
    good = [d for d in datagrams if len(d) >= FRAME_MIN]
    assert received(port) == good
    assert port.malformed == len(datagrams) - len(good)
    assert received(port) == []
    port.close()
    machine.close()


@pytest.mark.parametrize("size", [FRAME_MIN, FRAME_MAX])
def test_frames_of_every_size(pair: Pair, size: int) -> None:
    port, machine = pair
    machine.send(b"f" * size)
    assert received(port) == [b"f" * size]


def test_a_datagram_longer_than_a_frame_is_dropped(pair: Pair) -> None:
    port, machine = pair
    machine.send(b"f" * (FRAME_MAX + 1))
    machine.send(b"g" * 60)
    assert received(port) == [b"g" * 60]
    assert port.malformed == 1


def test_a_call_is_bounded(pair: Pair) -> None:
    port, machine = pair
    machine.setblocking(False)
    count = 0
    for _ in range(FRAMES_PER_CALL + 5):
        try:
            machine.send(b"f" * 60)
        except BlockingIOError:
            break
        count += 1
    first = received(port)
    assert len(first) == min(count, FRAMES_PER_CALL)
    assert readable(port) is (count > FRAMES_PER_CALL)
    assert len(first + received(port)) == count


def test_frames_to_the_machine_are_padded_and_cut(pair: Pair) -> None:
    port, machine = pair
    claim = port.claim(100, (14, 20))
    assert claim is not None
    assert list(map(len, claim.iov)) == [14, 20, 66]
    claim.iov.copy_from(b"f" * 100)
    claim.commit(20)
    claim = port.claim(50)
    assert claim is not None
    claim.cancel()
    assert send(port, b"g" * 65_535)
    assert taken(machine) == [(b"f" * 20).ljust(PAD_TO, b"\0"), b"g" * 65_535]


def test_a_full_queue_is_back_pressure(pair: Pair) -> None:
    """One frame waits, no more are taken, the descriptor is silent until there is room."""
    port, machine = pair
    sent: list[bytes] = []
    while send(port, frame := str(len(sent)).encode().ljust(2000, b".")):
        sent.append(frame)
    for _ in range(3):
        assert port.claim(60) is None
        assert not readable(port)
        assert received(port) == []
        assert port.poll(1.0) is None
    got = [machine.recv(70_000)]
    got += taken(machine)
    assert readable(port)
    assert received(port) == []
    assert not readable(port)
    assert send(port, b"l" * 60)
    assert got + taken(machine) == [*sent, b"l" * 60]
    assert port.lost == 0


class Starved(socket.socket):
    """A socket for whose datagrams the kernel has no memory, so many times."""

    failures = 0
    tries = 0

    def send(self, data: object, flags: int = 0, /) -> int:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().send(data, flags)  # type: ignore[arg-type]


def test_no_memory_in_the_kernel_is_no_spin() -> None:
    plain, machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours = Starved(fileno=plain.detach())
    port = DgramPort(ours)
    ours.failures = 3
    assert send(port, b"f" * 60)
    assert port.claim(60) is None
    assert not readable(port)  # the socket has room in its queue: writable, were it asked
    now, tries = 10.0, ours.tries
    at = port.poll(now)
    assert at == now + RETRY_AFTER
    assert port.poll(now + RETRY_AFTER / 2) == at
    assert ours.tries == tries
    for _ in range(10):
        if at is None:
            break
        now = at
        at = port.poll(now)
    assert at is None
    assert ours.tries == tries + 3
    assert taken(machine) == [b"f" * 60]
    assert port.claim(60) is not None
    port.close()
    machine.close()


def test_a_machine_that_is_not_there_yet_loses_frames() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine:
        machine.bind(("127.0.0.1", 0))
        address = machine.getsockname()
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind(("127.0.0.1", 0))
    ours.connect(address)
    port = DgramPort(ours)
    assert send(port, b"f" * 60)
    assert received(port) == []  # the kernel's "refused" is heard here
    assert port.lost == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine:
        machine.bind(address)
        machine.sendto(b"i" * 60, ours.getsockname())
        assert received(port) == [b"i" * 60]
        assert send(port, b"o" * 60)
        assert taken(machine) == [b"o" * 60]
    port.close()


# Bound to a path


class Bound:
    """A port at a path, and machines with paths of their own."""

    def __init__(self, folder: Path, peer: str = "") -> None:
        self.folder = folder
        self.path = str(folder / "net")
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.bind(self.path)
        self.peers: list[str] = []
        self.strangers: list[str] = []
        self.port = DgramPort(
            ours, peer=peer, on_peer=self.peers.append, on_stranger=self.strangers.append
        )

    def machine(self, name: str) -> socket.socket:
        path = self.folder / name
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(path))
        return sock


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bound]:
    bound = Bound(tmp_path)
    yield bound
    bound.port.close()


def test_whoever_sent_last_is_the_machine(bound: Bound) -> None:
    with bound.machine("a") as a, bound.machine("b") as b:
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
        assert send(bound.port, b"1" * 60)
        b.sendto(b"b" * 60, bound.path)
        assert received(bound.port) == [b"b" * 60]
        assert send(bound.port, b"2" * 60)
        assert (taken(a), taken(b)) == ([b"1" * 60], [b"2" * 60])
    assert bound.peers == [str(bound.folder / "a"), str(bound.folder / "b")]


def test_a_machine_started_again_at_its_path_is_found(bound: Bound) -> None:
    with bound.machine("a") as a:
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
    with bound.machine("a") as a:
        assert send(bound.port, b"1" * 60)
        assert taken(a) == [b"1" * 60]
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
    assert bound.peers == [str(bound.folder / "a")]


def test_a_machine_that_hears_only_our_path(bound: Bound) -> None:
    """It connected its socket, so a frame must come from the bound one; its buffer is the limit."""
    with bound.machine("a") as a:
        a.connect(bound.path)
        a.send(b"a" * 60)
        assert received(bound.port) == [b"a" * 60]
        count = 0
        while send(bound.port, b"f" * 1000):
            count += 1
        assert count > 20  # more than net.unix.max_dgram_qlen would let in
        assert not readable(bound.port)
        assert bound.port.claim(60) is None
        assert bound.port.poll(5.0) is None
        got = len(taken(a))
        assert readable(bound.port)
        assert received(bound.port) == []
        assert not readable(bound.port)
        assert got + len(taken(a)) == count
    assert send(bound.port, b"l" * 60)
    assert bound.peers == [str(bound.folder / "a"), ""]


GREETINGS = [[], [b"VFKT"], [b"VFKT", b"VFKT"]]


@pytest.mark.parametrize("greetings", GREETINGS)
def test_a_machine_that_joins(bound: Bound, greetings: list[bytes]) -> None:
    """As libkrun and vfkit do: bind, connect, perhaps a greeting, which is no frame."""
    with bound.machine("a") as a, bound.machine("b") as b:
        a.connect(bound.path)
        for datagram in (*greetings, b"a" * 60):
            a.send(datagram)
        assert received(bound.port) == [b"a" * 60]
        assert bound.port.malformed == 0
        assert bound.port.has_joined
        bound.port.keep()
        assert send(bound.port, b"1" * 60)
        assert taken(a) == [b"1" * 60]
        with pytest.raises(PermissionError):
            b.connect(bound.path)
        a.setblocking(False)
        for _ in range(50):  # no bound but the machine's own
            a.send(b"a" * 60)
        assert len(received(bound.port)) == 50
        assert bound.port.is_there()
    assert not bound.port.is_there()
    assert bound.peers == [str(bound.folder / "a")]
    assert send(bound.port, b"2" * 60)
    assert bound.peers == [str(bound.folder / "a"), ""]
    assert bound.port.lost == 1


def test_a_greeting_is_answered_where_it_came_from(bound: Bound) -> None:
    """Before the first frame, so that what is for everybody reaches it."""
    with bound.machine("a") as a:
        a.connect(bound.path)
        a.send(b"VFKT")
        assert received(bound.port) == []
        assert send(bound.port, b"1" * 60)
        assert taken(a) == [b"1" * 60]


def test_two_that_join_at_once(tmp_path: Path) -> None:
    """The second connected before the first was known: it is told of, once, and not heard."""
    bound = Bound(tmp_path)
    with bound.machine("a") as a, bound.machine("b") as b:
        for machine in (a, b, a, b):
            machine.connect(bound.path)
            machine.send(b"m" * 60)
        frames = bound.port.frames()
        assert bytes(next(frames).iov) == b"m" * 60
        bound.port.keep()
        assert [bytes(frame.iov) for frame in frames] == [b"m" * 60]
        assert bound.strangers == [str(tmp_path / "b")]
        assert bound.port.peer == str(tmp_path / "a")
    bound.port.close()


def test_a_machine_that_ended_is_reported_once(bound: Bound) -> None:
    with bound.machine("a") as a:
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
    (bound.folder / "a").unlink()
    for _ in range(3):
        assert send(bound.port, b"1" * 60)
    assert bound.port.lost == 3
    assert bound.peers == [str(bound.folder / "a"), ""]
    assert bound.port.claim(60) is not None


def test_a_full_queue_at_a_path_is_back_pressure(bound: Bound) -> None:
    with bound.machine("a") as a:
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
        count = 0
        while send(bound.port, b"f" * 1000):
            count += 1
        assert not readable(bound.port)
        got = len(taken(a))
        assert readable(bound.port)
        assert received(bound.port) == []
        assert not readable(bound.port)
        assert got + len(taken(a)) == count
        assert send(bound.port, b"l" * 60)


def test_a_machine_that_ends_with_a_full_queue_lets_go(bound: Bound) -> None:
    with bound.machine("a") as a:
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
        while send(bound.port, b"f" * 1000):
            pass
    (bound.folder / "a").unlink()
    assert readable(bound.port)
    assert received(bound.port) == []
    assert not readable(bound.port)
    assert bound.port.claim(60) is not None
    assert bound.peers[-1] == ""


def test_who_cannot_be_answered_is_not_heard(bound: Bound) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.sendto(b"n" * 60, bound.path)
    with bound.machine("gone") as gone:
        gone.sendto(b"g" * 60, bound.path)
    (bound.folder / "gone").unlink()
    assert received(bound.port) == []
    assert bound.port.malformed == 2
    assert bound.peers == []


def test_only_the_machine_that_is_meant(tmp_path: Path) -> None:
    bound = Bound(tmp_path, peer=str(tmp_path / "a"))
    with bound.machine("a") as a, bound.machine("b") as b:
        b.sendto(b"b" * 60, bound.path)
        a.sendto(b"a" * 60, bound.path)
        assert received(bound.port) == [b"a" * 60]
    assert bound.peers == [str(tmp_path / "a")]
    bound.port.close()


def test_nobody_there_yet_loses_frames(bound: Bound) -> None:
    assert send(bound.port, b"f" * 60)
    assert bound.port.lost == 1
    assert bound.peers == []
    assert bound.port.claim(60) is not None


def test_a_claim_beyond_the_mtu_is_our_mistake(bound: Bound) -> None:
    with pytest.raises(ValueError, match="1515"):
        bound.port.claim(1515)


class Deaf(Starved):
    """A socket whose datagrams cannot be received, so many times."""

    def recvfrom_into(self, *args: object, **options: object) -> object:  # type: ignore[override]
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().recvfrom_into(*args, **options)  # type: ignore[arg-type]


def test_a_receive_that_meets_a_shortage_is_told() -> None:
    """Whoever serves the port leaves it alone for a moment: it stays readable all the time."""
    plain, machine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours = Deaf(fileno=plain.detach())
    port = DgramPort(ours)
    machine.send(b"f" * 60)
    ours.failures = 1
    with pytest.raises(Shortage):
        received(port)
    assert received(port) == [b"f" * 60]
    port.close()
    machine.close()


def test_a_full_queue_that_epoll_cannot_watch_is_tried_by_the_clock(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, machine = pair

    def no_memory(fd: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(port._readiness, "await_room", no_memory)
    while send(port, b"f" * 2000):
        pass
    assert port.poll(1.0) == 1.0 + RETRY_AFTER
    taken(machine)
    assert port.poll(1.0 + RETRY_AFTER) is None
    assert port.claim(60) is not None
