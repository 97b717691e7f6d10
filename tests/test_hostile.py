"""Attacks on a running network, from each side it has.

The guest may send any frame. Whoever a connection leads to may do anything with it. Other users of
the host may reach what is in /tmp or on loopback. None of them may stop the loop, make it spin,
have it grow without bound, or get at what is another's.
"""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from dma.iovec import IoVec
from nic import bess
from nic.dgram import DgramPort
from slirp.cli.endpoint import open_endpoint
from slirp.cli.main import main
from slirp.control.slirp4netns import ApiSocket
from slirp.host.attachment import RESUMES_PER_TURN
from slirp.ip.packet import EchoArrived
from slirp.machines import Server
from slirp.tcp.lifecycle import HANDSHAKE_FOR
from tests.kit.clock import Clock
from tests.kit.guest import (
    ACK,
    BROADCAST_MAC,
    DNS,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OWN_MAC,
    PSH,
    SYN,
    Guest,
    Lab,
    arp,
    ether,
    icmp,
    ipv4,
    tcp,
    udp,
)
from tests.kit.port import MemoryPort

OTHER: Final = "10.0.2.16"
OTHER_MAC: Final = bytes.fromhex("52540012 3457")
RAPID_COMMIT: Final = b"\x50\0"
SPIN_TURNS: Final = 200  # more turns than this in a tenth of a second is spinning


class ClosingPort(MemoryPort):
    """A port that notices who uses it after its end."""

    is_closed = False

    def claim(self, size: int, headers: Any = ()) -> Any:
        assert not self.is_closed, "a claim on a port that was taken off"
        return super().claim(size, headers)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            super().close()


def introduce(lab: Lab, guest: Guest | None = None) -> None:
    """Have the network know a guest's address."""
    guest = guest or lab.guest
    guest.give(arp(1, guest.addr, GATEWAY, sender_mac=guest.mac))
    lab.turn()
    guest.inbox.clear()


def turns_while_idle(lab: Lab, seconds: float = 0.1) -> int:
    """How often the loop turns when nothing happens: each turn may wait for a hundredth."""
    now = lab.network._loop._clock
    stop_at = now() + seconds
    count = 0
    while now() < stop_at:
        lab.network.poll(0.01)
        lab.guest.read()
        count += 1
    return count


def ping(lab: Lab) -> None:
    """The guest pings the host's own loopback, which the network would answer in its place."""
    guest = lab.network._stack.guests.get(socket.inet_aton(lab.guest.addr))
    assert guest is not None
    echo = EchoArrived(guest, b"\x7f\0\0\1", 7, 1, 64, IoVec.of(b"are you there?"))
    lab.network._dispatcher.ping.send(echo, echo.dst, lab.network._loop.now)


def listener(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0), backlog=16)


