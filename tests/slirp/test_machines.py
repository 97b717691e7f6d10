"""Several machines on one network, each a plain socket that speaks QEMU's framing."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slirp.machines
from nic.port import VNET_NONE
from nic.vfio_user.messages import HEADER, VERSION, Command
from nic.vfio_user.port import VfioUserPort
from slirp import Network
from slirp.cli.endpoint import Renewable, open_endpoint
from slirp.machines import Server
from slirp.wire.virtio_net import GSO_NONE, GSO_TCPV4, NEEDS_CSUM, VnetHeader
from tests.kit.echo import EchoServer
from tests.kit.guest import ACK, BROADCAST_MAC, GATEWAY, OWN_MAC, arp, icmp, internet_sum, tcp, udp
from tests.kit.port import MemoryPort

TURNS_FOR = 10.0  # seconds after which what a test waits for counts as never


def mac(number: int) -> bytes:
    return b"\x52\x54\0\0\0" + bytes((number,))


class Machine:
    """The far end: whole frames in, whole frames out."""

    def __init__(self, desk: Desk, sock: socket.socket, number: int) -> None:
        self.desk = desk
        self.sock = sock
        self.mac = mac(number)
        self.addr = f"10.0.2.{100 + number % 100}"
        self._octets = b""
        self._ended = False
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.sock.sendall(struct.pack("!I", len(frame)) + frame)

    def greet(self) -> None:
        """Ask for the gateway's address, and hear it: the machine is known from now on."""
        self.send(arp(1, self.addr, GATEWAY, sender_mac=self.mac))
        self.desk.until(lambda: any(f[:6] == self.mac and f[6:12] == OWN_MAC for f in self.read()))
        self.frames.clear()

    def read(self) -> list[bytes]:
        """All that came so far, but for the greetings of other machines."""
        while select.select([self.sock], [], [], 0)[0]:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                self._ended = True
                break
            self._octets += data
        while len(self._octets) >= 4:
            (length,) = struct.unpack_from("!I", self._octets)
            if len(self._octets) < 4 + length:
                break
            frame, self._octets = self._octets[4 : 4 + length], self._octets[4 + length :]
            if frame[:6] != BROADCAST_MAC or frame[12:14] != b"\x08\x06":
                self.frames.append(frame)
        return self.frames

    @property
    def cut_off(self) -> bool:
        self.read()
        return self._ended


class Desk:
    """A network, its server, and what it said."""

    def __init__(self, folder: Path, **options: bool) -> None:
        self.said: list[str] = []
        options.setdefault("ra_enabled", False)  # so that nothing comes unasked
        self.network = Network(**options)  # type: ignore[arg-type]
        self.server = Server(self.network, report=self.said.append)
        self.path = str(folder / "net")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.server.listen(listener, "net")
        self.machines: list[Machine] = []

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TURNS_FOR
        while not condition():
            assert time.monotonic() < deadline, self.said
            self.network.poll(0.01)

    def settle(self) -> None:
        while self.network.poll(0):
            pass

    def connect(self) -> Machine:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        machine = Machine(self, sock, len(self.machines) + 1)
        self.machines.append(machine)
        return machine

    def join(self) -> Machine:
        machine = self.connect()
        machine.greet()
        return machine

    def close(self) -> None:
        self.server.close()
        self.network.close()
        for machine in self.machines:
            machine.sock.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def unicast(source: Machine, target: Machine, payload: bytes = b"hello") -> bytes:
    return (target.mac + source.mac + b"\x88\xb5" + payload).ljust(60, b"\0")


def test_machines_reach_each_other(desk: Desk) -> None:
    a, b, c = desk.join(), desk.join(), desk.join()
    a.send(unicast(a, b))
    desk.until(lambda: b.read() == [unicast(a, b)])
    b.send(unicast(b, a))
    desk.until(lambda: a.read() == [unicast(b, a)])
    assert c.read() == []


def test_a_group_reaches_all_others(desk: Desk) -> None:
    a, b, c = desk.join(), desk.join(), desk.join()
    for group in (BROADCAST_MAC, b"\x01\0\x5e\0\0\xfb"):
        frame = (group + a.mac + b"\x88\xb5").ljust(60, b"\0")
        a.send(frame)
        desk.until(lambda frame=frame: b.read()[-1:] == c.read()[-1:] == [frame])  # type: ignore[misc]
    assert a.read() == []


