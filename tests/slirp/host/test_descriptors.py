"""Who gives way when descriptors run out: the idlest of any kind, a port's own at its share."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from slirp.host.attachment import Attachment
from slirp.host.descriptors import (
    HALF_CLOSED_MIN,
    RESERVE,
    TCP_IDLE_MIN,
    Descriptors,
    Idle,
)
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.guest import GATEWAY, Lab, udp
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_tcp import connected, received


@contextlib.contextmanager
def only(count: int, ledger: Descriptors) -> Iterator[None]:
    """This process may open so many more descriptors, the reserve included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = filter(is_unused, itertools.count())  # others may leave holes between theirs
    last = next(itertools.islice(unused, count - RESERVE, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + RESERVE, hard))
    ledger.look()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ledger.look()


def ledger_of(lab: Lab) -> Descriptors:
    return lab.network._dispatcher.descriptors


def is_unused(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


class Lender:
    """Sockets by the instant since which they have been idle."""

    def __init__(self, ledger: Descriptors, attachment: Attachment) -> None:
        self.ledger = ledger
        self.attachment = attachment
        self.held: dict[float, socket.socket] = {}
        ledger.add(self)

    def take(self, now: float) -> None:
        self.held[now] = self.ledger.take(
            self.attachment, socket.AF_INET, socket.SOCK_DGRAM, 0, now
        )

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        if not self.held or attachment not in (None, self.attachment):
            return None
        since = min(self.held)
        return Idle(since, lambda: self.give_back(since))

    def give_back(self, since: float) -> None:
        self.held.pop(since).close()
        self.ledger.release(self.attachment)

    def close(self) -> None:
        for since in list(self.held):
            self.give_back(since)


@pytest.fixture
def ports() -> Iterator[list[Attachment]]:
    made = [Attachment(MemoryPort(), f"port{n}", n) for n in (1, 2)]
    yield made
    for attachment in made:
        attachment.port.close()  # type: ignore[attr-defined]


def test_the_idlest_gives_way_whoever_holds_it(ports: list[Attachment]) -> None:
    ledger = Descriptors(ports[:1], 0.5)
    first, second = Lender(ledger, ports[0]), Lender(ledger, ports[0])
    with only(RESERVE + 6, ledger), contextlib.closing(first), contextlib.closing(second):
        for now in range(6):
            (first, second)[now % 2].take(float(now))
        second.take(6.0)
        first.take(7.0)
        assert sorted((*first.held, *second.held)) == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        assert ledger.displaced == 2
        os.close(os.open("/dev/null", os.O_RDONLY))  # the reserve is there for others
    assert ports[0].sockets == 0


def test_the_reserve_is_not_for_guests(ports: list[Attachment]) -> None:
    ledger = Descriptors(ports[:1], 0.5)
    with only(RESERVE, ledger), pytest.raises(OSError, match="Too many") as caught:
        ledger.take(ports[0], socket.AF_INET, socket.SOCK_DGRAM, 0, 0.0)
    assert caught.value.errno == errno.EMFILE
    assert ledger.refused == 1
    with only(RESERVE, ledger):  # but for the network itself
        ledger.take(None, socket.AF_INET, socket.SOCK_DGRAM, 0, 0.0).close()


def test_a_port_at_its_share_displaces_its_own(ports: list[Attachment]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVE + 120, hard))
    ledger = Descriptors(ports, 0.1)  # 12 for each
    greedy, modest = Lender(ledger, ports[0]), Lender(ledger, ports[1])
    try:
        with contextlib.closing(greedy), contextlib.closing(modest):
            modest.take(0.0)  # idle longest of all, and not the greedy one's
            for now in range(1, 30):
                greedy.take(float(now))
            assert len(greedy.held) == 12
            assert list(modest.held) == [0.0]
            assert min(greedy.held) == 18.0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_only_port_has_everything(ports: list[Attachment]) -> None:
    assert Descriptors(ports[:1], 0.25).share_of(1000) == 1000
    assert Descriptors(ports, 0.25).share_of(1000) == 250


# --- with a network around it ---------------------------------------------------------------------


def ask(lab: Lab, echo: EchoServer, src_port: int) -> None:
    lab.guest.give(udp(b"?", GATEWAY, echo.port, src_port=src_port))


def test_short_questions_do_not_starve_what_comes_after_them(
    make_lab: MakeLab, echo: EchoServer, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with only(RESERVE + 20, ledger_of(lab)):
        for number in range(100):
            ask(lab, echo, 20_000 + number)
            lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
            lab.guest.inbox.clear()
            clock.advance(0.01)
        with connected(lab, listener) as (stream, peer):
            stream.send(b"hello")
            assert received(lab, peer, 5) == b"hello"
        stats = lab.network.stats()
    assert stats["descriptors"]["displaced"] > 80
    assert stats["descriptors"]["refused"] == stats["udp"]["failed"] == 0


def test_connections_that_are_used_never_give_way(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with (
        connected(lab, listener) as (old, old_peer),
        connected(lab, listener) as (young, young_peer),
        only(RESERVE, ledger_of(lab)),
    ):
        clock.advance(TCP_IDLE_MIN - 1)
        young.send(b"still here")
        assert received(lab, young_peer, 10) == b"still here"
        waiting = lab.guest.open((GATEWAY, listener.getsockname()[1]))
        lab.turn()
        assert not waiting.connected
        assert not waiting.got_reset  # nobody may go yet: the SYN comes again
        clock.advance(2)
        waiting.put(2, seq=waiting.seq - 1)
        lab.turn(lambda: waiting.connected and old.got_reset)
        assert not young.got_reset
        with pytest.raises(ConnectionResetError):
            old_peer.recv(1)


def test_a_half_closed_connection_gives_way_sooner(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (old, old_peer), only(RESERVE, ledger_of(lab)):
        old_peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: old.got_fin)
        lab.turn()
        clock.advance(HALF_CLOSED_MIN - 1)
        waiting = lab.guest.open((GATEWAY, listener.getsockname()[1]))
        lab.turn()
        assert not waiting.connected
        clock.advance(2)
        waiting.put(2, seq=waiting.seq - 1)
        lab.turn(lambda: waiting.connected)
