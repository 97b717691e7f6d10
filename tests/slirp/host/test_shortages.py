"""Shortages at every socket that a relay holds: nothing ends, nothing goes astray, nobody spins."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from slirp.host.loop import RETRY_AFTER
from slirp.host.tcp_farewell import unsent
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.forked import in_namespace
from tests.kit.guest import ACK, GATEWAY, PSH, Lab, udp
from tests.kit.guest import DNS as DNS_ADDR
from tests.kit.resolver import Resolver
from tests.kit.starved import starved
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_dns import answer_of, ask, framed, query, stream_answer, where
from tests.slirp.host.test_forward import accepted, forwarded, seen
from tests.slirp.host.test_ping import echoes
from tests.slirp.host.test_tcp import connected, no_more_descriptors
from tests.slirp.host.test_udp_runs import RunPort, datagrams

NUMBERS = [errno.ENOMEM, errno.ENOBUFS]
OFTEN = pytest.mark.parametrize("number", NUMBERS)
TTL_40 = 40


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with Resolver("127.0.0.53") as made:
        yield made


@OFTEN
@pytest.mark.parametrize("call", ["setsockopt", "sendto", "sendmsg", "recvmsg_into", "bind"])
@pytest.mark.parametrize("runs", [True, False])
def test_datagrams(call: str, number: int, runs: bool, make_lab: MakeLab, echo: EchoServer) -> None:
    """Each call that was due at once is made again; no datagram is lost of one shortage."""
    lab = make_lab(RunPort() if runs else None, outbound_addr="127.0.0.1")
    with starved(call, number):
        for n in range(6):
            data = b"%d" % n
            lab.guest.give(udp(data, GATEWAY, echo.port, ttl=TTL_40 + n))
            assert came_back(lab, echo) == [data]


def came_back(lab: Lab, *servers: EchoServer) -> list[bytes]:
    """The datagrams of the next frame."""
    for _ in range(500):
        lab.network.poll(0.01)
        assert all(server.pump() for server in servers)
        if lab.port.sent:
            break
    if isinstance(lab.port, RunPort):
        return datagrams(lab.port.runs())
    lab.guest.read()
    return [found.data for found in lab.guest.datagrams()]


@pytest.mark.parametrize("count", [1, 5])
def test_what_could_not_be_sent_does_not_go_elsewhere(
    count: int, make_lab: MakeLab, echo: EchoServer
) -> None:
    """A run whose socket could not be set up for it once left with the next one, to its host."""
    lab = make_lab(RunPort())
    with EchoServer() as other, starved("setsockopt", errno.ENOMEM, every=0) as starving:
        for server in (echo, other):
            lab.guest.give(udp(b"first", GATEWAY, server.port))
            assert came_back(lab, server) == [b"first"]
        starving.every = 1
        for n in range(count):
            lab.guest.give(udp(b"lost %d" % n, GATEWAY, echo.port, ttl=9))
        for _ in range(10):
            lab.network.poll(0.01)
        assert starving.made
        starving.every = 0
        lab.guest.give(udp(b"second", GATEWAY, other.port))
        lab.turn(lambda: other.pump() and len(other.datagrams) == 2)
        assert [data for data, _ in other.datagrams] == [b"first", b"second"]
        assert b"second" not in [data for data, _ in echo.datagrams]


@OFTEN
@pytest.mark.parametrize("call", ["recvmsg_into", "recvmsg"])
def test_a_datagram_that_cannot_be_received_is_not_asked_for_at_once(
    call: str, number: int, make_lab: MakeLab, echo: EchoServer
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with starved(call, number, every=0) as starving:
        lab.guest.give(udp(b"one", GATEWAY, echo.port))
        lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
        lab.guest.inbox.clear()
        starving.every, starving.made = 1, 0
        if call == "recvmsg":  # from the error queue, which a closed port fills
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
                closed.bind(("127.0.0.1", 0))
                port = closed.getsockname()[1]
            lab.guest.give(udp(b"two", GATEWAY, port))
        else:
            lab.guest.give(udp(b"two", GATEWAY, echo.port))
        for _ in range(30):
            lab.network.poll(0.001)
            echo.pump()
        assert starving.made == 1
        assert lab.network.stats()["udp"]["shortages"] == 1
        starving.every = 0
        clock.advance(RETRY_AFTER)
        lab.turn(lambda: bool(lab.guest.inbox))


@OFTEN
@pytest.mark.parametrize("call", ["setsockopt", "connect", "send", "recvfrom"])
def test_echoes(call: str, number: int) -> None:
    def body() -> None:
        with Lab() as lab, starved(call, number):
            for sequence in range(4):
                (reply,) = echoes(lab, 77, sequence, b"data", ttl=TTL_40 + sequence)
                assert reply.data == b"data"

    in_namespace(body)


@OFTEN
@pytest.mark.parametrize("call", ["bind", "connect", "send", "recv"])
@pytest.mark.parametrize("over_tcp", [False, True])
def test_dns(over_tcp: bool, call: str, number: int, make_lab: MakeLab, resolver: Resolver) -> None:
    """Between guest and service, and between service and resolver."""
    lab = make_lab(resolvers=where(resolver), outbound_addr="127.0.0.1")
    with starved(call, number):
        for n in range(5):
            if over_tcp:
                stream = lab.guest.connect((DNS_ADDR, 53))
                stream.put(ACK | PSH, framed(query("example.test")))
                answer = stream_answer(lab, stream, resolver)
            else:
                lab.guest.inbox.clear()
                ask(lab, "example.test", n)
                answer = answer_of(lab, resolver)
            assert answer.rcode == 0
            assert answer.an[0].rdata == "198.51.100.7"


@OFTEN
@pytest.mark.parametrize("call", ["accept", "setblocking", "setsockopt", "getsockopt"])
def test_connections_through_a_forward(call: str, number: int, make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    with starved(call, number, every=0) as starving:
        host = forwarded(lab)
        starving.every = 3
        for _ in range(4):
            with socket.create_connection(host, 5) as sock:
                stream = accepted(lab)
                sock.sendall(b"hello")
                lab.turn(lambda: len(stream.received) == 5)  # noqa: B023 - called now
                stream.send(b"hello")
                lab.turn()
                assert sock.recv(9) == b"hello"


@OFTEN
def test_datagrams_through_a_forward(number: int, make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    seen(lab)
    with (
        starved("recvmsg_into", number, every=0) as starving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.connect(forwarded(lab, "udp"))
        starving.every = 1
        peer.send(b"hello")
        for _ in range(30):
            lab.network.poll(0.001)
        assert starving.made == 1
        starving.every = 0
        clock.advance(RETRY_AFTER)
        lab.turn(lambda: bool(lab.guest.inbox))
        assert [found.data for found in lab.guest.datagrams()] == [b"hello"]


def test_a_forward_without_descriptors_resets_its_peer_and_goes_on(make_lab: MakeLab) -> None:
    """It tried the closed socket again under other ports, and that ended the network."""
    lab = make_lab()
    seen(lab)
    host = forwarded(lab)
    with socket.socket() as sock:
        sock.settimeout(5)
        with no_more_descriptors():
            sock.connect(host)
            lab.network._dispatcher.descriptors.look()
            lab.turn()
        lab.network._dispatcher.descriptors.look()
    with socket.create_connection(host, 5):
        accepted(lab)
    assert lab.attachment.sockets <= 2


@OFTEN
def test_the_end_of_a_stream_is_told_in_the_end(
    number: int, make_lab: MakeLab, listener: socket.socket
) -> None:
    """The host waited for it for ever."""
    lab = make_lab()
    with starved("shutdown", number), connected(lab, listener) as (stream, peer):
        stream.send(b"all")
        stream.finish()
        peer.settimeout(0.01)
        got: list[bytes] = []
        lab.turn(lambda: has_ended(peer, got))
        assert b"".join(got) == b"all"


def has_ended(peer: socket.socket, got: list[bytes]) -> bool:
    try:
        got.append(peer.recv(99))
    except TimeoutError:
        return False
    return not got[-1]


@OFTEN
def test_what_is_unsent_is_not_taken_for_sent(number: int, listener: socket.socket) -> None:
    """Closing with a reset would lose it."""
    with starved("getsockopt", number, every=0) as starving:
        ours = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    with ours, peer:
        assert not unsent(ours)
        starving.every = 1
        assert unsent(ours)


@OFTEN
def test_a_socket_is_asked_for_again(number: int, make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    real: Callable[..., socket.socket] = socket.socket
    tries = []

    def sometimes(*args: int) -> socket.socket:
        tries.append(args)
        if len(tries) == 1:
            raise OSError(number, "no memory")
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", sometimes)
        lab.guest.give(udp(b"one", GATEWAY, echo.port))
        lab.turn()
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    assert len(tries) == 2
