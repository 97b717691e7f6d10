"""Runs of datagrams, between a port that takes them and real sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.iovec import IoVec
from nic.port import Frame
from slirp.host.udp_runs import RUN_MAX
from slirp.ip.ipv4 import IPV4
from slirp.wire.virtio_net import GSO_NONE, GSO_UDP_L4, VnetHeader
from tests.kit.guest import GATEWAY, Lab, udp
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab

HEADERS = 14 + 20 + 8


class RunPort(MemoryPort):
    """Keeps frames until they are released, and takes super-frames, as a TAP device does."""

    gso_udp = True
    keeps_frames = True

    def __init__(self) -> None:
        super().__init__(max_frame=14 + 65535, offload=True)

    def runs(self) -> list[tuple[int, bytes]]:
        """What came since: bytes per datagram (0: one alone) and payload, by frame."""
        found = []
        for frame, vnet in zip(self.sent, self.vnets, strict=True):
            header = VnetHeader.parse(vnet, len(frame))
            assert header.gso_type in (GSO_NONE, GSO_UDP_L4)
            assert int.from_bytes(frame[16:18], "big") == len(frame) - 14
            assert int.from_bytes(frame[38:40], "big") == len(frame) - 34
            found.append((header.gso_size, frame[HEADERS:]))
        self.sent, self.vnets = [], []
        return found


def datagrams(runs: list[tuple[int, bytes]]) -> list[bytes]:
    """Runs cut as a kernel cuts them."""
    out = []
    for size, payload in runs:
        step = size or max(len(payload), 1)
        out += [payload[at : at + step] for at in range(0, len(payload), step)] or [b""]
    return out


def numbered(sizes: list[int]) -> list[bytes]:
    """Datagrams of these sizes that tell where they are from."""
    return [
        bytes((index + offset) & 0xFF for offset in range(size)) for index, size in enumerate(sizes)
    ]


@pytest.fixture
def host() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def open_mapping(lab: Lab, host: socket.socket) -> tuple[str, int]:
    """The guest sends once; from where that came."""
    lab.guest.give(udp(b"first", GATEWAY, host.getsockname()[1]))
    lab.network.poll(0)
    data, peer = host.recvfrom(65536)
    assert data == b"first"
    return peer[0], peer[1]


def send_from_guest(lab: Lab, host: socket.socket, payloads: list[bytes], **fields: Any) -> None:
    for payload in payloads:
        lab.guest.give(udp(payload, GATEWAY, host.getsockname()[1], **fields))
    while lab.network.poll(0):
        pass


class Watched:
    """A socket of a mapping, and what is sent with it."""

    def __init__(self, inner: socket.socket, failure: int = 0) -> None:
        self._inner = inner
        self._failure = failure
        self.runs: list[int] = []  # datagrams of each sendmsg
        self.singles = 0

    def sendmsg(self, views: Any, *rest: Any) -> int:
        if self._failure:
            raise OSError(self._failure, "refused")
        self.runs.append(len(views))
        return self._inner.sendmsg(views, *rest)

    def sendto(self, *args: Any) -> int:
        self.singles += 1
        return self._inner.sendto(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def watch(lab: Lab, failure: int = 0) -> Watched:
    (mapping,) = lab.network._dispatcher.udp.mappings.values()
    watched = Watched(mapping.sock, failure)
    mapping.sock = watched  # type: ignore[assignment]
    return watched


# From the guest


def test_equal_datagrams_of_a_batch_leave_as_one(make_lab: MakeLab, host: socket.socket) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    watched = watch(lab)
    sent = numbered([100] * 9 + [40])
    send_from_guest(lab, host, sent)
    assert [host.recv(2000) for _ in sent] == sent
    assert watched.runs == [10]
    assert watched.singles == 0
    assert lab.network.stats()["udp"]["datagrams_to_host"] == 11


@pytest.mark.parametrize(
    ("sizes", "runs", "singles"),
    [
        ([100, 100, 101], [2], 1),  # a longer one does not fit in
        ([100, 40, 40, 100], [2], 2),  # nothing follows a shorter one
        ([50, 50, 20, 20, 20], [3, 2], 0),
        ([20], [], 1),
    ],
)
def test_where_a_run_ends(
    make_lab: MakeLab, host: socket.socket, sizes: list[int], runs: list[int], singles: int
) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    watched = watch(lab)
    sent = numbered(sizes)
    send_from_guest(lab, host, sent)
    assert [host.recv(2000) for _ in sent] == sent
    assert (watched.runs, watched.singles) == (runs, singles)


def test_a_run_has_a_most_of_datagrams_and_of_octets(
    make_lab: MakeLab, host: socket.socket
) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    watched = watch(lab)
    outgoing = lab.network._dispatcher.udp.outgoing
    (route,) = lab.network._dispatcher.udp.routes.values()
    for size, count in ((12, RUN_MAX + 1), (30000, 3)):
        watched.runs.clear()
        for _ in range(count):
            outgoing.add(route, memoryview(bytes(size)), 64, Frame(IoVec()), 0.0)
        outgoing.flush(0.0)
        assert watched.runs[0] == min(count - 1, IPV4.udp_super_max // size)
        assert [len(host.recv(65536)) for _ in range(count)] == [size] * count


def test_another_hop_limit_is_another_run(make_lab: MakeLab, host: socket.socket) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    watched = watch(lab)
    port = host.getsockname()[1]
    for ttl in (64, 64, 9, 9):
        lab.guest.give(udp(b"x" * 20, GATEWAY, port, ttl=ttl))
    while lab.network.poll(0):
        pass
    assert watched.runs == [2, 2]
    assert len([host.recv(100) for _ in range(4)]) == 4


@pytest.mark.parametrize("failure", [errno.EINVAL, errno.EMSGSIZE, errno.EIO])
def test_a_path_that_refuses_runs_gets_datagrams_one_by_one(
    make_lab: MakeLab, host: socket.socket, failure: int
) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    watched = watch(lab, failure)
    sent = numbered([100] * 5)
    for _ in range(2):  # and is not asked again
        send_from_guest(lab, host, sent)
        assert [host.recv(2000) for _ in sent] == sent
    assert watched.singles == 10


def test_a_bad_checksum_is_not_sent(make_lab: MakeLab, host: socket.socket) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    send_from_guest(lab, host, [b"x" * 20], checksum=0x1234)
    send_from_guest(lab, host, [b"y" * 20])
    assert host.recv(100) == b"y" * 20
    assert lab.malformed() == {"udp: checksum": 1}


@pytest.mark.parametrize("length", [9, 27, 29])
def test_a_length_that_is_not_the_packets_goes_the_long_way(
    make_lab: MakeLab, host: socket.socket, length: int
) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    send_from_guest(lab, host, [b"x" * 20], length=length, checksum=0)
    send_from_guest(lab, host, [b"y" * 20])
    expected = [] if length > 28 else [b"x" * (length - 8)]
    assert [host.recv(100) for _ in range(len(expected) + 1)] == [*expected, b"y" * 20]


def test_frames_that_a_port_does_not_keep_are_sent_at_once(
    make_lab: MakeLab, host: socket.socket
) -> None:
    lab = make_lab(MemoryPort())
    open_mapping(lab, host)
    watched = watch(lab)
    sent = numbered([100] * 4)
    send_from_guest(lab, host, sent)
    assert [host.recv(2000) for _ in sent] == sent
    assert (watched.runs, watched.singles) == ([], 4)


def test_a_route_ends_with_its_mapping(make_lab: MakeLab, host: socket.socket) -> None:
    lab = make_lab(RunPort())
    open_mapping(lab, host)
    relay = lab.network._dispatcher.udp
    relay.remove(next(iter(relay.mappings.values())))
    assert not relay.routes
    send_from_guest(lab, host, [b"x" * 20])
    assert host.recv(100) == b"x" * 20


# To the guest


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from((0, 1, 30, 30, 30, 1000, 1000, 1472)), min_size=1, max_size=30))
def test_every_datagram_arrives_once_and_in_order(sizes: list[int]) -> None:
    with Lab(RunPort()) as lab, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("127.0.0.1", 0))
        host.settimeout(5)
        peer = open_mapping(lab, host)
        sent = numbered(sizes)
        for payload in sent:
            host.sendto(payload, peer)
        while lab.network.poll(0):
            pass
        assert isinstance(lab.port, RunPort)
        assert datagrams(lab.port.runs()) == sent
        assert lab.network.stats()["udp"]["datagrams_to_guest"] == len(sent)


def test_waiting_datagrams_come_as_one_frame(make_lab: MakeLab, host: socket.socket) -> None:
    port = RunPort()
    lab = make_lab(port)
    peer = open_mapping(lab, host)
    sent = numbered([1400] * 20 + [7])
    for payload in sent:
        host.sendto(payload, peer)
    lab.network.poll(0)
    assert port.runs() == [(1400, b"".join(sent))]
    assert lab.network.stats()["udp"]["octets_copied"] == 0


def test_another_sender_is_another_frame(make_lab: MakeLab, host: socket.socket) -> None:
    port = RunPort()
    lab = make_lab(port)
    peer = open_mapping(lab, host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        senders = [host, host, other, host]
        for index, sender in enumerate(senders):
            sender.sendto(bytes((index,)) * 50, peer)
        while lab.network.poll(0):
            pass
        frames = list(port.sent)
        ports = [sock.getsockname()[1] for sock in (host, other, host)]
    assert [int.from_bytes(frame[34:36], "big") for frame in frames] == ports
    assert datagrams(port.runs()) == [bytes((index,)) * 50 for index in range(4)]


def test_a_datagram_longer_than_the_mtu_is_fragmented(
    make_lab: MakeLab, host: socket.socket
) -> None:
    port = RunPort()
    lab = make_lab(port)
    peer = open_mapping(lab, host)
    for size in (1400, 1400, 4000, 1400):
        host.sendto(bytes(size), peer)
    while lab.network.poll(0):
        pass
    lengths = [len(frame) for frame in port.sent]
    assert lengths == [HEADERS + 2800, 1514, 1514, 34 + 4008 - 2 * 1480, HEADERS + 1400]


def test_without_room_datagrams_wait_in_the_socket(make_lab: MakeLab, host: socket.socket) -> None:
    port = RunPort()
    lab = make_lab(port)
    peer = open_mapping(lab, host)
    port.room = 0
    sent = numbered([200] * 3)
    for payload in sent:
        host.sendto(payload, peer)
    lab.network.poll(0)
    lab.network.poll(0)
    assert not port.sent
    port.grant(None)
    while lab.network.poll(0):
        pass
    assert datagrams(port.runs()) == sent


def test_one_datagram_has_no_segmentation() -> None:
    assert VnetHeader.parse(IPV4.udp_vnet(0)).gso_type == GSO_NONE
    assert VnetHeader.parse(IPV4.udp_vnet(1400)).gso_size == 1400
