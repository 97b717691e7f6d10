"""DNS from a guest to resolvers on the host's loopback: datagrams, streams, failover."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR

from slirp.errors import ConfigError
from slirp.host import dns as relay
from tests.kit.clock import Clock

from tests.kit.guest import ACK, DNS as DNS_ADDR, PSH, Lab, Stream, addr, udp  # isort: skip
from tests.kit.need import need_ipv6
from tests.kit.resolver import Resolver
from tests.slirp.host.conftest import MakeLab, open_fds
from tests.slirp.host.test_tcp import no_more_descriptors


@pytest.fixture
def resolvers() -> Iterator[list[Resolver]]:
    """Two resolvers, each at a port that was free."""
    with ExitStack() as stack:
        made = [stack.enter_context(Resolver(at)) for at in ("127.0.0.51", "127.0.0.52")]
        made[1].addr = "198.51.100.8"
        yield made


@pytest.fixture
def at_any_port(resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the resolvers found although resolv.conf, which names no ports, names them.

    The second is also what the host itself runs, at 127.0.0.1.
    """
    places = {resolver.at: (resolver.at, resolver.port) for resolver in resolvers}
    places["127.0.0.1"] = places[resolvers[1].at]

    def found(host: str, port: int, **options: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, options["type"], 0, "", places[host])]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def where(*resolvers: Resolver) -> list[str]:
    return [f"{resolver.at}:{resolver.port}" for resolver in resolvers]


def query(name: str, ident: int = 77) -> bytes:
    return bytes(DNS(id=ident, rd=1, qd=[DNSQR(qname=name)]))


def ask(lab: Lab, name: str, ident: int = 77) -> None:
    lab.guest.give(udp(query(name, ident), DNS_ADDR, 53))


def answer_of(lab: Lab, *resolvers: Resolver) -> DNS:
    """The answer, when it has come."""
    lab.turn(lambda: all(r.pump() for r in resolvers) and bool(lab.guest.inbox))
    (datagram,) = lab.guest.datagrams()
    assert (datagram.src, datagram.src_port, datagram.dst_port) == (addr(DNS_ADDR), 53, 40000)
    return DNS(datagram.data)


def stream_answer(lab: Lab, stream: Stream, *resolvers: Resolver) -> DNS:
    got = stream.received
    lab.turn(
        lambda: (
            all(r.pump() for r in resolvers)
            and len(got) > 2
            and len(got) >= 2 + int.from_bytes(got[:2], "big")
        )
    )
    return DNS(stream.receive(2 + int.from_bytes(got[:2], "big"))[2:])


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def test_a_query_goes_to_the_first_resolver(make_lab: MakeLab, resolvers: list[Resolver]) -> None:
    lab = make_lab(resolvers=where(*resolvers))
    before = open_fds()
    ask(lab, "example.test")
    answer = answer_of(lab, *resolvers)
    assert (answer.id, answer.rcode) == (77, 0)
    assert answer.an[0].rdata == "198.51.100.7"
    assert [r.asked for r in resolvers] == [["example.test"], []]
    lab.turn()
    assert open_fds() <= before, "the attempt's socket is closed"


@pytest.mark.parametrize("form", ["{}#{}", "[{}]:{}"])
def test_a_resolver_with_an_ipv6_address_and_a_port(form: str, make_lab: MakeLab) -> None:
    with Resolver(need_ipv6()) as resolver:
        lab = make_lab(resolvers=[form.format(resolver.at, resolver.port)])
        ask(lab, "example.test")
        assert answer_of(lab, resolver).an[0].rdata == "198.51.100.7"
        (client,) = resolver.clients
        assert client[0] == "::1"


def test_resolvers_that_are_changed_later_have_ports_too(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=[])
    lab.network.use_resolvers([f"{resolvers[0].at}#{resolvers[0].port}"])
    ask(lab, "example.test")
    assert answer_of(lab, *resolvers).an[0].rdata == "198.51.100.7"
    with pytest.raises(ConfigError, match=r"resolvers example\.test: a resolver is given by"):
        lab.network.use_resolvers(["example.test"])


def test_many_queries_at_once(make_lab: MakeLab, resolvers: list[Resolver]) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    for ident in range(60):
        ask(lab, f"n{ident}.test", ident)
    lab.turn(lambda: resolvers[0].pump() and len(lab.guest.inbox) == 60)
    answers = [DNS(datagram.data) for datagram in lab.guest.datagrams()]
    assert {(a.id, a.qd[0].qname.decode()) for a in answers} == {
        (ident, f"n{ident}.test.") for ident in range(60)
    }


def test_a_silent_resolver_is_followed_by_the_next(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock, resolvers=where(*resolvers))
    resolvers[0].addr = None
    ask(lab, "example.test")
    lab.turn()
    resolvers[0].pump()
    clock.advance(2)
    lab.turn()
    assert answer_of(lab, *resolvers).an[0].rdata == "198.51.100.8"