def test_an_unknown_address_is_looked_for_everywhere(desk: Desk) -> None:
    a, b = desk.join(), desk.join()
    frame = (mac(99) + a.mac + b"\x88\xb5").ljust(60, b"\0")
    a.send(frame)
    desk.until(lambda: b.read() == [frame])


def test_the_network_itself_is_not_flooded(desk: Desk) -> None:
    a, b = desk.join(), desk.join()
    request = icmp(8, 0, 0x10001, b"ping", GATEWAY, src=a.addr)
    a.send(OWN_MAC + a.mac + request[12:])
    desk.until(lambda: bool(a.read()))
    assert a.frames[0][34] == 0  # echo reply
    assert b.read() == []


def test_isolated_machines_reach_only_the_network(tmp_path: Path) -> None:
    desk = Desk(tmp_path, isolate=True)
    a, b = desk.join(), desk.join()
    a.send(unicast(a, b))
    a.send((BROADCAST_MAC + a.mac + b"\x88\xb5").ljust(60, b"\0"))
    a.send(arp(1, a.addr, b.addr, sender_mac=a.mac))
    a.greet()  # what was sent before has been seen
    desk.settle()
    assert b.read() == []
    assert desk.network.stats()["refused"]["isolated"] == 1
    desk.close()


def test_machines_have_one_pool_of_addresses(desk: Desk) -> None:
    a, b = desk.join(), desk.join()
    for machine in (a, b):
        discover = struct.pack("!BBBBIHH16x6s10x192x", 1, 1, 6, 0, 7, 0, 0x8000, machine.mac)
        discover += b"\x63\x82\x53\x63\x35\x01\x01\xff"
        udp = struct.pack("!HHHH", 68, 67, 8 + len(discover), 0) + discover
        frame = tcp(0, "255.255.255.255", 0, src="0.0.0.0")
        head = bytearray(frame[14:34])
        head[2:4] = (20 + len(udp)).to_bytes(2, "big")
        head[9] = 17
        head[10:12] = bytes(2)
        total = sum(struct.unpack("!10H", head))
        head[10:12] = (0xFFFF ^ (total % 0xFFFF)).to_bytes(2, "big")
        machine.send(BROADCAST_MAC + machine.mac + b"\x08\x00" + bytes(head) + udp)
    offered = []
    for machine in (a, b):
        desk.until(lambda m=machine: any(f[6:12] == OWN_MAC for f in m.read()))  # type: ignore[misc]
        offer = next(f for f in machine.frames if f[6:12] == OWN_MAC)
        offered.append(socket.inet_ntoa(offer[58:62]))
    assert sorted(offered) == ["10.0.2.15", "10.0.2.16"]


@pytest.mark.parametrize("length", [0, 13, 65551, 0xFFFFFFFF])
def test_one_that_breaks_the_framing_is_cut_off_alone(desk: Desk, length: int) -> None:
    a, b, c = desk.join(), desk.join(), desk.join()
    b.sock.sendall(struct.pack("!I", length))
    desk.until(lambda: b.cut_off)
    assert [line for line in desk.said if str(length) in line and "machine 2" in line]
    a.send(unicast(a, c))
    desk.until(lambda: c.read() == [unicast(a, c)])
    assert len(desk.server.machines) == 2


@pytest.mark.parametrize("size", [14, 59, 60, 1513, 1514, 1515, 65535, 65536, 65549, 65550])
def test_frames_at_the_bounds_of_the_link(desk: Desk, size: int) -> None:
    """What is too long for the MTU is counted and goes nowhere; the connection stays."""
    a, b = desk.join(), desk.join()
    frame = (b.mac + a.mac + b"\x88\xb5").ljust(size, b"f")
    a.send(frame)
    if size <= 1514:
        desk.until(lambda: b.read() == [frame.ljust(60, b"\0")])
    else:
        desk.until(lambda: bool(desk.network.stats()["malformed"]))
        assert b.read() == []
    b.send(unicast(b, a))
    desk.until(lambda: a.read() == [unicast(b, a)])


def test_machines_that_come_and_go_leave_nothing(desk: Desk) -> None:
    desk.join()
    gc.collect()  # what other tests have left
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(50):
        machine = desk.join()
        machine.sock.close()
        desk.until(lambda: len(desk.server.machines) == 1)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list(desk.network.stats()["ports"]) == ["machine 1"]


def test_a_machine_leaves_and_comes_back(desk: Desk) -> None:
    a, b = desk.join(), desk.join()
    b.sock.close()
    desk.until(lambda: len(desk.server.machines) == 1)
    assert desk.said[-1] == "machine 2 closed its connection"
    again = desk.connect()
    again.mac, again.addr = b.mac, b.addr
    again.greet()
    a.send(unicast(a, again))
    desk.until(lambda: again.read() == [unicast(a, again)])
    assert desk.said[-1] == "machine 3 connected to net"