@contextmanager
def no_descriptors() -> Iterator[list[int]]:
    """Until the end of the block, no descriptor can be opened; closing one gives one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hogs = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        while True:
            try:
                hogs.append(os.dup(0))
            except OSError:
                break
        yield hogs
    finally:
        for fd in hogs:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Peers on the host's side


def test_a_peer_of_a_unix_forward_may_have_any_name(tmp_path: Path) -> None:
    with Lab() as lab, socket.socket(socket.AF_UNIX) as peer:
        introduce(lab)
        streams = lab.guest.listen(80)
        path = str(tmp_path / "forward")
        lab.network.forward("unix", host=path, guest=(GUEST, 80))
        peer.bind(f"\0slirp-test-{os.getpid()}")  # accept() gives such a name as bytes
        peer.connect(path)
        peer.sendall(b"hello")
        lab.turn(lambda: bool(streams))
        assert streams[0].receive(5) == b"hello"
        assert streams[0].remote[0] == GATEWAY


def test_peers_that_stand_for_one_address_get_their_own_answers() -> None:
    with Lab() as lab:
        introduce(lab)
        forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
        ):
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.2", one.getsockname()[1]))  # both are the gateway to the guest
            for sock in (one, two):
                sock.setblocking(False)
                sock.sendto(b"question", forward.host)
            lab.turn()
            first, second = lab.guest.datagrams()
            assert first.src_port != second.src_port
            lab.guest.give(udp(b"to two", GATEWAY, second.src_port, src_port=9))
            lab.guest.give(udp(b"to one", GATEWAY, first.src_port, src_port=9))
            lab.turn()
            assert one.recv(100) == b"to one"
            assert two.recv(100) == b"to two"


def test_a_peer_that_speaks_ipv6_appears_as_the_gateway() -> None:
    with Lab() as lab:
        introduce(lab)
        try:
            forward = lab.network.forward("udp", host=("::1", 0), guest=(GUEST, 9))
        except OSError:
            pytest.skip("the host has no IPv6")
        sender = lab.network._forwards._open[forward.id][1]
        named = sender._name(("2001:db8::7%eth0", 4000))  # type: ignore[union-attr]
        assert (socket.inet_ntoa(named.addr), named.port) == (GATEWAY, 4000)


def test_urgent_octets_stay_in_the_stream() -> None:
    with Lab() as lab, listener() as server:
        stream = lab.guest.connect((GATEWAY, server.getsockname()[1]))
        peer, _ = server.accept()
        with peer:
            peer.send(b"abc")
            peer.send(b"d", socket.MSG_OOB)
            peer.send(b"efg")
            assert stream.receive(7) == b"abcdefg"


def test_connections_without_a_descriptor_wait_and_the_loop_does_not_spin() -> None:
    with Lab() as lab:
        introduce(lab)
        streams = lab.guest.listen(80)
        forward = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 80))
        with socket.create_connection(forward.host) as peer:  # type: ignore[arg-type]
            with no_descriptors():
                assert turns_while_idle(lab) < SPIN_TURNS
                assert not streams
            lab.turn(lambda: bool(streams))
            peer.sendall(b"late")
            assert streams[0].receive(4) == b"late"


def test_a_forward_closed_while_it_rests_leaves_its_descriptor_alone() -> None:
    with Lab() as lab:
        forward = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 80))
        with socket.create_connection(forward.host):  # type: ignore[arg-type]
            with no_descriptors():
                lab.network.poll(0.01)
            assert lab.network.remove_forward(forward.id)
        assert turns_while_idle(lab, 0.15) < SPIN_TURNS


def test_an_absent_guest_is_asked_for_once_however_many_knock() -> None:
    with Lab() as lab:
        introduce(lab)
        udp_forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=("10.0.2.77", 9))
        tcp_forward = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=("10.0.2.78", 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(50):
                sock.sendto(b"anybody there?", udp_forward.host)
        peers = [socket.create_connection(tcp_forward.host) for _ in range(20)]  # type: ignore[arg-type]
        lab.turn()
        assert len(lab.guest.inbox) == 2
        for peer in peers:
            peer.close()


# Room


def test_a_forward_whose_guest_has_no_room_does_not_spin() -> None:
    with Lab() as lab:
        introduce(lab)
        forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        lab.port.room = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"wait", forward.host)
        assert turns_while_idle(lab) < SPIN_TURNS
        lab.port.grant(None)
        lab.turn(lambda: bool(lab.guest.inbox))
        assert [d.data for d in lab.guest.datagrams()] == [b"wait"]


def test_a_mapping_whose_guest_has_no_room_does_not_spin() -> None:
    with Lab() as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        lab.guest.give(udp(b"?", GATEWAY, server.getsockname()[1]))
        lab.turn()
        lab.port.room = 0
        server.sendto(b"answer", server.recvfrom(10)[1])
        assert turns_while_idle(lab) < SPIN_TURNS
        lab.port.grant(None)
        lab.turn(lambda: bool(lab.guest.inbox))
        assert [d.data for d in lab.guest.datagrams()] == [b"answer"]


def test_a_stream_whose_guest_has_no_room_does_not_spin() -> None:
    with Lab() as lab, listener() as server:
        stream = lab.guest.connect((GATEWAY, server.getsockname()[1]))
        peer, _ = server.accept()
        with peer:
            lab.port.room = 0
            peer.send(bytes(100_000))
            assert turns_while_idle(lab) < SPIN_TURNS
            lab.port.grant(None)
            assert stream.receive(100_000) == bytes(100_000)


def test_many_streams_that_wait_for_one_guest_do_not_hold_up_the_others() -> None:
    with Lab() as lab, listener() as server:
        streams, peers = [], []
        for _ in range(100):
            streams.append(lab.guest.connect((GATEWAY, server.getsockname()[1])))
            peers.append(server.accept()[0])
        lab.port.room = 0
        for peer in peers:
            peer.send(bytes(3000))
        lab.turn()
        before = lab.port.refused
        for _ in range(10):
            lab.network._loop.again()
            lab.network.poll(0.0)
        assert lab.port.refused - before <= 10 * RESUMES_PER_TURN
        lab.port.grant(None)
        for stream, peer in zip(streams, peers, strict=True):
            assert stream.receive(3000) == bytes(3000)
            peer.close()


# Ports that are taken off


def test_nothing_touches_a_port_that_was_taken_off() -> None:
    port = ClosingPort()
    with Lab(port) as lab, listener() as server:
        other = lab.add_guest(OTHER, OTHER_MAC)
        stream = lab.guest.connect((GATEWAY, server.getsockname()[1]))
        peer, _ = server.accept()
        with peer:
            ping(lab)
            lab.guest.give(udp(b"hello", GATEWAY, 9, src_port=777))
            lab.turn()
            peer.send(bytes(3_000_000))  # more than one turn can carry
            stream.auto_ack = False
            lab.network.poll(0.01)
            lab.guests.remove(lab.guest)
            lab.network.detach(lab.attachment)
            port.close()
            introduce(lab, other)
            for _ in range(20):
                lab.network.poll(0.01)
            assert lab.network.flows() == []
            assert lab.network._dispatcher.ping._pings == {}
            peer.settimeout(5)
            with pytest.raises(ConnectionResetError):
                peer.recv(1)


def test_a_forward_outlives_the_port_that_it_waited_for() -> None:
    with Lab() as lab:
        introduce(lab)
        forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        lab.port.room = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"one", forward.host)
            lab.network.poll(0.01)
            lab.network.detach(lab.attachment)
            again = lab.add_guest(GUEST, GUEST_MAC)
            introduce(lab, again)
            sock.sendto(b"two", forward.host)
            lab.turn(lambda: bool(again.inbox))
            assert [d.data for d in again.datagrams()][-1] == b"two"


# Frames


def test_a_header_shorter_than_a_header_carries_nothing() -> None:
    with Lab() as lab, listener() as server:
        stream = lab.guest.connect((GATEWAY, server.getsockname()[1]))
        peer, _ = server.accept()
        peer.setblocking(False)
        with peer:
            for words in range(5):
                lab.guest.give(stream.frame(ACK | PSH, b"not these", offset=words))
            lab.turn()
            with pytest.raises(BlockingIOError):
                peer.recv(100)
            assert sum(lab.malformed().values()) == 5


@pytest.mark.parametrize("ttl", [0, 1, 2, 255])
def test_any_ttl_in_a_datagram_to_a_known_destination(ttl: int) -> None:
    with Lab() as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        for number in (64, ttl, 64):
            lab.guest.give(udp(bytes(100), GATEWAY, port, ttl=number))
            lab.turn()
        assert lab.network.stats()["udp"]["datagrams_to_host"] == 3


def test_a_forward_opened_later_has_the_answers_of_its_peers() -> None:
    with Lab() as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        port = peer.getsockname()[1]
        lab.guest.give(udp(bytes(100), GATEWAY, port, src_port=9))
        lab.turn()
        forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        peer.recv(1000)
        peer.sendto(b"question", forward.host)
        lab.turn()
        lab.guest.give(udp(bytes(100), GATEWAY, port, src_port=9))
        lab.turn()
        assert peer.recvfrom(1000)[1] == forward.host


# Guests among each other

TO_OTHER: Final = {
    "announces the gateway": arp(1, GATEWAY, GATEWAY),
    "answers for the gateway": arp(2, GATEWAY, OTHER),
    "answers for the DNS server": ether(arp(2, DNS, OTHER)[14:], 0x0806, dst=OTHER_MAC),
    "sends as the DNS server": ether(
        udp(b"forged", OTHER, 4000, src=DNS, src_port=53)[14:], dst=OTHER_MAC
    ),
    "sends as the gateway": ether(
        udp(b"forged", OTHER, 4000, src=GATEWAY, src_port=53)[14:], dst=OTHER_MAC
    ),
    "has the gateway's MAC": ether(bytes(50), 0x1234, dst=OTHER_MAC, src=OWN_MAC),
    "offers leases": ether(udp(bytes(300), OTHER, 68, src_port=67)[14:], dst=OTHER_MAC),
    "offers leases behind options": ether(
        udp(bytes(300), OTHER, 68, src_port=67, options=bytes((1, 1, 1, 0)))[14:], dst=OTHER_MAC
    ),
}


@pytest.mark.parametrize("what", TO_OTHER)
def test_no_guest_takes_the_networks_place(what: str) -> None:
    with Lab() as lab:
        other = lab.add_guest(OTHER, OTHER_MAC)
        introduce(lab, other)
        lab.guest.give(TO_OTHER[what])
        lab.turn()
        assert other.inbox == []
        assert lab.refused()["forged"] == 1


def test_guests_reach_each_other_all_the_same() -> None:
    with Lab() as lab:
        other = lab.add_guest(OTHER, OTHER_MAC)
        introduce(lab, other)
        other.answers_arp = False
        for frame in (
            arp(1, GUEST, OTHER),
            ether(udp(b"hello", OTHER, 4000)[14:], dst=OTHER_MAC),
            ether(b"x", 0x0800, dst=OTHER_MAC),
            ether(b"", 0x0800, dst=OTHER_MAC),
            ether(b"", 0x0806, dst=OTHER_MAC),
            ether(bytes(40), 0x86DD, dst=OTHER_MAC),
        ):
            lab.guest.give(frame)
            lab.turn()
            assert other.inbox == [frame]
            other.inbox.clear()
        assert "forged" not in lab.refused()


def test_a_host_address_that_went_away_stops_nobody() -> None:
    with Lab(outbound_addr="192.0.2.77") as lab:
        lab.guest.give(udp(b"x", GATEWAY, 9))
        lab.guest.give(tcp(SYN, GATEWAY, 9))
        lab.turn()
        assert lab.network.stats()["udp"]["failed"] == 1
        assert lab.network.flows() == []


def test_a_connect_that_the_kernel_never_answers_ends() -> None:
    clock = Clock()
    with (
        Lab(clock=clock) as lab,
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(server.getsockname()),  # fills the backlog: no SYN is answered
    ):
        streams = [lab.guest.open((GATEWAY, server.getsockname()[1])) for _ in range(3)]
        lab.turn()
        assert len(lab.network.flows()) == 3
        clock.advance(HANDSHAKE_FOR)
        lab.turn()
        assert lab.network.flows() == []
        assert not any(stream.connected for stream in streams)


# Memory


def test_octets_ahead_of_their_turn_are_bounded_over_all_flows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slirp.host.tcp_deliver.KEPT_MAX", 100_000)
    with Lab() as lab, listener() as server:
        relay = lab.network._dispatcher.tcp
        streams = [lab.guest.connect((GATEWAY, server.getsockname()[1])) for _ in range(8)]
        for stream in streams:
            for start in range(1000, 60_000, 1000):  # the bytes before them never come
                stream.put(ACK, bytes(1000), seq=stream.seq + start)
        lab.turn()
        kept = [sum(map(len, flow.kept.values())) for flow in relay.flows.values() if flow.kept]
        assert 50_000 < sum(kept) <= 101_000
        last = streams.pop()
        for stream in streams:
            stream.reset()
        lab.turn()
        for _ in streams:
            server.accept()[0].close()
        peer, _ = server.accept()
        for start in range(0, 60_000, 1000):  # in their turn all are taken, kept or not
            last.put(ACK, bytes(1000), seq=last.seq + start)
        lab.turn()
        with peer:
            peer.settimeout(5)
            left = 60_000
            while left:
                left -= len(peer.recv(left))
        assert relay.deliverer.shelf.left == 100_000
        last.reset()
        lab.turn()
        assert relay.deliverer.shelf.left == 100_000


def test_a_flood_of_endpoints_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slirp.host.udp.MAPPINGS_MAX", 8)
    with Lab() as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        for number in range(100):
            for src_port in (7, 2000 + number):  # one endpoint goes on, the others come and go
                lab.guest.give(udp(b"x", GATEWAY, port, src_port=src_port))
                lab.turn()
        assert lab.network.stats()["udp"]["mappings"] == 8
        senders = [server.recvfrom(10)[1] for _ in range(200)]
        assert len(set(senders[::2])) == 1  # port 7 kept its socket
        assert len(set(senders)) > 50


# Descriptors run out


def test_the_control_socket_without_a_descriptor_does_not_spin(tmp_path: Path) -> None:
    with Lab() as lab, socket.socket(socket.AF_UNIX) as client:
        api = ApiSocket(str(tmp_path / "api"), lab.network, GUEST)
        with no_descriptors():
            client.connect(api.path)
            assert turns_while_idle(lab) < SPIN_TURNS
        client.sendall(b'{"execute": "list_hostfwd"}')
        client.setblocking(False)
        answer: list[bytes] = []

        def answered() -> bool:
            with suppress(BlockingIOError):
                answer.append(client.recv(1000))
            return bool(answer)

        lab.turn(answered)
        assert b"entries" in answer[0]
        api.close()


def test_a_control_socket_leaves_its_successor_alone(tmp_path: Path) -> None:
    path = tmp_path / "api"
    with Lab() as lab:
        first = ApiSocket(str(path), lab.network, GUEST)
        second = ApiSocket(str(path), lab.network, GUEST)
        first.close()
        assert path.exists()
        second.close()
        assert not path.exists()


def test_a_control_socket_in_the_place_of_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    target, path = tmp_path / "precious", tmp_path / "api"
    target.write_text("precious")
    path.symlink_to(target)
    with Lab() as lab:
        ApiSocket(str(path), lab.network, GUEST).close()
    assert target.read_text() == "precious"


def test_machines_without_a_descriptor_wait(tmp_path: Path) -> None:
    said: list[str] = []
    with Lab() as lab, socket.socket(socket.AF_UNIX) as machine:
        server = Server(lab.network, report=said.append)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "net"))
        listening.listen()
        server.listen(listening, "here")
        with no_descriptors() as hogs:
            machine.connect(str(tmp_path / "net"))
            assert turns_while_idle(lab) < SPIN_TURNS
            os.close(hogs.pop())  # enough to accept, not to serve
            lab.turn(lambda: bool(said))
            assert server.machines == []
        assert "turned away" in said[0]
        server.close()


def test_a_datagram_port_without_a_descriptor_loses_the_frame(tmp_path: Path) -> None:
    with Lab() as lab, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as machine:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.bind(str(tmp_path / "net"))
        machine.bind(str(tmp_path / "machine"))
        machine.connect(str(tmp_path / "net"))
        port = DgramPort(ours)
        lab.network.attach(port)
        ask = arp(1, OTHER, GATEWAY, sender_mac=OTHER_MAC)
        with no_descriptors():
            machine.send(ask)
            lab.turn()
        assert port.malformed == 1
        machine.send(ask)
        lab.turn()
        assert machine.recv(100)[:6] == OTHER_MAC
        port.close()


def test_the_sockets_of_machines_are_their_owners() -> None:
    with TemporaryDirectory() as place:
        before = os.umask(0)
        try:
            with bess.listen(f"{place}/uml"):
                assert os.stat(f"{place}/uml").st_mode & 0o077 == 0
            endpoint = open_endpoint(f"unix:{place}/net")
            assert os.stat(f"{place}/net").st_mode & 0o077 == 0
            endpoint.sock.close()
            with Lab() as lab:
                lab.network.forward("unix", host=f"{place}/forward", guest=(GUEST, 80))
                api = ApiSocket(f"{place}/api", lab.network, GUEST)
                for name in ("forward", "api"):
                    assert os.stat(f"{place}/{name}").st_mode & 0o077 == 0
                api.close()
        finally:
            os.umask(before)


def test_a_guest_is_served_on_what_is_left_of_the_descriptors() -> None:
    with Lab() as lab, listener() as server:
        with no_descriptors():
            for frame in (
                tcp(SYN, GATEWAY, server.getsockname()[1]),
                tcp(SYN, DNS, 53),
                udp(b"x", GATEWAY, 9),
                udp(bytes(12), DNS, 53),
                icmp(8, 0, 1, b"x", GATEWAY),
            ):
                lab.guest.give(frame)
            lab.turn()
            ping(lab)
            assert turns_while_idle(lab) < SPIN_TURNS
        assert lab.network.flows() == []
        stream = lab.guest.connect((GATEWAY, server.getsockname()[1]))
        assert stream.connected


def dhcp(kind: int, mac: bytes, options: bytes = b"") -> bytes:
    """A broadcast from a client without an address."""
    message = struct.pack("!BBBBI20x", 1, 1, 6, 0, 1) + mac + bytes(10 + 192)
    message += b"\x63\x82\x53\x63\x35\x01" + bytes((kind,)) + options + b"\xff"
    frame = udp(message, "255.255.255.255", 67, src="0.0.0.0", src_port=68)
    return ether(frame[14:], dst=BROADCAST_MAC, src=mac)


def take_all_addresses(lab: Lab) -> None:
    for number in range(300):
        lab.guest.give(dhcp(1, b"\x52\1" + number.to_bytes(4, "big"), RAPID_COMMIT))
    lab.turn()
    lab.guest.inbox.clear()


def test_a_guest_that_takes_all_addresses_gives_one_up() -> None:
    clock = Clock()
    with Lab(clock=clock) as lab:
        other = lab.add_guest(OTHER, OTHER_MAC)
        take_all_addresses(lab)
        clock.advance(61.0)  # nobody uses them
        other.give(dhcp(1, OTHER_MAC, RAPID_COMMIT))
        lab.turn()
        (mine,) = [lease for lease in lab.network.leases() if lease["mac"] == OTHER_MAC.hex(":")]
        for _ in range(2):  # which no greed touches
            clock.advance(61.0)
            take_all_addresses(lab)
            leases = {lease["mac"]: lease["address"] for lease in lab.network.leases()}
            assert leases[OTHER_MAC.hex(":")] == mine["address"]
            assert len(leases) <= 240


def test_nothing_is_asked_for_a_stream_that_was_dropped() -> None:
    with Lab(resolvers=("127.0.0.1",)) as lab:
        stream = lab.guest.connect((DNS, 53))
        question = b"\x04name\x04test\0\0\x01\0\x01"
        query = struct.pack("!7H", 12 + len(question), 1, 256, 1, 0, 0, 0) + question
        answer = struct.pack("!7H", 12 + len(question), 1, 0x8100, 1, 0, 0, 0) + question
        stream.put(ACK | PSH, answer + query * 30)
        lab.turn()
        assert lab.network._dns.pending == 0
        assert lab.network.stats()["dns"] == {"shortages": 0}


# The host's loopback

NEARBY: Final = (
    GATEWAY, DNS, GUEST, "10.0.2.99", "10.0.2.0", "10.0.2.255", "255.255.255.255", "0.0.0.0",
    "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "240.0.0.1",
)  # fmt: skip


@pytest.mark.parametrize("closed", [{"host_loopback": False}, {"restrict": True}])
@pytest.mark.parametrize("target", NEARBY)
def test_no_way_leads_to_the_hosts_loopback(target: str, closed: dict[str, Any]) -> None:
    with (
        Lab(**closed) as lab,
        socket.create_server(("", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("", port))
        for sock in (server, datagrams):
            sock.setblocking(False)
        whole = udp(bytes(64), target, port)
        lab.guest.give(tcp(SYN, target, port))
        lab.guest.give(whole)
        lab.guest.give(whole)  # were it let through, this one would go the short way
        lab.guest.give(udp(bytes(64), target, port, options=b"\x83\x07\x04\x7f\0\0\x01\0"))
        for part, flags in ((whole[34:50], 0x2000), (whole[50:], 2)):
            lab.guest.give(ether(ipv4(part, 17, target, ident=7, fragment=flags)))
        lab.turn()
        assert lab.network.flows() == []
        for take in (server.accept, lambda: datagrams.recv(100)):
            with pytest.raises(BlockingIOError):
                take()


@pytest.mark.parametrize("target", [GATEWAY, DNS])
def test_other_hosts_cannot_answer_in_the_networks_name(target: str) -> None:
    """A peer of the host's that has an address of the virtual network appears as the gateway."""
    with Lab() as lab:
        gateway = socket.inet_aton(GATEWAY)
        nat = lab.network._stack.layer(gateway).nat
        assert nat.inward(socket.inet_aton(target)) == gateway
        assert nat.inward(socket.inet_aton(GUEST)) == gateway


