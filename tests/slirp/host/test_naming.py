"""What the ends of flows are called: names that went through our DNS, leases, the network's own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.kit.echo import EchoServer
from tests.kit.guest import DNS as DNS_ADDR
from tests.kit.guest import GATEWAY, GUEST, GUEST_MAC, OWN_MAC, Lab, Stream, udp
from tests.kit.need import need_ipv6
from tests.kit.resolver import Resolver
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_state import take_lease

GUEST6, GATEWAY6, DNS6 = "fd00::100", "fd00::2", "fd00::3"


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    """Every name is the gateway's address, at which the host's servers are."""
    with Resolver("127.0.0.53", GATEWAY) as made:
        yield made


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


def asking(lab: Lab, resolver: Resolver | None, name: str, qtype: str = "A") -> None:
    """The guest asks, and has its answer."""
    lab.guest.give(udp(bytes(DNS(id=7, rd=1, qd=[DNSQR(qname=name, qtype=qtype)])), DNS_ADDR, 53))
    lab.turn(lambda: (resolver is None or resolver.pump()) and bool(lab.guest.inbox))
    lab.guest.inbox.clear()


def names(lab: Lab, proto: str = "tcp") -> tuple[str | None, str | None]:
    """Of the one flow: its guest's and the remote's."""
    (flow,) = (flow for flow in lab.network.flows() if flow["proto"] == proto)
    json.dumps(flow)
    return flow["guest_name"], flow["remote_name"]


def connected(lab: Lab, echo: EchoServer, to: str = GATEWAY) -> Stream:
    return lab.guest.connect((to, echo.port))


def test_a_relayed_name(make_lab: MakeLab, resolver: Resolver, echo: EchoServer) -> None:
    lab = make_lab(resolvers=[f"127.0.0.53:{resolver.port}"])
    asking(lab, resolver, "WWW.example.test")
    connected(lab, echo)
    assert names(lab) == (None, "www.example.test")


def test_a_name_over_tcp(make_lab: MakeLab, resolver: Resolver, echo: EchoServer) -> None:
    lab = make_lab(resolvers=[f"127.0.0.53:{resolver.port}"])
    stream = lab.guest.connect((DNS_ADDR, 53))
    query = bytes(DNS(id=7, rd=1, qd=[DNSQR(qname="tcp.example.test")]))
    stream.send(len(query).to_bytes(2, "big") + query)
    lab.turn(lambda: resolver.pump() and bool(stream.received))
    assert names(lab) == (None, "dns.slirp.internal"), "the flow that asks"
    stream.finish()
    lab.turn(lambda: stream.got_fin)
    connected(lab, echo)
    found = {flow["remote"]: flow["remote_name"] for flow in lab.network.flows()}
    assert found[f"{GATEWAY}:{echo.port}"] == "tcp.example.test"


def test_a_kept_name(make_lab: MakeLab, resolver: Resolver, echo: EchoServer) -> None:
    """What is answered from the cache counts for who asks, and for nobody else."""
    lab = make_lab(resolvers=[f"127.0.0.53:{resolver.port}"])
    other = lab.add_guest("10.0.2.16", bytes.fromhex("525400123457"))
    asking(lab, resolver, "kept.test")
    asking(lab, None, "kept.test")
    assert lab.network.stats()["dns"]["cached"] == 1
    other.connect((GATEWAY, echo.port))
    assert names(lab) == (None, "host.internal")
    connected(lab, echo)
    assert {flow["remote_name"] for flow in lab.network.flows()} == {"host.internal", "kept.test"}


def test_names_of_zones_and_files(make_lab: MakeLab, echo: EchoServer, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"{GATEWAY} files.test\n")
    lab = make_lab(names={"zone.test": [GATEWAY]}, hosts=[str(file)])
    for name in ("zone.test", "files.test"):
        asking(lab, None, name)
        stream = connected(lab, echo)
        assert names(lab) == (None, name)
        stream.reset()
        lab.turn(lambda: not lab.network.flows())


def test_a_name_asked_for_later_is_not_a_flows(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab(names={"zone.test": [GATEWAY]})
    connected(lab, echo)
    asking(lab, None, "zone.test")
    assert names(lab) == (None, "host.internal")


def test_who_answers_at_the_gateway(make_lab: MakeLab, echo: EchoServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    lab = make_lab(http=str(tmp_path), host_loopback=False)
    lab.guest.connect((GATEWAY, 80))
    assert names(lab) == (None, "gateway.internal")
    lab = make_lab(http=str(tmp_path))
    lab.guest.connect((GATEWAY, 80))
    assert names(lab) == (None, "gateway.internal")


def test_who_comes_by_a_forward_from_the_host(make_lab: MakeLab) -> None:
    lab = make_lab()
    forward = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 80))
    streams = lab.guest.listen(80)
    assert isinstance(forward.host, tuple)
    with socket.create_connection(forward.host):
        lab.turn(lambda: bool(streams) and bool(lab.network.flows()))
        assert names(lab) == (None, "host.internal")


def test_an_address_that_nobody_asked_for_is_called_as_the_network_does(
    make_lab: MakeLab, echo: EchoServer
) -> None:
    forward = f"10.0.2.50:80=127.0.0.1:{echo.port}"
    lab = make_lab(names={"db.test": ["10.0.2.50"]}, guest_forwards=[forward])
    lab.guest.connect(("10.0.2.50", 80))
    assert names(lab) == (None, "db.test")


def test_a_guest_has_the_name_of_its_lease(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    assert take_lease(lab) == GUEST
    connected(lab, echo)
    assert names(lab) == ("vm", "host.internal")


def test_an_address_of_ipv6_and_the_name_of_the_same_machine(make_lab: MakeLab) -> None:
    """Asked by IPv6; its guest's name is that of the IPv4 lease that its MAC has."""
    need_ipv6()
    lab = make_lab(names={"six.test": [GATEWAY6]})
    take_lease(lab)
    lab.exchange(udp(b"x", GATEWAY, 9))  # it is seen by IPv4, at its port
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::1", 0))
        link = Ether(src=GUEST_MAC, dst=OWN_MAC)
        query = DNS(id=7, rd=1, qd=[DNSQR(qname="six.test", qtype="AAAA")])
        lab.guest.give(bytes(link / IPv6(src=GUEST6, dst=DNS6) / UDP(sport=4000, dport=53) / query))
        lab.turn()
        port = server.getsockname()[1]
        head = link / IPv6(src=GUEST6, dst=GATEWAY6) / UDP(sport=4000, dport=port)
        lab.guest.give(bytes(head / b"hello"))
        lab.turn()
        found = {flow["guest"]: flow for flow in lab.network.flows()}
        flow = found[f"[{GUEST6}]:4000"]
        assert (flow["guest_name"], flow["remote_name"]) == ("vm", "six.test")


