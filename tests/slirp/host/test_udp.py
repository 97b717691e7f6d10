"""The UDP relay: mappings, errors, room, fragments."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from slirp.host import udp as relay
from slirp.host.udp_mapping import MAPPING_FOR
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.guest import GATEWAY, GUEST, Lab, addr, ether, icmp, ipv4, is_right, udp
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab, open_fds
from tests.slirp.host.test_tcp import no_more_descriptors

pytestmark = pytest.mark.usefixtures("every_endpoint")

IP_RECVTTL = 12  # linux/in.h


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that nobody listens on, kept from others by TCP's side of it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def stats(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = lab.network.stats()["udp"]
    return found


@pytest.mark.parametrize("piece", [0, 3, 41, 42, 43])
@pytest.mark.parametrize("size", [0, 1, 2, 17, 1471, 1472])
def test_a_datagram_goes_and_comes_back(
    size: int, piece: int, make_lab: MakeLab, echo: EchoServer
) -> None:
    lab = make_lab(MemoryPort(piece=piece))
    data = bytes(n % 251 for n in range(size))
    for _ in range(2):  # the second one takes the short way
        lab.guest.give(udp(data, GATEWAY, echo.port))
        lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
        (back,) = lab.guest.datagrams()
        assert back == (addr(GATEWAY), echo.port, 40000, data)


def test_the_mapping_is_the_endpoints_whoever_it_talks_to(make_lab: MakeLab) -> None:
    """RFC 4787 REQ-1 and REQ-8: one outer port per inner one; anybody may answer."""
    lab = make_lab()
    with EchoServer() as one, EchoServer() as two, EchoServer() as stranger:
        for server in (one, two):
            lab.guest.give(udp(b"hello", GATEWAY, server.port))
        lab.turn(lambda: one.pump() and two.pump() and all((one.datagrams, two.datagrams)))
        (outer,) = {server.datagrams[0][1] for server in (one, two)}
        lab.turn()
        lab.guest.inbox.clear()
        stranger.udp.sendto(b"unasked", outer)
        lab.turn(lambda: bool(lab.guest.inbox))
        assert lab.guest.datagrams() == [(addr(GATEWAY), stranger.port, 40000, b"unasked")]
        lab.guest.give(udp(b"other", GATEWAY, one.port, src_port=40001))
        lab.turn(lambda: one.pump() and len(one.datagrams) == 2)
        assert one.datagrams[1][1] != outer
        assert stats(lab)["mappings"] == 2


def test_a_mapping_ends_unused(make_lab: MakeLab, echo: EchoServer) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    before = open_fds()
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    clock.advance(MAPPING_FOR - 1)
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn()
    clock.advance(MAPPING_FOR - 1)
    lab.turn()
    assert stats(lab)["mappings"] == 1
    clock.advance(MAPPING_FOR)
    lab.turn()
    assert stats(lab)["mappings"] == 0
    assert open_fds() <= before
    lab.guest.give(udp(b"again", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and echo.datagrams[-1][0] == b"again")


def test_mappings_are_bounded_and_the_oldest_goes(
    make_lab: MakeLab, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAPPINGS_MAX", 4)
    clock = Clock()
    lab = make_lab(clock=clock)
    for port in range(40000, 40020):
        clock.advance(1)
        lab.guest.give(udp(b"x", GATEWAY, echo.port, src_port=port))
        lab.guest.give(udp(b"keep me", GATEWAY, echo.port, src_port=39999))
        lab.turn()
    assert stats(lab)["mappings"] == 4
    kept = {flow["guest"] for flow in lab.network.flows()}
    assert f"{GUEST}:39999" in kept
    assert f"{GUEST}:40019" in kept


@pytest.mark.parametrize("keeps", [True, False])
def test_an_evicted_mapping_in_the_middle_of_a_batch(
    keeps: bool, make_lab: MakeLab, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAPPINGS_MAX", 1)
    port = MemoryPort()
    port.keeps_frames = keeps  # type: ignore[attr-defined]
    lab = make_lab(port)
    lab.guest.give(udp(b"one", GATEWAY, echo.port))
    lab.turn()
    for ttl in (64, 30, 20):
        lab.guest.give(udp(b"one", GATEWAY, echo.port, ttl=ttl))
        lab.guest.give(udp(b"two", GATEWAY, echo.port, src_port=40000 + ttl, ttl=ttl))
        lab.guest.give(udp(b"one", GATEWAY, echo.port, ttl=ttl + 1))
    lab.turn(lambda: echo.pump() and len(echo.datagrams) == 10)


def test_a_run_of_datagrams_keeps_its_borders(make_lab: MakeLab, echo: EchoServer) -> None:
    """A batch to one destination may leave as one; what arrives are the datagrams."""
    port = MemoryPort()
    port.keeps_frames = True  # type: ignore[attr-defined]
    lab = make_lab(port)
    lab.guest.give(udp(b"first", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(echo.datagrams))
    sizes = [100] * 40 + [50, 100, 100, 1, 1, 1200, 1200, 7, 0, 100]
    for number, size in enumerate(sizes):
        lab.guest.give(udp(bytes((number,)) * size, GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and len(echo.datagrams) == 1 + len(sizes))
    came = [data for data, _ in echo.datagrams[1:]]
    assert came == [bytes((number,)) * size for number, size in enumerate(sizes)]


def test_an_error_of_the_host_comes_back(make_lab: MakeLab, deaf: int) -> None:
    """ICMP port unreachable, around the datagram that caused it, from whom it was sent to."""
    lab = make_lab()
    lab.guest.give(udp(b"anybody?", GATEWAY, deaf, src_port=40404))
    lab.turn(lambda: bool(lab.guest.inbox))
    (frame,) = lab.guest.inbox
    assert is_right(frame).src == addr(GATEWAY)
    (message,) = lab.guest.icmps()
    assert (message.type, message.code) == (3, 3)
    assert message.data[9] == 17
    assert message.data[12:20] == addr(GUEST) + addr(GATEWAY)
    assert message.data[20:24] == struct.pack("!HH", 40404, deaf)
    assert message.data[28:] == b"anybody?"


def test_an_error_does_not_end_the_mapping(make_lab: MakeLab, deaf: int, echo: EchoServer) -> None:
    lab = make_lab()
    for _ in range(3):
        lab.guest.give(udp(b"nobody", GATEWAY, deaf))
        lab.guest.give(udp(b"somebody", GATEWAY, echo.port))
        lab.turn(lambda: echo.pump() and len(lab.guest.inbox) >= 2)
        assert [d.data for d in lab.guest.datagrams()] == [b"somebody"]
        assert [m.type for m in lab.guest.icmps()] == [3]


def test_the_ttl_goes_out(make_lab: MakeLab) -> None:
    lab = make_lab()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        server.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        for ttl in (64, 3, 255):
            lab.guest.give(udp(b"x", GATEWAY, server.getsockname()[1], ttl=ttl))
            lab.turn()
            _, ancillary, _, _ = server.recvmsg(10, 100)
            assert struct.unpack("i", ancillary[0][2])[0] == ttl - 1


def test_longer_than_the_mtu_goes_in_fragments(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    lab.guest.inbox.clear()
    for size in (1473, 5000, 65507):
        data = bytes(n % 253 for n in range(size))
        echo.udp.sendto(data, echo.datagrams[0][1])
        want = 8 + size
        lab.turn(lambda: sum(len(f) - 34 for f in lab.guest.inbox) >= want)  # noqa: B023
        packets = lab.guest.packets(17)
        assert len({packet.ident for packet in packets}) == 1
        whole = bytearray(want)
        for packet in packets:
            at = (packet.fragment & 0x1FFF) * 8
            whole[at : at + len(packet.payload)] = packet.payload
            assert bool(packet.fragment & 0x2000) == (at + len(packet.payload) < want)
        assert whole[8:] == data


def test_a_datagram_in_fragments_goes_out_whole(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    data = bytes(n % 249 for n in range(9000))
    datagram = struct.pack("!HHHH", 40000, echo.port, 8 + len(data), 0) + data
    for at in range(0, len(datagram), 1480):
        more = 0x2000 if at + 1480 < len(datagram) else 0
        piece = ipv4(datagram[at : at + 1480], 17, GATEWAY, ident=9, fragment=more | at >> 3)
        lab.guest.give(ether(piece))
    lab.turn(lambda: echo.pump() and bool(echo.datagrams))
    assert echo.datagrams[0][0] == data


def test_fragments_that_never_become_whole_are_told(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    lab.guest.give(ether(ipv4(bytes(64), 17, GATEWAY, ident=9, fragment=0x2000)))
    lab.turn()
    clock.advance(60)
    lab.turn(lambda: bool(lab.guest.inbox))
    (message,) = lab.guest.icmps()
    assert (message.type, message.code) == (11, 1)


def test_without_room_datagrams_stay_in_the_socket(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    lab.guest.inbox.clear()
    lab.port.room = 0
    for number in range(20):
        echo.udp.sendto(bytes((number,)), echo.datagrams[0][1])
    lab.turn()
    assert not [n for n in range(20) if lab.network.poll(0.001)], "it waits, it does not spin"
    assert not lab.guest.inbox
    lab.port.grant(5)
    lab.turn(lambda: len(lab.guest.inbox) >= 4)
    lab.port.grant(None)
    lab.turn(lambda: len(lab.guest.inbox) == 20)
    assert [d.data[0] for d in lab.guest.datagrams()] == list(range(20))


def test_without_descriptors_datagrams_are_lost_and_counted(
    make_lab: MakeLab, echo: EchoServer
) -> None:
    lab = make_lab()
    lab.guest.give(udp(b"old", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(echo.datagrams))
    with no_more_descriptors():
        lab.guest.give(udp(b"new", GATEWAY, echo.port, src_port=40001))
        lab.turn()
    assert stats(lab)["failed"] == 1
    lab.guest.give(udp(b"new", GATEWAY, echo.port, src_port=40001))
    lab.turn(lambda: echo.pump() and echo.datagrams[-1][0] == b"new")


def test_checksums_left_to_the_port(make_lab: MakeLab, echo: EchoServer) -> None:
    """With offloads the field holds the pseudo-header's sum, both ways."""
    lab = make_lab(MemoryPort(max_frame=14 + 65535, offload=True))
    frame = udp(b"unsummed", GATEWAY, echo.port, checksum=0x1234)
    lab.guest.give(frame, bytes((1, 0, 0, 0, 0, 0, 34, 0, 6, 0)))
    lab.network.poll(0.1)
    echo.pump()
    assert echo.datagrams[0][0] == b"unsummed"
    while not lab.port.sent:
        lab.network.poll(0.1)
    assert lab.port.vnets[0][0] == 1
    assert lab.port.vnets[0][6:10] == bytes((34, 0, 6, 0))
    (back,) = lab.port.take()
    pseudo = addr(GATEWAY) + addr(GUEST) + struct.pack("!HH", 17, 16)
    want = sum(struct.unpack("!6H", pseudo)) % 0xFFFF
    assert int.from_bytes(back[40:42], "big") % 0xFFFF == want


