"""UDP forwards: who is who, what waits for whom, and from where answers leave."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nic.tap import open_tap
from slirp.host import forward_udp as relay
from slirp.host.udp_send import dropped_by_kernel
from slirp.ip.resolution import ASK_EVERY, HOLD_FOR
from tests.kit.clock import Clock
from tests.kit.echo import EchoServer
from tests.kit.forked import in_namespace
from tests.kit.guest import GATEWAY, GUEST, Lab, addr, arp, is_right, udp
from tests.kit.need import need_tool, need_tun
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab, open_fds
from tests.slirp.host.test_forward import TO_GUEST, forwarded, resolution, seen

GUEST_PORT = TO_GUEST[1]


@contextlib.contextmanager
def peer(
    where: tuple[Any, ...] | None = None, source: tuple[str, int] | None = None
) -> Iterator[socket.socket]:
    """A socket of the host's; connected, where it is told to whom."""
    family = socket.AF_INET6 if where and ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        if source is not None:
            sock.bind(source)
        if where is not None:
            sock.connect(where)
        yield sock


def answer_all(lab: Lab, prefix: bytes = b"") -> int:
    """The guest sends every datagram back to whom it came from."""
    datagrams = lab.guest.datagrams()
    for datagram in datagrams:
        assert datagram.src == addr(GATEWAY)
        assert datagram.dst_port == GUEST_PORT
        lab.guest.give(udp(prefix + datagram.data, GATEWAY, datagram.src_port, src_port=GUEST_PORT))
    lab.turn()
    return len(datagrams)


def test_datagrams_both_ways(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = forwarded(lab, "udp")
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
        ]
        for number, peer in enumerate(peers):
            peer.settimeout(5)
            peer.sendto(b"from %d" % number, where)
        lab.turn(lambda: len(lab.guest.inbox) == 3)
        for datagram in lab.guest.datagrams():
            assert datagram.dst_port == 8080
            assert datagram.src == addr(GATEWAY)
            lab.guest.give(udp(b"re: " + datagram.data, GATEWAY, datagram.src_port, src_port=8080))
        lab.turn()
        for number, peer in enumerate(peers):
            assert peer.recvfrom(100) == (b"re: from %d" % number, where)