# Captures

CAPTURE: Final = (Path(__file__).parent.parent / "captures" / "chained.pcapng").read_bytes()


def layout_of(
    octets: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str]:
    """`slirp layout` of such a file: exit status and what is on standard output."""
    path = tmp_path / "given.pcapng"
    path.write_bytes(octets)
    status = main(["layout", *options, str(path)])
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == (status != 0)
    return status, out


@pytest.mark.parametrize("keep", [0, 7, 28, 200, 2000, 20_000, len(CAPTURE) - 1, len(CAPTURE)])
def test_a_capture_that_breaks_off(
    keep: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = layout_of(CAPTURE[:keep], tmp_path, capsys, "--json")
    assert (status == 0) == (keep == len(CAPTURE))
    assert not out or json.loads(out)["ok"] == (status == 0)


@pytest.mark.parametrize("seed", range(40))
def test_a_capture_with_octets_changed(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(seed)
    octets = bytearray(CAPTURE[:9000])
    marks = (b"vector ", b"ethernet", b"\x06\0\0\0")
    put = (b"\x1b[2J", b"\xff" * 4, bytes(4), b"+999", b"\xc2\x9b=0")
    for _ in range(dice.choice((1, 2, 20))):
        at = max(octets.find(dice.choice(marks), dice.randrange(9000)), 0) + dice.randrange(60)
        octets[at : at + 4] = dice.choice(put)
    status, out = layout_of(bytes(octets), tmp_path, capsys, "--json")
    assert status == 1
    assert not out or json.loads(out)["ok"] is False
    status, out = layout_of(bytes(octets), tmp_path, capsys)
    assert status == 1
    assert not any((ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 for char in out)