def test_a_machine_that_moves_is_found(desk: Desk) -> None:
    """Two connections with one address: the one that sent last has it."""
    a, b, c = desk.join(), desk.join(), desk.join()
    c.mac = b.mac
    c.send(unicast(c, a))
    desk.until(lambda: a.read() == [unicast(c, a)])
    a.send(unicast(a, b))
    desk.until(lambda: c.read() == [unicast(a, b)])
    assert b.read() == []


def test_a_connection_in_use_ends_with_its_machine(desk: Desk) -> None:
    a = desk.join()
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        syn = tcp(2, GATEWAY, port, src=a.addr)
        a.send(OWN_MAC + a.mac + syn[12:])
        desk.until(lambda: bool(a.read()))
        sock, _ = host.accept()
        desk.settle()
        a.sock.close()
        desk.until(lambda: not desk.server.machines)
        desk.settle()
        assert desk.network.flows() == []
        sock.settimeout(5)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        sock.close()


def test_the_number_of_machines_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slirp.machines, "MACHINES_MAX", 2)
    a = desk.join()
    desk.join()
    third = desk.connect()
    desk.until(lambda: third.cut_off)
    assert "turned away" in desk.said[-1]
    a.sock.close()
    desk.until(lambda: len(desk.server.machines) == 1)
    desk.join()


def test_a_slow_machine_slows_nobody_else(desk: Desk) -> None:
    """Frames for one that does not read are lost at its port, in bounded number."""
    a, b, c = desk.join(), desk.join(), desk.join()
    big = unicast(a, b, bytes(1400))
    for _ in range(1000):
        a.send(big)
        desk.settle()
    stats = desk.network.stats()["ports"]
    assert stats["machine 2"]["lost"] > 0
    a.send(unicast(a, c))
    desk.until(lambda: c.read() == [unicast(a, c)])
    desk.until(lambda: len(b.read()) == 1000 - stats["machine 2"]["lost"])
    assert set(b.frames) == {big}


# Frames between ports of two kinds


class OffloadPort(MemoryPort):
    offload = True
    max_frame = 65549


def offloading(desk: Desk) -> tuple[MemoryPort, Machine]:
    port = OffloadPort()
    port.offload = True
    port.max_frame = 65549
    desk.network.attach(port)
    return port, desk.join()


def test_a_checksum_is_finished_for_a_port_without_offloads(desk: Desk) -> None:
    port, b = offloading(desk)
    whole = tcp(ACK, b.addr, 80, src="10.0.2.50", data=b"data")
    whole = b.mac + mac(50) + whole[12:]
    undone = whole[:50] + b"\x12\x34" + whole[52:]
    pseudo = whole[26:34] + struct.pack("!HH", 6, len(whole) - 34)
    total = sum(struct.unpack("!6H", pseudo)) % 0xFFFF
    undone = whole[:50] + total.to_bytes(2, "big") + whole[52:]
    port.give(undone, VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 34, 16).emit())
    desk.until(lambda: b.read() == [whole.ljust(60, b"\0")])


def test_a_large_segment_is_cut_for_a_port_without_offloads(desk: Desk) -> None:
    port, b = offloading(desk)
    data = bytes(range(256)) * 20
    frame = tcp(ACK, b.addr, 80, src="10.0.2.50", data=data)
    vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1460, 34, 16).emit()
    port.give(b.mac + mac(50) + frame[12:], vnet)
    desk.until(lambda: len(b.read()) == 4)
    assert b"".join(frame[54:] for frame in b.frames) == data
    assert max(map(len, b.frames)) == 1514


def test_what_cannot_be_finished_is_malformed(desk: Desk) -> None:
    port, b = offloading(desk)
    frame = tcp(ACK, b.addr, 80, src="10.0.2.50", data=b"data")
    port.give(b.mac + mac(50) + frame[12:], VnetHeader(0, GSO_TCPV4, 0, 0, 0, 0).emit())
    desk.until(lambda: any("virtio-net" in k for k in desk.network.stats()["malformed"]))
    assert b.read() == []


def test_a_frame_that_the_other_link_cannot_carry_is_lost(desk: Desk) -> None:
    port, b = offloading(desk)
    port.give(b.mac + mac(50) + b"\x88\xb5" + bytes(3000), VNET_NONE)
    desk.until(lambda: desk.network.stats()["ports"]["machine 1"]["lost"] == 1)
    assert b.read() == []


