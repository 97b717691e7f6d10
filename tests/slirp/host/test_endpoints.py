"""Who receives from sockets: what every endpoint promises a relay, and what a reset may rely on.

The relays' own tests run over every endpoint as well (`every_endpoint` in conftest.py).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from nic import csr
from slirp import ConfigError, Network
from slirp.address import SockAddr
from slirp.config_fields import ENDPOINTS
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import sun4m_board
from slirp.host import endpoints, uring
from slirp.host.socket_endpoint import IN_FLIGHT_MAX, SocketEndpoint
from slirp.host.socket_uring import peer_of
from tests.kit.guest import GATEWAY, GUEST_MAC, udp
from tests.kit.need import missing, need_ipv6
from tests.slirp.host.conftest import open_fds

LATER: Final = [name for name in ENDPOINTS if name != endpoints.EPOLL]
PEEK: Final = int(socket.MSG_PEEK)


class Asker:
    """Whoever asked for bytes, and what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, SockAddr | None]] = []

    def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
        assert now == 7.0
        self.told.append((size, failure, peer))


@pytest.fixture(params=LATER)
def endpoint(request: pytest.FixtureRequest) -> Iterator[SocketEndpoint]:
    if request.param == endpoints.URING and (reason := uring.why_not()):
        missing(reason)
    before = open_fds()
    made = endpoints.sockets(request.param)
    yield made
    made.close()
    assert open_fds() <= before


def room(*sizes: int) -> tuple[memoryview, ...]:
    return tuple(memoryview(bytearray(size)) for size in sizes)


def settled(endpoint: SocketEndpoint) -> None:
    """Let everything arrive, and tell it."""
    endpoint.settle(7.0)
    bell = endpoint.fileno()
    assert bell is not None
    while endpoint.under_way:
        assert select.select([bell], [], [], 10)[0], "nothing arrives"
        endpoint.poll(7.0)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


def test_nothing_is_told_before_the_loop_asks(endpoint: SocketEndpoint) -> None:
    ours, theirs = pair()
    with ours, theirs:
        theirs.send(b"over several views")
        views, asker = room(4, 9, 100), Asker()
        assert endpoint.begin(ours, views, PEEK, asker)
        assert endpoint.under_way == 1
        endpoint.settle(7.0)
        bell = endpoint.fileno()
        assert bell is not None
        assert select.select([bell], [], [], 10)[0]
        assert asker.told == []
        endpoint.poll(7.0)
        assert asker.told == [(18, 0, None)] or asker.told[0][:2] == (18, 0)
        assert b"".join(views)[:18] == b"over several views"
        assert ours.recv(100) == b"over several views", "it was peeked at"


def test_nothing_there_is_an_answer_too(endpoint: SocketEndpoint) -> None:
    ours, theirs = pair()
    with ours, theirs:
        asker = Asker()
        assert endpoint.begin(ours, room(9), 0, asker)
        settled(endpoint)
        assert asker.told == [(0, errno.EAGAIN, None)]
        theirs.close()
        assert endpoint.begin(ours, room(9), 0, asker)
        settled(endpoint)
        assert asker.told[1][:2] == (0, 0), "the end"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_sender_is_told_as_recvmsg_tells_it(
    family: socket.AddressFamily, endpoint: SocketEndpoint
) -> None:
    address = "127.0.0.1" if family == socket.AF_INET else need_ipv6()
    with (
        socket.socket(family, socket.SOCK_DGRAM) as ours,
        socket.socket(family, socket.SOCK_DGRAM) as theirs,
    ):
        ours.bind((address, 0))
        ours.setblocking(False)
        theirs.bind((address, 0))
        for octets in (b"first", b"", b"third"):
            theirs.sendto(octets, ours.getsockname())
            asker = Asker()
            assert endpoint.begin(ours, room(3, 65536), 0, asker)
            settled(endpoint)
            assert asker.told == [(len(octets), 0, theirs.getsockname())]


def test_a_sockaddr_with_a_scope() -> None:
    """struct sockaddr_in6: the scope is in the host's order, flow and port in the network's."""
    raw = socket.AF_INET6.to_bytes(2, sys.byteorder) + bytes((0x1F, 0x90, 0, 0, 0, 5))
    raw += socket.inet_pton(socket.AF_INET6, "fe80::1") + (3).to_bytes(4, sys.byteorder)
    assert peer_of(bytearray(raw)) == ("fe80::1", 8080, 5, 3)