def test_two_datagram_peers_with_one_port_get_their_own_answers(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    where = forwarded(lab, "udp", "0.0.0.0")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        one.bind(("127.0.0.2", 0))
        two.bind(("127.0.0.3", one.getsockname()[1]))
        for peer in (one, two):
            peer.settimeout(5)
            peer.sendto(peer.getsockname()[0].encode(), ("127.0.0.1", where[1]))
        lab.turn(lambda: len(lab.guest.inbox) == 2)
        for datagram in lab.guest.datagrams():
            lab.guest.give(udp(datagram.data, GATEWAY, datagram.src_port, src_port=8080))
        lab.turn()
        for peer in (one, two):
            assert peer.recv(100) == peer.getsockname()[0].encode()


def test_datagrams_wait_for_room(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    with peer(forwarded(lab, "udp")) as sock:
        lab.port.room = 0
        for number in range(10):
            sock.send(bytes((number,)))
        lab.turn()
        assert not [n for n in range(20) if lab.network.poll(0.001)]
        lab.port.grant(None)
        lab.turn(lambda: len(lab.guest.inbox) == 10)
        assert [d.data[0] for d in lab.guest.datagrams()] == list(range(10))


def test_senders_are_bounded_and_the_oldest_is_forgotten(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SENDERS_MAX", 4)
    lab = make_lab()
    seen(lab)
    where = forwarded(lab, "udp")
    for number in range(20):
        with peer(where) as sock:
            sock.send(bytes((number,)))
            lab.turn()
    lab.turn(lambda: len(lab.guest.inbox) == 20)
    assert lab.network.stats()["udp"]["senders_forgotten"] == 16


# --- before the guest is there --------------------------------------------------------------------


def test_the_first_datagrams_wait_for_the_guest(make_lab: MakeLab) -> None:
    """RFC 1122 §2.3.2.2; libslirp keeps them as well."""
    lab = make_lab()
    with peer(forwarded(lab, "udp")) as sock:
        for number in range(100):
            sock.send(bytes((number,)))
        lab.turn(lambda: len(lab.guest.inbox) == 100)  # the kit's guest answers ARP
        assert [d.data[0] for d in lab.guest.datagrams()] == list(range(100))
        assert resolution(lab) == {
            "waiting": 0, "requests": 1, "delivered": 100, "displaced": 0, "unreachable": 0,
        }  # fmt: skip
        sock.send(b"later")
        lab.turn(lambda: bool(lab.guest.inbox))
        assert answer_all(lab, b"re: ") == 1
        assert sock.recv(100) == b"re: later"


def test_a_long_datagram_waits_too(make_lab: MakeLab) -> None:
    lab = make_lab()
    data = bytes(n % 251 for n in range(5000))
    with peer(forwarded(lab, "udp")) as sock:
        sock.send(data)
        lab.turn(lambda: len(lab.guest.inbox) == 4)
        pieces = sorted(lab.guest.packets(17), key=lambda packet: packet.fragment & 0x1FFF)
        assert b"".join(packet.payload for packet in pieces)[8:] == data


def test_what_waited_comes_first_although_there_is_no_room(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.guest.answers_arp = False
    with peer(forwarded(lab, "udp")) as sock:
        for number in range(10):
            sock.send(bytes((number,)))
        lab.turn(lambda: resolution(lab)["waiting"] == 10)
        lab.guest.inbox.clear()
        lab.port.room = 0
        lab.guest.give(arp(1, GUEST, GATEWAY))
        lab.turn()
        for number in range(10, 20):
            sock.send(bytes((number,)))
        lab.turn()
        assert not [n for n in range(20) if lab.network.poll(0.001)], "it waits, it does not spin"
        lab.port.grant(5)
        lab.turn()
        lab.port.grant(None)
        lab.turn()
        came = [d.data[0] for d in lab.guest.datagrams() if d.dst_port == GUEST_PORT]
        assert came == list(range(20))


def test_a_guest_that_never_answers(make_lab: MakeLab) -> None:
    """It is asked for once a second; datagrams are given up and counted."""
    clock = Clock()
    lab = make_lab(clock=clock)
    lab.guest.answers_arp = False
    with peer(forwarded(lab, "udp")) as sock:
        for _ in range(100):
            sock.send(b"hello?")
        lab.turn(lambda: resolution(lab)["waiting"] == 100)
        for second in range(1, 8):
            clock.advance(ASK_EVERY)
            lab.turn()
            assert resolution(lab)["requests"] == min(1 + second, HOLD_FOR)
        assert resolution(lab)["unreachable"] == 100
        lab.guest.inbox.clear()
        seen(lab)
        sock.send(b"there you are")
        lab.turn(lambda: bool(lab.guest.inbox))
        assert [d.data for d in lab.guest.datagrams()] == [b"there you are"]


def test_a_forward_that_is_removed_while_datagrams_wait(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.guest.answers_arp = False
    before = open_fds()
    forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=TO_GUEST)
    assert isinstance(forward.host, tuple)
    with peer(forward.host) as sock:
        sock.send(b"hello?")
        lab.turn(lambda: resolution(lab)["waiting"] == 1)
        lab.network.remove_forward(forward.id)
        seen(lab)
        assert resolution(lab)["waiting"] == 0
    assert open_fds() <= before


# --- from where an answer leaves ------------------------------------------------------------------


def wildcard(lab: Lab, address: str) -> int:
    """The port of a forward from every address."""
    host = lab.network.forward("udp", host=(address, 0), guest=TO_GUEST).host
    assert isinstance(host, tuple)
    return host[1]


def test_the_address_that_was_asked_answers(make_lab: MakeLab) -> None:
    """A connected socket takes an answer from no other."""
    lab = make_lab()
    seen(lab)
    port = wildcard(lab, "0.0.0.0")
    with contextlib.ExitStack() as stack:
        asked = [f"127.0.0.{number}" for number in range(1, 6)]
        peers = [stack.enter_context(peer((address, port))) for address in asked]
        for sock, address in zip(peers, asked, strict=True):
            sock.send(address.encode())
        lab.turn(lambda: len(lab.guest.inbox) == len(asked))
        answer_all(lab)
        assert [sock.recv(100).decode() for sock in peers] == asked


def test_one_peer_that_asks_two_addresses(make_lab: MakeLab) -> None:
    """For the guest it is two, so that each answer has its way back."""
    lab = make_lab()
    seen(lab)
    port = wildcard(lab, "0.0.0.0")
    with peer() as sock:
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            sock.sendto(address.encode(), (address, port))
            lab.turn()
        lab.turn(lambda: len(lab.guest.inbox) == 3)
        answer_all(lab)
        for _ in range(3):
            data, source = sock.recvfrom(100)
            assert source == (data.decode(), port)


def test_an_address_of_ipv6_that_was_asked_answers() -> None:
    def body() -> None:
        need_ipv6_addresses("2001:db8::1", "2001:db8::2")
        with Lab() as lab:
            seen(lab)
            port = wildcard(lab, "::")
            for asked in ("::1", "2001:db8::1", "2001:db8::2"):
                with peer((asked, port), source=("::1", 0)) as sock:
                    sock.send(asked.encode())
                    lab.turn(lambda: bool(lab.guest.inbox))
                    answer_all(lab)
                    assert sock.recv(100).decode() == asked

    in_namespace(body)


def need_ipv6_addresses(*addresses: str) -> None:
    for address in addresses:
        assert not os.system(f"{need_tool('ip')} addr add {address}/128 dev lo nodad")


@pytest.mark.parametrize("is_seen", [True, False])
def test_what_only_ipv6_can_carry_is_counted(is_seen: bool, make_lab: MakeLab) -> None:
    lab = make_lab()
    if is_seen:
        seen(lab)
    host = lab.network.forward("udp", host=("::1", 0), guest=TO_GUEST).host
    assert isinstance(host, tuple)
    with peer(host) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for size in (65527, 65508, 3):
            sock.send(bytes(size))
        lab.turn(lambda: bool(lab.guest.inbox))
        assert [len(d.data) for d in lab.guest.datagrams()] == [3]
    assert lab.network.stats()["udp"]["failed"] == 2


def test_a_link_local_address_answers_on_its_link() -> None:
    """fe80::1 is on both links; only the interface tells which is meant."""
    need_tun()

    def body() -> None:
        ip = need_tool("ip")
        taps = [open_tap(name, vnet=False)[0] for name in ("one", "two")]
        for name in ("one", "two"):
            for command in (
                f"link set {name} addrgenmode none", f"link set {name} up",
                f"addr add fe80::1/64 dev {name} nodad", f"addr add fe80::2/64 dev {name} nodad",
            ):  # fmt: skip
                assert not os.system(f"{ip} {command}")
        with Lab() as lab:
            seen(lab)
            port = wildcard(lab, "::")
            for name in ("one", "two"):
                scope = socket.if_nametoindex(name)
                for asked in ("fe80::1", "fe80::2"):
                    with peer((asked, port, 0, scope)) as sock:
                        sock.send(asked.encode())
                        lab.turn(lambda: bool(lab.guest.inbox))
                        answer_all(lab)
                        assert sock.recv(100).decode() == asked
        for tap in taps:
            os.close(tap)

    in_namespace(body)


def test_a_forward_on_one_address_needs_no_ancillary_data(make_lab: MakeLab) -> None:
    lab = make_lab()
    forwarded(lab, "udp")
    ((forward,),) = lab.network._dispatcher.udp.repliers.values()
    assert isinstance(forward, relay.DatagramForward)
    assert forward._info.room == 0


# --- bursts and failures --------------------------------------------------------------------------


def test_a_burst_of_new_senders_is_answered(make_lab: MakeLab) -> None:
    """All of it comes before the network has a turn: 256 are what the kernel keeps by default."""
    lab = make_lab()
    seen(lab)
    where = forwarded(lab, "udp")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(where)) for _ in range(400)]
        for number, sock in enumerate(peers):
            sock.send(b"%d" % number)
        lab.turn(lambda: len(lab.guest.inbox) == len(peers))
        answer_all(lab)
        for number, sock in enumerate(peers):
            assert sock.recv(100) == b"%d" % number
    assert lab.network.stats()["udp"]["dropped_by_host"] == 0


def test_what_the_kernel_has_no_room_for_is_counted(make_lab: MakeLab) -> None:
    lab = make_lab()
    seen(lab)
    forward = lab.network.forward("udp", host=("127.0.0.1", 0), guest=TO_GUEST)
    ((opened,),) = lab.network._dispatcher.udp.repliers.values()
    assert isinstance(opened, relay.DatagramForward)
    opened.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    assert isinstance(forward.host, tuple)
    with peer(forward.host) as sock:
        for _ in range(100):
            sock.send(bytes(100))
        lab.turn()
        arrived = len(lab.guest.datagrams())
        assert 0 < arrived < 100
        lost = lab.network.stats()["udp"]["dropped_by_host"]
        assert arrived + lost == 100
    lab.network.remove_forward(forward.id)
    assert lab.network.stats()["udp"]["dropped_by_host"] == lost


def test_what_a_mapping_lost_is_counted(make_lab: MakeLab) -> None:
    lab = make_lab()
    with EchoServer() as echo:
        lab.guest.give(udp(b"x", GATEWAY, echo.port))
        lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
        (mapping,) = lab.network._dispatcher.udp.mappings.values()
        mapping.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(100):
            echo.udp.sendto(bytes(100), echo.datagrams[0][1])
        lost = dropped_by_kernel(mapping.sock)
        assert lab.network.stats()["udp"]["dropped_by_host"] == lost > 0
        lab.network.detach(lab.attachment)
        assert lab.network.stats()["udp"]["dropped_by_host"] == lost


@pytest.mark.parametrize("size", [100, 1200])
def test_a_run_of_answers_keeps_its_borders(size: int, make_lab: MakeLab) -> None:
    """A guest with USO hands over several datagrams as one frame."""
    lab = make_lab(MemoryPort(max_frame=14 + 65535, offload=True))
    seen(lab)
    data = b"".join(bytes((number,)) * size for number in range(5)) + b"end"
    with peer(forwarded(lab, "udp")) as sock:
        sock.send(b"question")
        while not lab.port.sent:
            lab.network.poll(0.1)
        (question,) = (f for f in lab.port.take() if f[23] == 17)
        port = int.from_bytes(question[34:36], "big")
        vnet = bytes((1, 5, 42, 0)) + size.to_bytes(2, "little") + bytes((34, 0, 6, 0))
        lab.guest.give(udp(data, GATEWAY, port, src_port=GUEST_PORT), vnet)
        for _ in range(3):
            lab.network.poll(0.01)
        sock.settimeout(1)
        came = [sock.recv(65536) for _ in range(6)]
    assert came == [bytes((number,)) * size for number in range(5)] + [b"end"]


def test_an_answer_that_cannot_be_sent_is_told(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    seen(lab)

    class Unreachable(socket.socket):
        def sendmsg(self, *args: Any) -> int:
            raise OSError(errno.ENETUNREACH, "gone")

    monkeypatch.setattr(socket, "socket", Unreachable)
    where = forwarded(lab, "udp")
    monkeypatch.undo()
    with peer(where) as sock:
        sock.send(b"question")
        lab.turn(lambda: bool(lab.guest.inbox))
        (datagram,) = lab.guest.datagrams()
        lab.guest.give(udp(b"answer", GATEWAY, datagram.src_port, src_port=GUEST_PORT))
        lab.turn(lambda: bool(lab.guest.inbox))
        assert is_right(lab.guest.inbox[0]).src == addr(GATEWAY)
        (message,) = lab.guest.icmps()
        assert (message.type, message.code) == (3, 0)
        assert message.data[20:24] == GUEST_PORT.to_bytes(2, "big") + (
            datagram.src_port.to_bytes(2, "big")
        )
        assert message.data[28:] == b"answer"
    assert lab.network.stats()["udp"]["failed"] == 1