# Datagrams


def test_a_datagram_machine_and_a_stream_machine_share_a_network(desk: Desk) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    desk.server.add_datagram(ours, "pair")
    b = desk.join()
    frame = (b.mac + mac(50) + b"\x88\xb5dgram").ljust(60, b"\0")
    theirs.send(frame)
    desk.until(lambda: b.read() == [frame])
    answer = (mac(50) + b.mac + b"\x88\xb5stream").ljust(60, b"\0")
    b.send(answer)
    frames: list[bytes] = []

    def arrived() -> bool:
        while select.select([theirs], [], [], 0)[0]:
            frames.append(theirs.recv(70_000))
        return answer in frames

    desk.until(arrived)
    assert "pair: a machine is there" in desk.said
    theirs.close()


class Grams:
    """A datagram socket at a path of the desk's, and machines that join it as libkrun does."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        first = open_endpoint(f"dgram:{folder}/grams")
        assert first.made is not None
        self.path = Renewable(first.made)
        self.socks: list[socket.socket] = []
        desk.server.add_datagrams(first.sock, "grams", self.path.renew)

    def connect(self, number: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socks.append(sock)
        sock.bind(str(self.folder / f"krun{number}"))
        sock.connect(str(self.folder / "grams"))
        sock.send(b"VFKT")
        return sock

    def join(self, number: int) -> socket.socket:
        sock = self.connect(number)
        count = len(self.desk.said)
        self.desk.until(lambda: len(self.desk.said) > count)
        return sock

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


@pytest.fixture
def grams(desk: Desk, tmp_path: Path) -> Iterator[Grams]:
    grams = Grams(desk, tmp_path)
    yield grams
    grams.close()


def taken(sock: socket.socket) -> list[bytes]:
    """Datagrams that came, but for questions to everybody."""
    frames = []
    while select.select([sock], [], [], 0)[0]:
        frames.append(sock.recv(70_000))
    return [frame for frame in frames if frame[:6] != BROADCAST_MAC]


def between(source: int, target: int, payload: bytes = b"hello") -> bytes:
    return (mac(target) + mac(source) + b"\x88\xb5" + payload).ljust(60, b"\0")


def test_machines_that_join_a_datagram_socket_reach_each_other(desk: Desk, grams: Grams) -> None:
    a, b = grams.join(1), grams.join(2)
    assert desk.said == ["machine 1 connected to grams", "machine 2 connected to grams"]
    a.send(between(1, 2))
    desk.until(lambda: taken(b) == [between(1, 2)])
    b.send(between(2, 1))
    desk.until(lambda: taken(a) == [between(2, 1)])
    assert list(desk.network.stats()["ports"]) == ["machine 1", "machine 2", "grams"]


def test_one_that_does_not_read_holds_up_no_other(desk: Desk, grams: Grams) -> None:
    """Each has a socket of its own, so one's full queue is its own."""
    a, b, c = grams.join(1), grams.join(2), grams.join(3)
    for sock, number in ((a, 1), (b, 2), (c, 3)):
        sock.send(between(number, 99))
    desk.settle()
    taken(a), taken(b), taken(c)
    port = desk.server.machines[1].port
    while port.claim(60) is not None:
        a.send(between(1, 2, bytes(1000)))
        desk.settle()
    a.send(between(1, 3))
    desk.until(lambda: taken(c) == [between(1, 3)])


def test_one_that_ended_is_taken_off(desk: Desk, grams: Grams) -> None:
    """By a frame that it does not take, or by the next one's coming."""
    a, b = grams.join(1), grams.join(2)
    b.send(between(2, 99))
    desk.settle()
    b.close()
    a.send(between(1, 2))
    desk.until(lambda: desk.said[-1] == "machine 2 is gone")
    a.close()
    grams.join(3)
    desk.until(lambda: desk.said[-1] == "machine 1 is gone")
    assert [machine.name for machine in desk.server.machines] == ["machine 3"]


def test_as_many_may_join_as_may_connect(
    desk: Desk, grams: Grams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slirp.machines, "MACHINES_MAX", 2)
    grams.join(1), grams.join(2)
    third = grams.join(3)
    desk.settle()
    assert desk.said[2:] == [
        "machine 3 connected to grams",
        "machine 3 is turned away: 2 others are connected",
    ]
    with pytest.raises(ConnectionRefusedError):
        third.send(between(3, 1))
    assert len(desk.server.machines) == 2
    grams.socks[0].close()
    grams.join(4)
    desk.until(lambda: len(desk.server.machines) == 2)
    assert desk.server.machines[-1].name == "machine 4"