def test_a_name_by_dns64(make_lab: MakeLab, resolver: Resolver) -> None:
    """What the guest was told is an address that we made."""
    need_ipv6()
    resolver.addr = "127.0.0.1"  # NAT64 does not lead there: a mapping, and nothing leaves
    lab = make_lab(ipv6_only=True, resolvers=[f"127.0.0.53:{resolver.port}"])
    link = Ether(src=GUEST_MAC, dst=OWN_MAC)
    query = DNS(id=7, rd=1, qd=[DNSQR(qname="four.test", qtype="AAAA")])
    lab.guest.give(bytes(link / IPv6(src=GUEST6, dst=DNS6) / UDP(sport=4000, dport=53) / query))
    lab.turn(lambda: resolver.pump() and lab.network.stats()["dns"].get("synthesized") == 1)
    asked = lab.network._dispatcher.dns.asked
    made = socket.inet_pton(socket.AF_INET6, "64:ff9b::7f00:1")
    assert asked.name(lab.attachment, GUEST_MAC, made, float("inf")) == "four.test"


# --- what does not count --------------------------------------------------------------------------


class Liar(Resolver):
    """Answers what was not asked, or under another id."""

    how = ""

    def answer(self, query: bytes, truncated: bool) -> bytes | None:
        asked = DNS(query)
        name, ident = ("other.test", asked.id) if self.how == "name" else ("a.test", asked.id ^ 1)
        record = DNSRR(rrname=name, ttl=5, rdata=GATEWAY)
        return bytes(DNS(id=ident, qr=1, qd=[DNSQR(qname=name)], an=[record]))


@pytest.mark.parametrize("how", ["name", "ident"])
def test_an_answer_that_is_not_passed_on(how: str, make_lab: MakeLab, echo: EchoServer) -> None:
    with Liar("127.0.0.53") as liar:
        liar.how = how
        lab = make_lab(resolvers=[f"127.0.0.53:{liar.port}"])
        lab.guest.give(udp(bytes(DNS(id=7, rd=1, qd=[DNSQR(qname="a.test")])), DNS_ADDR, 53))
        lab.turn(lambda: liar.pump() and lab.network.stats()["dns"].get("mismatched") == 1)
        connected(lab, echo)
        assert names(lab) == (None, "host.internal")


def test_events_tell_the_names(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab(names={"zone.test": [GATEWAY]})
    heard: list[Any] = []
    lab.network.subscribe(heard.append)
    asking(lab, None, "zone.test")
    connected(lab, echo).reset()
    lab.turn(lambda: not lab.network.flows())
    told = {event.kind: event.data.get("remote_name") for event in heard}
    assert told["flow-opened"] == told["flow-closed"] == "zone.test"
