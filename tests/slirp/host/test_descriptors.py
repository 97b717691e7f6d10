"""Who gives way when descriptors run out: the idlest of any kind, a port's own at its share."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import resource
import socket
from collections.abc import Iterable, Iterator

import pytest
from scapy.layers.dns import DNS, DNSQR

from slirp.host import udp as udp_relay
from slirp.host.attachment import Attachment
from slirp.host.descriptors import (
    HALF_CLOSED_MIN,
    RESERVE,
    TCP_IDLE_MIN,
    Descriptors,
    Idle,
)
from slirp.host.tcp_deliver import KEPT_MAX
from slirp.services.dns import PENDING_MAX
from slirp.wire.dns import SERVFAIL
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.guest import DNS as DNS_ADDR
from tests.kit.guest import GATEWAY, GUEST, Guest, Lab, udp
from tests.kit.port import MemoryPort
from tests.kit.resolver import Resolver
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_tcp import connected, received


@contextlib.contextmanager
def only(count: int, ledger: Descriptors) -> Iterator[None]:
    """This process may open so many more descriptors, the reserve included."""
    gc.collect()  # what earlier tests have left must not be closed in here
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


def unused_in_reserve() -> int:
    """Descriptors that the process may still open, of the last RESERVE; others may have some."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sum(map(is_unused, range(limit - RESERVE, limit)))


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


def test_sockets_that_are_open_already_do_not_use_the_reserve_up(ports: list[Attachment]) -> None:
    """Each made room for one, which the next `take` had; they themselves stayed in the reserve."""
    ledger = Descriptors(ports[:1], 0.5)
    lender = Lender(ledger, ports[0])
    with only(RESERVE + 40, ledger), contextlib.closing(lender), contextlib.ExitStack() as stack:
        limit = ledger.look()
        for now in range(40):
            lender.take(float(now))
        for now in range(RESERVE + 2):
            sock = ledger.admit(ports[0], socket.socket(), 100.0)
            assert sock is not None
            stack.enter_context(sock)
            assert sock.fileno() < limit
            lender.take(200.0 + now)
        os.close(os.open("/dev/null", os.O_RDONLY))


def test_who_is_not_known_yet_has_none_of_the_reserve_either(ports: list[Attachment]) -> None:
    ledger = Descriptors(ports[:1], 0.5)
    ours, theirs = socket.socketpair()
    with theirs, only(RESERVE, ledger):
        with socket.socket() as waiting:
            assert ledger.admit(None, waiting, 0.0) is None
            assert waiting.fileno() < 0
        assert ledger.admit(None, ours, 0.0) is ours  # it was open before
        ours.close()
    assert ports[0].sockets == 0
    assert ledger.refused == 1


