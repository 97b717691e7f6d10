"""A network that was saved, and the one that takes its place."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from slirp import Config, ConfigError, statefile
from slirp.host.state import Damaged, Saved
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.guest import GATEWAY, GUEST, GUEST_MAC, OWN_MAC, RST, Lab, Tcp, arp, is_right, udp
from tests.kit.ports import free_port


def segments(lab: Lab) -> list[Tcp]:
    """What has come for the guest by TCP."""
    frames = (frame for frame in lab.port.take() if frame[12:14] == b"\x08\x00")
    return [Tcp.of(is_right(frame).payload) for frame in frames if frame[23] == 6]


def take_lease(lab: Lab, requested: str | None = None) -> str:
    """A client's whole exchange; the address that it was given."""

    def message(kind: str, *options: Any) -> bytes:
        head = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / IP(
            src="0.0.0.0", dst="255.255.255.255"
        )
        boot = BOOTP(chaddr=GUEST_MAC, xid=7, flags=0x8000)
        return bytes(
            head / UDP(sport=68, dport=67) / boot
            / DHCP(options=[("message-type", kind), ("hostname", b"vm"), *options, "end"])
        )  # fmt: skip

    if requested is None:
        (offer,) = lab.exchange(message("discover"))
        requested = Ether(offer)[BOOTP].yiaddr
    (answer,) = lab.exchange(message("request", ("requested_addr", requested)))
    options: dict[str, Any] = dict(o for o in Ether(answer)[DHCP].options if isinstance(o, tuple))
    assert options["message-type"] == 5, "a NAK"
    return str(Ether(answer)[BOOTP].yiaddr)


def test_lease_survives_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Lab(first_lease="10.0.2.77") as lab:
        address = take_lease(lab)
        assert lab.network.save(path)["leases"] == 1
    with Lab(first_lease="10.0.2.77") as lab:
        assert lab.network.restore(path)["leases"] == 1
        (lease,) = lab.network.leases()
        assert (lease["address"], lease["hostname"]) == (address, "vm")
        assert 86000 < lease["expires_in"] <= 86400
        assert take_lease(lab, address) == address


def test_forwards_survive_and_those_that_cannot_are_told(tmp_path: Path) -> None:
    path, ports = tmp_path / "state", (free_port(), free_port(), free_port())
    web = tmp_path / "web.sock"
    with Lab(forwards=[f"{ports[0]}:80"]) as lab:
        lab.network.forward(f"{ports[1]}:10.0.2.20:53/udp")
        lab.network.forward(f"{ports[2]}:443")
        lab.network.forward(f"{web}:web:8000,proxy=2,source=gateway")
        before = [(f.proto, f.host, f.guest, f.proxy, f.source) for f in lab.network.forwards()]
        assert lab.network.save(path)["forwards"] == 4
    with socket.create_server(("127.0.0.1", ports[2])), Lab(forwards=[f"{ports[0]}:80"]) as lab:
        report = lab.network.restore(path)
        assert report["forwards"] == 2
        (failed,) = report["failed"]
        assert f"127.0.0.1:{ports[2]}" in failed
        assert "in use" in failed
        after = [(f.proto, f.host, f.guest, f.proxy, f.source) for f in lab.network.forwards()]
        assert set(after) == {f for f in before if f[1] != ("127.0.0.1", ports[2])}


def test_peers_still_reach_a_guest_by_its_mapping(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        port = server.getsockname()[1]
        with Lab() as lab:
            lab.exchange(udp(b"before", GATEWAY, port))
            _, peer = server.recvfrom(100)
            assert lab.network.save(path)["udp"] == 1
        with Lab() as lab:
            assert lab.network.restore(path)["udp"] == 1
            lab.turn(lambda: len(lab.network.flows()) == 1)
            server.sendto(b"after", peer)
            lab.turn(lambda: any(m.data == b"after" for m in lab.guest.datagrams()))
            (flow,) = lab.network.flows()
            assert flow["guest"] == f"{GUEST}:40000"


def test_tcp_connection_is_reset_at_once(tmp_path: Path) -> None:
    """The guest waits for bytes and says nothing; it learns of the restart all the same."""
    path = tmp_path / "state"
    with EchoServer() as echo, Lab() as lab:
        stream = lab.guest.connect((GATEWAY, echo.port))
        stream.send(b"12345")
        lab.turn(lambda: echo.pump() and len(stream.received) == 5)
        assert lab.network.save(path)["tcp"] == 1
        expected = stream.ack
    with Lab() as lab:
        assert lab.network.restore(path)["tcp_reset"] == 1
        (request,) = lab.port.take()
        assert request[12:14] == b"\x08\x06"
        lab.guest.give(arp(2, GUEST, GATEWAY, target_mac=OWN_MAC))
        lab.network.poll(0.0)
        (segment,) = segments(lab)
        assert segment.flags & RST
        assert segment.seq == expected


def test_guest_that_does_not_answer_is_told_when_it_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with EchoServer() as echo, Lab() as lab:
        lab.guest.connect((GATEWAY, echo.port))
        lab.network.save(path)
    clock = Clock()
    with Lab(clock=clock) as lab:
        lab.add_guest("10.0.2.16", b"\x02other")
        lab.network.restore(path)
        for _ in range(6):
            clock.now += 1.0
            lab.network.poll(0.0)
        assert segments(lab) == []
        lab.guest.give(arp(1, GUEST, GATEWAY))
        lab.network.poll(0.0)
        (segment,) = segments(lab)
        assert segment.flags & RST
        relays = lab.network._dispatcher
        assert relays.stack.link.on_guest == relays.holding.guest_seen  # nothing more to do


def test_another_networks_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Lab(network="10.0.9.0/24") as lab:
        lab.network.save(path)
    with Lab() as lab:
        with pytest.raises(ConfigError, match=r"is of the network 10\.0\.9\.0/24"):
            lab.network.restore(path)
        assert lab.network.forwards() == []


def test_damaged_values_under_a_right_digest(tmp_path: Path) -> None:
    """Every value of a real state replaced by every kind of nonsense: whole or refused."""
    with EchoServer() as echo, Lab(names={"a.test": ["10.0.2.9"]}) as lab:
        lab.guest.connect((GATEWAY, echo.port))
        lab.exchange(udp(b"x", GATEWAY, echo.port))
        take_lease(lab)
        lab.network.forward(f"{free_port()}:80")
        lab.network.save(tmp_path / "state")
    body = statefile.read(str(tmp_path / "state"))
    assert Config(**body["config"])
    kinds: list[Any] = [None, -1, 1e300, "x", "", [], {}, [[1]], True, 1 << 70]
    for nonsense in kinds:
        for mutated in replaced(body, nonsense):
            with contextlib.suppress(Damaged):
                Saved(mutated)


def replaced(value: Any, by: Any) -> Any:
    """All copies of a tree in which one node is another."""
    if isinstance(value, dict):
        for key in value:
            yield {**value, key: by}
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: inner} for inner in replaced(value[key], by))
    if isinstance(value, list):
        for at in range(len(value)):
            yield [*value[:at], by, *value[at + 1 :]]
            yield from ([*value[:at], i, *value[at + 1 :]] for i in replaced(value[at], by))


def test_file_says_what_it_says(tmp_path: Path) -> None:
    with Lab(mtu=1400) as lab:
        lab.network.save(tmp_path / "state")
    assert json.loads((tmp_path / "state").read_text())["body"]["config"]["mtu"] == 1400