@pytest.mark.parametrize("rcode", [2, 5], ids=["SERVFAIL", "REFUSED"])
def test_a_resolver_that_fails_is_followed_at_once(
    rcode: int, make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(*resolvers))
    resolvers[0].rcode = rcode
    ask(lab, "example.test")
    assert answer_of(lab, *resolvers).an[0].rdata == "198.51.100.8"


def test_a_resolver_that_is_not_there_is_followed_at_once(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    """The kernel's port unreachable is an answer too."""
    lab = make_lab(resolvers=where(*resolvers))
    resolvers[0].close()
    ask(lab, "example.test")
    assert answer_of(lab, resolvers[1]).an[0].rdata == "198.51.100.8"


def test_nobody_answers(make_lab: MakeLab, resolvers: list[Resolver]) -> None:
    clock = Clock()
    lab = make_lab(clock=clock, resolvers=where(*resolvers))
    before = open_fds()
    for resolver in resolvers:
        resolver.addr = None
    ask(lab, "example.test")
    for _ in range(12):
        lab.turn()
        for resolver in resolvers:
            resolver.pump()
        clock.advance(0.5)
    assert answer_of(lab).rcode == 2
    assert all(resolver.asked for resolver in resolvers)
    lab.turn()
    assert open_fds() <= before
    assert lab.network._loop.deadline() is None


def test_a_name_that_is_not_there_is_passed_on(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(*resolvers))
    resolvers[0].rcode = 3
    ask(lab, "nowhere.test")
    assert answer_of(lab, *resolvers).rcode == 3
    assert not resolvers[1].asked


def test_a_truncated_answer_makes_the_guest_come_over_tcp(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    resolvers[0].truncates = True
    ask(lab, "long.test")
    assert answer_of(lab, *resolvers).tc
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.put(ACK | PSH, framed(query("long.test")))
    assert stream_answer(lab, stream, *resolvers).an[0].rdata == "198.51.100.7"
    assert resolvers[0].over_tcp == 1


def test_several_queries_on_one_stream(make_lab: MakeLab, resolvers: list[Resolver]) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.put(ACK | PSH, b"".join(framed(query(f"n{n}.test", n)) for n in range(5)))
    answers = [stream_answer(lab, stream, *resolvers) for _ in range(5)]
    assert {answer.id for answer in answers} == set(range(5))


def test_a_guest_that_closes_after_asking_gets_its_answer(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    before = open_fds()
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.put(ACK | PSH, framed(query("example.test")))
    stream.finish()
    lab.turn()
    assert stream_answer(lab, stream, *resolvers).an[0].rdata == "198.51.100.7"
    lab.turn(lambda: stream.got_fin)
    lab.turn(lambda: lab.network.stats()["tcp"]["flows"] == 0)
    resolvers[0].pump()
    assert len(open_fds() - before) <= 1, "the resolver's own end of the stream"


def test_a_stream_that_says_nothing_is_closed(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    stream = lab.guest.connect((DNS_ADDR, 53))
    clock.advance(relay.CLIENT_FOR + 1)
    lab.turn(lambda: stream.got_fin or stream.got_reset)


def test_of_too_many_streams_the_idlest_is_closed(
    make_lab: MakeLab, resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CLIENTS_MAX", 2)
    clock = Clock()
    lab = make_lab(clock=clock, resolvers=where(resolvers[0]))
    asking, idle = (lab.guest.connect((DNS_ADDR, 53)) for _ in range(2))
    asking.put(ACK | PSH, framed(query("example.test")))
    lab.turn()
    clock.advance(1)
    lab.guest.connect((DNS_ADDR, 53))
    lab.turn()
    assert idle.got_fin or idle.got_reset
    assert not asking.got_fin
    assert stream_answer(lab, asking, resolvers[0]).rcode == 0


def test_streams_that_all_wait_for_an_answer_stay(
    make_lab: MakeLab, resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CLIENTS_MAX", 2)
    lab = make_lab(resolvers=where(resolvers[0]))
    for _ in range(2):
        lab.guest.connect((DNS_ADDR, 53)).put(ACK | PSH, framed(query("example.test")))
    lab.turn()
    with pytest.raises(ConnectionRefusedError):
        lab.guest.connect((DNS_ADDR, 53))


def test_an_answer_of_somebody_else_does_not_count(
    make_lab: MakeLab, resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong id or question is not believed; the right answer after it is."""
    lab = make_lab(resolvers=where(resolvers[0]))
    right = resolvers[0].answer
    lies: list[bytes] = []

    def lie(query_: bytes, truncated: bool) -> bytes | None:
        answer = right(query_, truncated)
        assert answer is not None
        if not lies:
            lies.append(answer)
            resolvers[0]._udp.sendto(bytes((answer[0] ^ 1,)) + answer[1:], client())
            resolvers[0]._udp.sendto(answer[:2] + query("other.test")[2:], client())
        return answer

    def client() -> tuple[str, int]:
        attempt = next(iter(lab.network._dispatcher.dns._attempts.values()))
        name: tuple[str, int] = attempt.sock.getsockname()
        return name

    monkeypatch.setattr(resolvers[0], "answer", lie)
    ask(lab, "example.test")
    assert answer_of(lab, *resolvers).an[0].rdata == "198.51.100.7"
    assert lies


@pytest.mark.usefixtures("at_any_port")
def test_resolv_conf_is_read_again_when_it_changes(
    make_lab: MakeLab, resolvers: list[Resolver], tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    clock = Clock()
    lab = make_lab(clock=clock, resolvers=None, resolv_conf=str(conf))
    local = resolvers[1]
    ask(lab, "none.test")
    assert answer_of(lab, local).an[0].rdata == local.addr, "there is no such file"
    for number, resolver in enumerate(resolvers):
        new = tmp_path / "new"
        new.write_text(f"nameserver {resolver.at}\n" + "# \n" * number)
        new.replace(conf)
        clock.advance(10)
        ask(lab, f"n{number}.test")
        assert answer_of(lab, *resolvers).an[0].rdata == resolver.addr
    conf.write_text("")
    clock.advance(10)
    ask(lab, "none.test")
    assert answer_of(lab, local).an[0].rdata == local.addr


def test_without_descriptors_the_answer_is_servfail(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    with no_more_descriptors():
        ask(lab, "example.test")
        assert answer_of(lab).rcode == 2
    ask(lab, "example.test")
    assert answer_of(lab, *resolvers).rcode == 0


def test_dns_can_be_off(make_lab: MakeLab) -> None:
    lab = make_lab(dns_enabled=False)
    ask(lab, "gateway.slirp.internal")
    stream = lab.guest.open((DNS_ADDR, 53))
    lab.turn()
    assert not lab.guest.inbox, "nobody answers, and nobody says so"
    assert not stream.got_reset
    assert lab.refused() == {"DNS is off": 2}


def test_a_resolver_on_loopback_is_asked_from_loopback(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    """systemd-resolved drops what comes to 127.0.0.53 from another address of the host's."""
    lab = make_lab(resolvers=where(resolvers[0]), outbound_addr="192.0.2.99")
    ask(lab, "example.test")
    assert answer_of(lab, *resolvers).an[0].rdata == "198.51.100.7"
    assert resolvers[0].clients[0][0] == "127.0.0.1"


def test_a_resolver_that_closes_its_stream_is_followed_by_the_next(
    make_lab: MakeLab, resolvers: list[Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(resolvers=where(*resolvers))

    def close(query_: bytes, truncated: bool) -> bytes | None:
        for peer in resolvers[0]._peers:
            peer.close()
        resolvers[0]._peers.clear()
        return None

    monkeypatch.setattr(resolvers[0], "answer", close)
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.put(ACK | PSH, framed(query("example.test")))
    assert stream_answer(lab, stream, *resolvers).an[0].rdata == "198.51.100.8"


def test_a_guest_that_resets_its_stream_leaves_no_attempt(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    before = open_fds()
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.put(ACK | PSH, framed(query("example.test")))
    lab.turn()
    assert len(open_fds() - before) >= 3, "two ends of the stream, and the attempt"
    stream.reset()
    lab.turn()
    assert open_fds() <= before


def test_a_guest_that_asks_and_does_not_read_is_dropped(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers wait in bounds; beyond them the stream ends."""
    monkeypatch.setattr(relay, "UNSENT_MAX", 4096)
    lab = make_lab(names={"long.test": [f"192.0.2.{number}" for number in range(1, 200)]})
    stream = lab.guest.connect((DNS_ADDR, 53))
    stream.auto_ack = False
    stream.window = 0
    for _ in range(300):
        if stream.got_reset or stream.got_fin or not lab.network.stats()["tcp"]["flows"]:
            break
        stream.put(ACK | PSH, framed(query("long.test")) * 10)
        for _ in range(3):
            lab.network.poll(0)
            lab.guest.read()
    assert not lab.network._dispatcher.dns._clients


def test_datagrams_for_a_guest_that_left_are_dropped(
    make_lab: MakeLab, resolvers: list[Resolver]
) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    before = open_fds()
    ask(lab, "example.test")
    lab.turn()
    lab.network.detach(lab.attachment)
    resolvers[0].pump()
    lab.turn()
    assert not lab.port.take()
    assert open_fds() <= before
