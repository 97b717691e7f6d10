"""Forwards: who the guest thinks it talks to, and what happens before it is there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.errors import ConfigError
from slirp.ip.resolution import ASK_EVERY
from tests.kit.clock import Clock
from tests.kit.guest import (
    ACK,
    BROADCAST_MAC,
    GATEWAY,
    GUEST,
    PSH,
    RST,
    Lab,
    Stream,
    addr,
    arp,
    tcp,
    udp,
)
from tests.slirp.host.conftest import MakeLab, open_fds
from tests.slirp.host.test_tcp import no_more_descriptors

pytestmark = pytest.mark.usefixtures("every_endpoint")

TO_GUEST = (GUEST, 8080)


def seen(lab: Lab) -> None:
    """The network has met its guest."""
    lab.guest.give(arp(1, GUEST, GATEWAY))
    lab.turn()
    lab.guest.inbox.clear()


def forwarded(lab: Lab, proto: str = "tcp", address: str = "127.0.0.1") -> tuple[str, int]:
    host = lab.network.forward(proto, host=(address, 0), guest=TO_GUEST).host
    assert isinstance(host, tuple)
    return host


def resolution(lab: Lab) -> dict[str, int]:
    found: dict[str, int] = lab.network.stats()["resolution"]
    return found


def accepted(lab: Lab) -> Stream:
    """The next connection that reached the guest, established."""
    streams = lab.guest.listen(TO_GUEST[1])
    lab.turn(lambda: bool(streams) and streams[-1].una == streams[-1].seq)
    return streams.pop()


@contextlib.contextmanager
def client(
    where: tuple[str, int], source: tuple[str, int] | None = None
) -> Iterator[socket.socket]:
    with socket.create_connection(where, timeout=5, source_address=source) as sock:
        yield sock


def test_a_connection_is_led_to_the_guest(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = forwarded(lab)
    assert where[1]
    with client(where) as peer:
        stream = accepted(lab)
        assert stream.remote == (GATEWAY, peer.getsockname()[1])
        peer.sendall(b"request")
        assert stream.receive(7) == b"request"
        stream.put(ACK | PSH, b"response")
        lab.turn()
        assert peer.recv(100) == b"response"
        stream.finish()
        lab.turn()
        assert peer.recv(1) == b""


def test_the_guest_may_speak_first(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    with client(forwarded(lab)) as peer:
        accepted(lab).put(ACK | PSH, b"220 ready")
        lab.turn()
        assert peer.recv(100) == b"220 ready"


def test_only_the_hosts_loopback_appears_as_the_gateway(make_lab: MakeLab) -> None:
    """CVE-2021-20199: a service that trusts its own host must not trust the world."""
    lab = make_lab()
    nat = lab.network._stack.layer(addr(GATEWAY)).nat
    assert nat.inward(addr("127.0.0.1")) == nat.inward(addr("127.9.9.9")) == addr(GATEWAY)
    assert nat.inward(addr("192.0.2.7")) == addr("192.0.2.7")
    assert nat.inward(addr("10.0.2.77")) == addr(GATEWAY), "nobody outside has a guest's address"


@pytest.mark.parametrize("refused", ["127.0.0.2", "127.0.0.3"])
def test_two_peers_with_one_port_are_two_connections(refused: str, make_lab: MakeLab) -> None:
    """Both stand for the gateway, so the second one gets another port."""
    lab = make_lab()
    seen(lab)
    where = forwarded(lab)
    with client(where) as first:
        one = accepted(lab)
        with client(where, (refused, first.getsockname()[1])) as second:
            two = accepted(lab)
            assert one.remote != two.remote
            second.sendall(b"two")
            first.sendall(b"one")
            assert (one.receive(3), two.receive(3)) == (b"one", b"two")


def test_a_guest_that_refuses(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    with client(forwarded(lab)) as peer:
        lab.turn(lambda: bool(lab.guest.inbox))
        syn = lab.guest.inbox.pop()
        port = int.from_bytes(syn[34:36], "big")
        seq = int.from_bytes(syn[38:42], "big")
        lab.guest.give(tcp(RST | ACK, GATEWAY, port, src_port=8080, seq=0, ack=seq + 1))
        lab.turn()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_guest_that_is_not_there_yet_is_asked_for(make_lab: MakeLab) -> None:
    lab = make_lab()
    with client(forwarded(lab)) as peer:
        peer.sendall(b"early")
        stream = accepted(lab)  # the kit's guest answers ARP
        assert stream.receive(5) == b"early"


def test_a_guest_that_never_comes(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    lab.guest.answers_arp = False
    before = open_fds()
    with client(forwarded(lab)) as peer:
        lab.turn(lambda: bool(lab.guest.inbox))
        for _ in range(10):
            clock.advance(ASK_EVERY)
            lab.turn()
        requests = [
            f for f in lab.guest.inbox if f[:6] == BROADCAST_MAC and f[12:14] == b"\x08\x06"
        ]
        assert 4 <= len(requests) <= 6
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert len(open_fds() - before) == 1, "the listening socket is left"
    assert resolution(lab)["unreachable"] == 1


def test_who_waits_is_bounded_and_the_oldest_is_reset(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slirp.ip.resolution.HELD_MAX", 3)
    lab = make_lab()
    lab.guest.answers_arp = False
    where = forwarded(lab)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(client(where)) for _ in range(6)]
        lab.turn(lambda: resolution(lab)["displaced"] == 3)
        was_reset = []
        for peer in peers:
            peer.setblocking(False)
            try:
                peer.recv(1)
            except BlockingIOError:
                was_reset.append(False)
            except ConnectionResetError:
                was_reset.append(True)
        assert was_reset == [True] * 3 + [False] * 3
        lab.network.close()
        for peer in peers[3:]:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)


def test_accept_without_descriptors_does_not_spin(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = forwarded(lab)
    with client(where) as peer:
        with no_more_descriptors():
            turns = [lab.network.poll(0.002) for _ in range(50)]
            assert sum(turns) < 20
        stream = accepted(lab)
        peer.sendall(b"late")
        assert stream.receive(4) == b"late"


def test_a_unix_socket(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab()
    seen(lab)
    path = str(tmp_path / "sock")
    forward = lab.network.forward("unix", host=path, guest=TO_GUEST)
    assert forward.proto == "unix"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    data = bytes(range(256)) * 2000
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(path)
        stream = accepted(lab)
        assert stream.remote[0] == GATEWAY
        peer.setblocking(False)
        sent = 0
        while sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(data[sent:])
            lab.turn()
        assert stream.receive(len(data)) == data
        peer.settimeout(5)
        stream.send(data[:50000])
        assert peer.recv(50000, socket.MSG_WAITALL) == data[:50000]
        stream.finish()
        lab.turn()
        assert peer.recv(1) == b""
    assert lab.network.remove_forward(forward.id)
    assert not os.path.exists(path)


def test_a_unix_peer_that_does_not_read(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab()
    seen(lab)
    path = str(tmp_path / "sock")
    lab.network.forward("unix", host=path, guest=TO_GUEST)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        stream = accepted(lab)
        sent = 0
        while stream.una + stream.peer_window - stream.seq >= 1000 and sent < 8 << 20:
            stream.put(ACK | PSH, sent.to_bytes(4, "big") * 250)
            sent += 1000
            lab.turn()
        assert sent < 2 << 20
        peer.settimeout(5)
        got = bytearray()
        while len(got) < sent:
            got += peer.recv(1 << 16)
            lab.turn()
        assert got == b"".join(at.to_bytes(4, "big") * 250 for at in range(0, sent, 1000))


def test_a_unix_peer_with_a_name(make_lab: MakeLab, tmp_path: Path) -> None:
    """Abstract names and paths of peers are no addresses."""
    lab = make_lab()
    seen(lab)
    path = str(tmp_path / "sock")
    lab.network.forward("unix", host=path, guest=TO_GUEST)
    for name in (f"\0slirp-test-{os.getpid()}", str(tmp_path / "peer")):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.bind(name)
            peer.connect(path)
            assert accepted(lab).remote[0] == GATEWAY


def test_a_unix_path_that_became_anothers_is_left(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab()
    path = tmp_path / "sock"
    forward = lab.network.forward("unix", host=str(path), guest=TO_GUEST)
    path.rename(tmp_path / "away")
    path.write_text("mine")
    lab.network.remove_forward(forward.id)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("option", ["restrict", "no host loopback", "neither"])
def test_who_comes_to_the_guest_is_answered(option: str, make_lab: MakeLab) -> None:
    """Whatever the guest may not reach by itself."""
    lab = make_lab(restrict=option == "restrict", host_loopback=option != "no host loopback")
    seen(lab)
    tcp_where, udp_where = forwarded(lab), forwarded(lab, "udp")
    with client(tcp_where) as peer:
        stream = accepted(lab)
        stream.send(b"welcome")
        assert peer.recv(7) == b"welcome"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        peer.sendto(b"knock", udp_where)
        lab.turn(lambda: bool(lab.guest.packets(17)) or bool(lab.guest.inbox))
        lab.guest.give(udp(b"who", GATEWAY, peer.getsockname()[1], src_port=8080))
        lab.turn()
        assert peer.recv(10) == b"who"


def test_an_ipv6_peer_comes_by_the_gateway(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    try:
        where = lab.network.forward("tcp", host=("::1", 0), guest=TO_GUEST).host
        also = lab.network.forward("udp", host=("::1", 0), guest=TO_GUEST).host
    except OSError as error:
        pytest.skip(f"no IPv6 on this host: {error.strerror}")
    assert isinstance(where, tuple)
    assert isinstance(also, tuple)
    with socket.create_connection(where, timeout=5) as peer:
        stream = accepted(lab)
        assert stream.remote[0] == GATEWAY
        peer.sendall(b"six")
        assert stream.receive(3) == b"six"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5)
        peer.sendto(b"six", also)
        lab.turn(lambda: any(f[23] == 17 for f in lab.guest.inbox))
        (datagram,) = lab.guest.datagrams()
        lab.guest.give(udp(b"four", GATEWAY, datagram.src_port, src_port=8080))
        lab.turn()
        assert peer.recv(10) == b"four"


def test_the_list_of_forwards(make_lab: MakeLab) -> None:
    lab = make_lab()
    before = open_fds()
    one = lab.network.forward("tcp", host=("127.0.0.1", 0), guest=TO_GUEST)
    two = lab.network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 53))
    assert lab.network.forwards() == [one, two]
    assert lab.network.remove_forward(one.id)
    assert not lab.network.remove_forward(one.id)
    assert lab.network.forwards() == [two]
    assert lab.network.remove_forward(two.id)
    assert open_fds() <= before
    assert isinstance(one.host, tuple)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(one.host, timeout=5)


@pytest.mark.parametrize(
    ("proto", "host", "guest"),
    [
        ("sctp", ("127.0.0.1", 0), TO_GUEST),
        ("tcp", ("127.0.0.1", 0), (GUEST, 0)),
        ("tcp", ("127.0.0.1", 0), (GUEST, 65536)),
        ("tcp", ("127.0.0.1", 0), ("a guest", 80)),
        ("tcp", ("127.0.0.1", 0), ("fd00::2", 80)),
        ("tcp", ("127.0.0.1", 0), ("2001:db8::1", 80)),
        ("tcp", ("127.0.0.1", 65536), TO_GUEST),
        ("udp", ("127.0.0.1", -1), TO_GUEST),
        ("unix", ("127.0.0.1", 0), TO_GUEST),
        ("udp", "/nowhere", TO_GUEST),
    ],
)
def test_what_cannot_be_forwarded(
    proto: str, host: tuple[str, int] | str, guest: tuple[str, int], make_lab: MakeLab
) -> None:
    lab = make_lab()
    before = open_fds()
    with pytest.raises(ConfigError):
        lab.network.forward(proto, host=host, guest=guest)
    assert open_fds() <= before
    assert lab.network.forwards() == []


def test_an_address_that_is_taken(make_lab: MakeLab) -> None:
    lab = make_lab()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        lab.network.forward("tcp", host=taken.getsockname(), guest=TO_GUEST)
    assert lab.network.forwards() == []