@contextlib.contextmanager
def allowed(count: int) -> Iterator[None]:
    """This process may open so many descriptors for guests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVE + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sockets_that_are_open_already_count_for_the_share(ports: list[Attachment]) -> None:
    with allowed(120), contextlib.ExitStack() as stack:
        ledger = Descriptors(ports, 0.1)  # 12 for each
        for n in range(14):
            sock = ledger.admit(ports[0], socket.socket(), 0.0)
            assert (sock is None) == (n >= 12)
            if sock is not None:
                stack.enter_context(sock)
        assert ports[0].sockets == 12
        assert ledger.refused == 2


def test_a_port_at_its_share_displaces_its_own(ports: list[Attachment]) -> None:
    with allowed(120):
        ledger = Descriptors(ports, 0.1)  # 12 for each
        greedy, modest = Lender(ledger, ports[0]), Lender(ledger, ports[1])
        with contextlib.closing(greedy), contextlib.closing(modest):
            modest.take(0.0)  # idle longest of all, and not the greedy one's
            for now in range(1, 30):
                greedy.take(float(now))
            assert len(greedy.held) == 12
            assert list(modest.held) == [0.0]
            assert min(greedy.held) == 18.0


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


# --- one port among others ------------------------------------------------------------------------

OTHER, OTHER_MAC = "10.0.2.16", bytes.fromhex("52540012 3457")


@pytest.fixture
def silent() -> Iterator[Resolver]:
    with Resolver("127.0.0.53", addr=None) as made:
        yield made


def datagram_of(guest: Guest, data: bytes, dst: str, port: int, src_port: int = 40_000) -> bytes:
    frame = udp(data, dst, port, src=guest.addr, src_port=src_port)
    return frame[:6] + guest.mac + frame[12:]


def questions(lab: Lab, guest: Guest, idents: Iterable[int]) -> None:
    """Queries that each want a socket."""
    for ident in idents:
        query = bytes(DNS(id=ident, rd=1, qd=[DNSQR(qname="example.test")]))
        guest.give(datagram_of(guest, query, DNS_ADDR, 53))
    lab.turn()


def rcodes(guest: Guest) -> list[int]:
    return [DNS(datagram.data).rcode for datagram in guest.datagrams()]


def test_questions_to_resolvers_leave_the_reserve_alone(
    make_lab: MakeLab, silent: Resolver
) -> None:
    lab = make_lab(resolvers=[f"{silent.at}:{silent.port}"])
    with only(RESERVE + 4, ledger_of(lab)):
        questions(lab, lab.guest, range(RESERVE + 10))
        assert rcodes(lab.guest) == [SERVFAIL] * (RESERVE + 6)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(unused_in_reserve())]
        for fd in fds:
            os.close(fd)
    assert lab.attachment.sockets == 4


def test_streams_of_questions_leave_the_reserve_alone(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with only(RESERVE + 6, ledger_of(lab)):
        streams = []
        for _ in range(8):
            streams.append(lab.guest.connect((DNS_ADDR, 53)))
            clock.advance(0.1)
        os.close(os.open("/dev/null", os.O_RDONLY))
        assert lab.attachment.sockets <= 6
    ended = [stream.got_fin or stream.got_reset for stream in streams]
    assert ended == [True] * 5 + [False] * 3


def test_one_guests_questions_do_not_crowd_out_anothers(
    make_lab: MakeLab, silent: Resolver
) -> None:
    """It had SERVFAIL for as long as the first one's were pending."""
    lab = make_lab(resolvers=[f"{silent.at}:{silent.port}"])
    other = lab.add_guest(OTHER, OTHER_MAC)
    questions(lab, lab.guest, range(PENDING_MAX + 3))
    assert rcodes(lab.guest) == [SERVFAIL] * 3
    lab.guest.inbox.clear()
    silent.addr = "198.51.100.7"
    questions(lab, other, [1])
    lab.turn(lambda: silent.pump() and bool(other.inbox))
    assert rcodes(other) == [0]


def test_what_a_guest_asked_goes_with_its_port(make_lab: MakeLab, silent: Resolver) -> None:
    lab = make_lab(resolvers=[f"{silent.at}:{silent.port}"])
    lab.add_guest(OTHER, OTHER_MAC)
    questions(lab, lab.guest, range(3))
    stream = lab.guest.connect((DNS_ADDR, 53))
    assert stream.connected
    assert lab.attachment.sockets == 5
    lab.network.detach(lab.attachment)
    assert lab.attachment.sockets == 0
    assert lab.network._dns.pending == 0


def test_mappings_are_shared(
    make_lab: MakeLab, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the bound a guest's second mapping displaced its first, however many another one had."""
    monkeypatch.setattr(udp_relay, "MAPPINGS_MAX", 8)
    lab = make_lab()
    first, second = lab.guest, lab.add_guest(OTHER, OTHER_MAC)
    for n in range(20):
        first.give(udp(b"?", GATEWAY, echo.port, src_port=20_000 + n))
        lab.turn()
    for n in range(3):
        second.give(datagram_of(second, b"?", GATEWAY, echo.port, src_port=n + 1))
        lab.turn()
    held = [flow["guest"] for flow in lab.network.flows()]
    assert held == [f"{GUEST}:{20_016 + n}" for n in range(4)] + [f"{OTHER}:{n}" for n in (1, 2, 3)]


def test_a_shelf_follows_the_ports(make_lab: MakeLab) -> None:
    """The first port had all of it, for good."""
    lab = make_lab()
    shelf = lab.network._dispatcher.tcp.deliverer.shelf_of
    assert shelf(lab.attachment).left == KEPT_MAX
    lab.add_guest(OTHER, OTHER_MAC)
    assert shelf(lab.attachment).left == KEPT_MAX // 2


def test_connections_that_wait_for_a_guest_leave_the_reserve_alone(make_lab: MakeLab) -> None:
    """Nothing was accepted any more, by control sockets neither, until the guest was given up."""
    lab = make_lab()
    where = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=(OTHER, 80)).host
    assert isinstance(where, tuple)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.socket()) for _ in range(8)]
        with only(RESERVE + 5, ledger_of(lab)):
            for peer in peers:
                peer.connect(where)
            lab.turn()
            assert lab.network.stats()["resolution"]["waiting"] == 5
        ended = []
        for peer in peers:
            peer.setblocking(False)
            try:
                peer.recv(1)
            except BlockingIOError:
                ended.append(False)
            except ConnectionResetError:
                ended.append(True)
        assert ended == [False] * 5 + [True] * 3