def test_what_is_withdrawn_writes_no_more(endpoint: SocketEndpoint) -> None:
    """And takes nothing else along."""
    for number in range(50):
        ours, theirs = pair()
        other, sender = pair()
        with ours, theirs, other, sender:
            theirs.send(b"x" * 9000)
            sender.send(b"stays")
            (area,), (rest,) = room(9000), room(5)
            leaving, staying = Asker(), Asker()
            assert endpoint.begin(other, (rest,), 0, staying)
            assert endpoint.begin(ours, (area,), PEEK, leaving)
            if number & 1:
                endpoint.settle(7.0)
            endpoint.withdraw(leaving)
            area[:] = b"\xee" * 9000
            settled(endpoint)
            assert area == b"\xee" * 9000
            assert (leaving.told, staying.told[0][0], bytes(rest)) == ([], 5, b"stays")
            endpoint.withdraw(leaving)  # of nothing


def test_beyond_the_bound_a_relay_does_it_itself(endpoint: SocketEndpoint) -> None:
    ours, theirs = pair()
    with ours, theirs:
        theirs.send(b"x" * 100)
        askers = [Asker() for _ in range(IN_FLIGHT_MAX)]
        for asker in askers:
            assert endpoint.begin(ours, room(100), PEEK, asker)
        assert not endpoint.begin(ours, room(100), PEEK, Asker())
        settled(endpoint)
        assert {asker.told[0][0] for asker in askers} == {100}
        assert endpoint.begin(ours, room(100), PEEK, Asker())
        settled(endpoint)


def test_one_that_raises_does_not_silence_others(endpoint: SocketEndpoint) -> None:
    class Raising(Asker):
        def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
            raise OSError(errno.ENOBUFS, "no memory")

    ours, theirs = pair()
    with ours, theirs:
        theirs.send(b"x" * 10)
        asker = Asker()
        assert endpoint.begin(ours, room(10), PEEK, Raising())
        assert endpoint.begin(ours, room(10), PEEK, asker)
        endpoint.settle(7.0)
        bell = endpoint.fileno()
        assert bell is not None
        raised = 0
        while endpoint.under_way:
            assert select.select([bell], [], [], 10)[0], "the other was forgotten"
            try:
                endpoint.poll(7.0)
            except OSError:
                raised += 1
        assert (raised, len(asker.told)) == (1, 1)


def test_closing_ends_what_is_under_way() -> None:
    for name in LATER:
        if name == endpoints.URING and uring.why_not():
            continue
        ours, theirs = pair()
        with ours, theirs:
            theirs.send(b"x")
            endpoint, asker = endpoints.sockets(name), Asker()
            assert endpoint.begin(ours, room(10), PEEK, asker)
            endpoint.close()
            assert asker.told == []


# --- chosen by a network --------------------------------------------------------------------------


def test_what_there_is_no_endpoint_of() -> None:
    with pytest.raises(ConfigError, match=r"endpoint kqueue: must be one of epoll, threads, uring"):
        Network(endpoint="kqueue")


def test_a_network_on_a_kernel_without_io_uring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(entries: int) -> object:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "Ring", refuse)
    before = open_fds()
    with pytest.raises(
        ConfigError, match=r"endpoint uring: the kernel refuses io_uring: .* kernel\.io_uring_disa"
    ) as told:
        Network(endpoint="uring")
    assert (told.value.field, "\n" in str(told.value)) == ("endpoint", False)
    assert open_fds() == before


def test_a_host_that_is_no_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert uring.why_not() == "io_uring is Linux's"


# --- a chip that is stopped -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_stop_with_a_datagram_on_its_way_leaves_no_late_write(name: str, turns: int) -> None:
    """After STOP, guest memory is the guest's: what it stores in its buffers stays."""
    if name == endpoints.URING and (reason := uring.why_not()):
        missing(reason)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        Network(endpoint=name, resolvers=()) as network,
        sun4m_board(scatter=True) as board,
    ):
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(10)
        driver = LanceDriver(board, board.lance, mac=GUEST_MAC)
        driver.start()
        network.attach(board.lance)
        was_in_flight = 0
        for _ in range(20):
            driver.send(udp(b"a datagram", GATEWAY, peer.getsockname()[1]))
            for _ in range(3):
                network.poll(0.01)
            _, mapping = peer.recvfrom(100)
            for _ in range(10):
                peer.sendto(b"\x55" * 1400, mapping)
            for _ in range(turns):
                network.poll(0.01)
            was_in_flight += network._dispatcher.endpoint.under_way
            driver.stop()
            buffers = [slot.words for slot in driver._rx]
            for buffer in buffers:
                buffer.copy_from(b"\xee" * len(buffer))
            for _ in range(5):
                network.poll(0.001)
            assert all(bytes(buffer) == b"\xee" * len(buffer) for buffer in buffers)
            assert not board.lance.read(csr.RDP) & csr.RINT
            driver.start()
            driver.receive()
        assert bool(was_in_flight) == (name != endpoints.EPOLL)