def test_machines_that_join_and_end_leave_nothing(desk: Desk, grams: Grams) -> None:
    first = grams.join(1)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2, 30):
        grams.join(number).close()
    grams.join(30)
    desk.until(lambda: len(desk.server.machines) == 2)
    grams.socks.pop().close()
    first.send(between(1, 30))
    assert len(desk.server.machines) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the last one's socket and epoll


def test_no_socket_for_the_next_one_is_told(
    desk: Desk, grams: Grams, monkeypatch: pytest.MonkeyPatch
) -> None:
    (grams.folder / "grams").rename(grams.folder / "moved")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    grams.socks.append(sock)
    sock.bind(str(grams.folder / "krun1"))
    sock.connect(str(grams.folder / "moved"))
    sock.send(between(1, 99))
    desk.until(lambda: len(desk.said) == 2)
    assert desk.said[1] == "grams: another socket is at the path; no other machine can come"


# Frames from which the virtio-net header was dropped


def undone(frame: bytes) -> bytes:
    """The frame with its checksum left to a device, as a driver leaves it."""
    protocol = frame[23]
    field = 34 + (16 if protocol == 6 else 6)
    pseudo = frame[26:34] + struct.pack("!HH", protocol, len(frame) - 34)
    total = internet_sum(pseudo)
    return frame[:field] + total.to_bytes(2, "big") + frame[field + 2 :]


def test_a_checksum_that_was_left_undone_is_none(desk: Desk) -> None:
    """For machines behind sockets, and only where it is the pseudo-header's sum."""
    a = desk.join()
    with EchoServer() as server:
        query = udp(b"data", GATEWAY, server.port, src=a.addr)
        query = query[:6] + a.mac + query[12:]
        a.send(undone(query))
        desk.until(lambda: server.pump() and len(server.datagrams) == 1)
        broken = bytearray(undone(query))
        broken[41] ^= 1
        a.send(bytes(broken))
        desk.until(lambda: desk.network.stats()["malformed"] == {"udp: checksum": 1})
    port = MemoryPort()
    desk.network.attach(port)
    port.give(undone(udp(b"data", GATEWAY, 9, src="10.0.2.60")))
    desk.until(lambda: desk.network.stats()["malformed"] == {"udp: checksum": 2})


def test_closing_closes_everything(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    a = desk.join()
    desk.server.close()
    assert a.cut_off
    assert desk.server.machines == []
    with socket.socket(socket.AF_UNIX) as sock:
        assert sock.connect_ex(desk.path) == errno.ECONNREFUSED
    desk.close()


def version_of(sock: socket.socket) -> None:
    """Begin to speak vfio-user."""
    sock.send(
        HEADER.pack(1, Command.VERSION, HEADER.size + VERSION.size, 0, 0) + VERSION.pack(0, 0)
    )


def test_a_client_of_vfio_user_ends_only_itself(desk: Desk) -> None:
    other = desk.join()
    good, bad = socket.socketpair(), socket.socketpair()
    cards = [desk.server.add(theirs, "card", "vfio-user") for _, theirs in (good, bad)]
    for ours, _ in (good, bad):
        version_of(ours)
    desk.until(lambda: len(select.select([good[0], bad[0]], [], [], 0)[0]) == 2)
    bad[0].send(b"\xff" * 64)
    desk.until(lambda: len(desk.server.machines) == 2)
    assert desk.said[-1] == "machine 3 sent a message of 4294967295 bytes"
    assert cards[0] in desk.server.machines
    other.greet()
    good[0].recv(1 << 16)  # else it is reset, not closed
    good[0].close()
    desk.until(lambda: len(desk.server.machines) == 1)
    assert desk.said[-1] == "machine 2 closed its connection"
    bad[0].close()


def test_a_card_that_comes_back_has_its_address(desk: Desk) -> None:
    def card() -> tuple[socket.socket, bytes]:
        ours, theirs = socket.socketpair()
        port = desk.server.add_vfio_user(theirs, "card").port
        assert isinstance(port, VfioUserPort)
        return ours, port.mac

    first, second = card(), card()
    assert (first[1].hex(":"), second[1].hex(":")) == ("52:54:00:70:63:00", "52:54:00:70:63:01")
    first[0].close()
    desk.until(lambda: len(desk.server.machines) == 1)
    third = card()
    assert third[1] == first[1]
    for sock, _ in (second, third):
        sock.close()