def test_an_outbound_address_that_is_not_there(make_lab: MakeLab, echo: EchoServer) -> None:
    """The host has lost the address: nothing goes out, and nothing breaks."""
    lab = make_lab(outbound_addr="192.0.2.99")
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn()
    assert stats(lab)["failed"] == 1
    stream = lab.guest.open((GATEWAY, echo.port))
    lab.turn()
    assert [(m.type, m.code) for m in lab.guest.icmps()] == [(3, 0)] * 2
    assert not stream.got_reset


def test_an_outbound_address(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab(outbound_addr="127.0.0.44")
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(echo.datagrams))
    assert echo.datagrams[0][1][0] == "127.0.0.44"
    lab.guest.connect((GATEWAY, echo.port))
    peer, name = echo.listener.accept()
    peer.close()
    assert name[0] == "127.0.0.44"


def test_detaching_ends_mappings(make_lab: MakeLab, echo: EchoServer) -> None:
    lab = make_lab()
    before = open_fds()
    lab.guest.give(udp(b"x", GATEWAY, echo.port))
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    echo.udp.sendto(b"on its way", echo.datagrams[0][1])
    lab.network.detach(lab.attachment)
    lab.turn()
    assert stats(lab)["mappings"] == 0
    assert open_fds() <= before
    assert not [f for f in lab.port.take() if f[23] == 17]


def test_echo_requests_are_not_datagrams(make_lab: MakeLab) -> None:
    """The gateway answers for itself, whatever the host would."""
    lab = make_lab()
    (frame,) = lab.exchange(icmp(8, 0, 0x70001, b"ping", GATEWAY))
    packet = is_right(frame)
    assert packet.payload[0] == 0
    assert packet.payload[4:] == b"\0\7\0\1ping"
    assert stats(lab)["mappings"] == 0
