"""What a forward may be asked for: a guest by name, the PROXY protocol, the gateway as source."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP

from slirp.host import pump
from tests.kit.guest import (
    ACK,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    PSH,
    Guest,
    Lab,
    addr,
    arp,
    ether,
    udp,
)
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_forward import accepted, client, seen

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
OTHER_MAC = b"\x02other"


def call(lab: Lab, guest: Guest, mac: bytes, hostname: str, address: str, *, kind: int = 3) -> None:
    """The guest gets this address under this name, or gives it back (kind 7)."""
    options = [("message-type", kind), ("hostname", hostname), ("requested_addr", address), "end"]
    message = (
        IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=mac, xid=9, ciaddr=address if kind == 7 else "0.0.0.0")
        / DHCP(options=options)
    )
    guest.give(ether(bytes(message), dst=b"\xff" * 6, src=mac))
    lab.turn()
    guest.inbox.clear()


def opened(lab: Lab, spec: str) -> tuple[str, int]:
    (forward,) = lab.network.forward(spec)
    assert isinstance(forward.host, tuple)
    assert forward.host[1]
    return forward.host


def test_a_guest_by_name(make_lab: MakeLab) -> None:
    lab = make_lab()
    where = opened(lab, "0:web:8080")
    with client(where) as peer:
        lab.turn()
        with pytest.raises(ConnectionResetError):  # nobody calls itself so
            peer.recv(1)
    call(lab, lab.guest, GUEST_MAC, "web", GUEST)
    with client(where) as peer:
        stream = accepted(lab)
        peer.sendall(b"hello")
        assert stream.receive(5) == b"hello"
    (forward,) = lab.network.forwards()
    assert str(forward) == f"127.0.0.1:{where[1]}:web:8080"


def test_a_name_that_goes_to_another_takes_the_forward_along(make_lab: MakeLab) -> None:
    lab = make_lab()
    other = lab.add_guest("10.0.2.16", OTHER_MAC)
    where = opened(lab, "0:web:8080/udp")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    with sock:
        sock.connect(where)
        call(lab, lab.guest, GUEST_MAC, "web", GUEST)
        sock.send(b"first")
        lab.turn()
        (came,) = lab.guest.datagrams()
        assert came.data == b"first"
        call(lab, lab.guest, GUEST_MAC, "web", GUEST, kind=7)
        call(lab, other, OTHER_MAC, "web", "10.0.2.16")
        other.give(arp(1, "10.0.2.16", GATEWAY, sender_mac=OTHER_MAC))
        lab.turn()
        sock.send(b"second")
        lab.turn()
        (came,) = other.datagrams()
        assert came.data == b"second"
        answer = udp(b"welcome", GATEWAY, came.src_port, src="10.0.2.16", src_port=8080)
        other.give(answer)
        lab.turn()
        assert sock.recv(100) == b"welcome"
    assert lab.network.remove_forward(1)
    assert not lab.network._dispatcher.udp.repliers


def header_of(version: int, octets: bytes) -> tuple[str, str, int, int]:
    """Addresses and ports, by the specification."""
    if version == 1:
        assert octets.endswith(b"\r\n")
        word, family, src, dst, src_port, dst_port = octets[:-2].decode().split(" ")
        assert (word, family) == ("PROXY", "TCP4")
        return src, dst, int(src_port), int(dst_port)
    assert octets[:16] == SIGNATURE + b"\x21\x11\0\x0c"
    source, destination, src_port, dst_port = struct.unpack("!4s4sHH", octets[16:])
    return socket.inet_ntoa(source), socket.inet_ntoa(destination), src_port, dst_port


@pytest.mark.parametrize("version", [1, 2])
def test_a_proxy_header(version: int, make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = opened(lab, f"0:8080,proxy={version}")
    data = bytes(n % 251 for n in range(300_000))
    with client(where, ("127.0.0.7", 0)) as peer:
        own = peer.getsockname()
        stream = accepted(lab)
        lab.turn()
        size = 28 if version == 2 else bytes(stream.received).index(b"\n") + 1
        expected = ("127.0.0.7", where[0], own[1], where[1])
        assert header_of(version, stream.receive(size)) == expected
        assert stream.remote[0] == GATEWAY
        peer.settimeout(0.01)
        got, at = b"", 0
        while len(got) < len(data):  # more than is held on the way
            if at < len(data):
                try:
                    at += peer.send(data[at : at + 50_000])
                except TimeoutError:
                    pass
            lab.turn()
            got += bytes(stream.received)
            stream.received.clear()
        assert got == data
        stream.put(ACK | PSH, b"answer")
        lab.turn()
        assert peer.recv(100) == b"answer"
        peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: stream.got_fin)
        stream.put(ACK | PSH, b"after the end")  # half closed
        lab.turn()
        assert peer.recv(100) == b"after the end"
        stream.finish()
        lab.turn()
        assert peer.recv(1) == b""
    lab.turn()
    assert not lab.network._forwards._pumps
    assert lab.attachment.sockets == 0


@pytest.mark.parametrize("who", ["guest", "peer", "network"])
def test_a_proxied_connection_that_breaks(who: str, make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = opened(lab, "0:8080,proxy=1")
    with client(where) as peer:
        stream = accepted(lab)
        lab.turn()
        if who == "guest":
            stream.reset()
            lab.turn()
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        elif who == "peer":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            lab.turn(lambda: stream.got_fin or stream.got_reset)
            stream.finish()
            lab.turn()
        else:
            lab.network.close()
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
            return
    lab.turn()
    assert not lab.network._forwards._pumps
    assert lab.attachment.sockets == 0


def test_a_guest_that_does_not_read_holds_the_peer_up(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = opened(lab, "0:8080,proxy=2")
    with client(where) as peer:
        stream = accepted(lab)
        stream.auto_ack = False
        peer.setblocking(False)
        sent = 0
        for _ in range(200):
            try:
                sent += peer.send(bytes(100_000))
            except BlockingIOError:
                pass
            lab.turn()
        assert sent < 20_000_000
        (way,) = lab.network._forwards._pumps
        assert len(way._in.held) <= pump.HELD_MAX


@pytest.mark.parametrize("version", [1, 2])
def test_a_unix_peer_with_a_header(version: int, make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab()
    seen(lab)
    path = str(tmp_path / "web")
    lab.network.forward(f"{path}:8080,proxy={version}")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        stream = accepted(lab)
        peer.sendall(b"hello")
        if version == 1:
            assert stream.receive(20) == b"PROXY UNKNOWN\r\nhello"
        else:
            octets = stream.receive(16 + 216 + 5)
            assert octets[12:16] == b"\x21\x31\0\xd8"
            assert octets[16 + 108 :].startswith(path.encode())


def test_the_gateway_as_source(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    target = lab.network._forwards
    plain, asked = opened(lab, "0:8080"), opened(lab, "0:8080,source=gateway")
    del plain, asked
    nat = lab.network._stack.layer(addr(GATEWAY)).nat
    assert [forward.source for forward in lab.network.forwards()] == ["peer", "gateway"]
    sources = []
    for number in (1, 2):
        forward = target._open[number][1]
        ours, theirs = socket.socketpair()
        with theirs:
            guest = lab.network._stack.guests.get(addr(GUEST))
            assert guest is not None
            stranger = ("192.0.2.9", 4000)  # as accept() would name somebody from outside
            target.open(forward, ours, stranger, guest, lab.network.now)  # type: ignore[arg-type]
            sources.append(accepted(lab).remote[0])
    assert sources == ["192.0.2.9", socket.inet_ntoa(nat.gateway)]


def test_the_gateway_as_source_of_datagrams(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    opened(lab, "0:8080/udp,source=gateway")
    forward = lab.network._forwards._open[1][1]
    sender = forward._name(("192.0.2.9", 4000))  # type: ignore[union-attr]
    assert (sender.addr, sender.port) == (addr(GATEWAY), 4000)
