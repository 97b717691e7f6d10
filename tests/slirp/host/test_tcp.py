"""The TCP relay between a guest made by hand and real sockets on the host's loopback."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from nic.port import VNET_NONE
from slirp.host import endpoints, tcp_feed
from slirp.host import tcp as relay
from slirp.tcp.lifecycle import TIME_WAIT_FOR
from slirp.wire.virtio_net import GSO_TCPV4, NEEDS_CSUM, VnetHeader
from tests.kit.clock import Clock
from tests.kit.guest import (
    ACK,
    DNS,
    FIN,
    GATEWAY,
    GUEST,
    PSH,
    SYN,
    Lab,
    Stream,
    Tcp,
    arp,
    is_right,
    tcp,
)
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab, open_fds

pytestmark = pytest.mark.usefixtures("peeking", "every_endpoint")

RESET = struct.pack("ii", 1, 0)
DATA = bytes(range(251)) * 800  # 200,800 bytes, no period of a power of two


@contextlib.contextmanager
def connected(
    lab: Lab, listener: socket.socket, **fields: Any
) -> Iterator[tuple[Stream, socket.socket]]:
    """A connection from the guest, and the host's end of it."""
    stream = lab.guest.connect((GATEWAY, listener.getsockname()[1]), **fields)
    peer, _ = listener.accept()
    with peer:
        peer.setblocking(False)
        yield stream, peer


def received(lab: Lab, peer: socket.socket, count: int) -> bytes:
    """So many bytes at the host's end."""
    got = bytearray()

    def enough() -> bool:
        with contextlib.suppress(BlockingIOError):
            got.extend(peer.recv(count - len(got)))
        return len(got) >= count

    lab.turn(enough)
    return bytes(got)


def send_all(lab: Lab, peer: socket.socket, data: bytes) -> None:
    """The host sends all of it while the network runs."""
    view = memoryview(data)

    def done() -> bool:
        nonlocal view
        with contextlib.suppress(BlockingIOError):
            view = view[peer.send(view) :]
        return not view

    lab.turn(done)


def flow_count(lab: Lab) -> int:
    count: int = lab.network.stats()["tcp"]["flows"]
    return count


# --- both ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [0, 2, 7, 53, 54, 55, 700])
def test_octets_arrive_both_ways_however_memory_is_cut(
    piece: int, make_lab: MakeLab, listener: socket.socket
) -> None:
    data = DATA[: 20000 if piece == 2 else len(DATA)]
    lab = make_lab(MemoryPort(piece=piece))
    with connected(lab, listener) as (stream, peer):
        got = bytearray()
        sent = 0
        while sent < len(data):
            stream.send(data[sent : sent + 8000])
            sent += 8000
            got += received(lab, peer, len(data[:sent]) - len(got))
        assert got == data
        send_all(lab, peer, data)
        assert stream.receive(len(data)) == data


def test_super_frames_where_the_port_offloads(make_lab: MakeLab, listener: socket.socket) -> None:
    """One claim of up to 64 KiB; nobody sums payload, in either direction."""
    lab = make_lab(MemoryPort(max_frame=14 + 65535, offload=True))
    port = lab.port
    stream = lab.guest.open((GATEWAY, listener.getsockname()[1]))
    lab.turn(lambda: bool(port.sent) or stream.connected)
    peer, _ = listener.accept()
    with peer:
        peer.sendall(DATA[:60000])
        vnets: list[bytes] = []
        frames: list[bytes] = []
        stream.auto_ack = False

        def all_there() -> bool:
            return sum(len(f) - 54 for f in frames) >= 60000

        stop = 200
        while not all_there() and stop:
            lab.network.poll(0.01)
            vnets += port.vnets
            frames += port.take()
            if not frames:  # it comes by the next turn
                continue
            for frame in frames:
                segment = Tcp.of(frame[34:])
                ack = segment.seq + len(segment.data)
            port.give(stream.frame(ACK, ack=ack))
            stop -= 1
        assert b"".join(frame[54:] for frame in frames) == DATA[:60000]
        assert max(map(len, frames)) > 20000
        for frame, vnet in zip(frames, vnets, strict=True):
            header = VnetHeader.parse(vnet)
            assert header.flags == NEEDS_CSUM
            assert (header.csum_start, header.csum_offset) == (34, 16)
            assert header.hdr_len == 54
            if len(frame) > 1514:
                assert (header.gso_type, header.gso_size) == (GSO_TCPV4, 1460)
        # From the guest: a super-frame, its checksum field holding only the pseudo-header's sum.
        data = DATA[:50000]
        bare = tcp(ACK | PSH, GATEWAY, stream.remote[1], src_port=stream.port, seq=stream.seq,
                   ack=ack, data=data, checksum=0)  # fmt: skip
        port.give(bare, VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1460, 34, 16).emit())
        assert received(lab, peer, len(data)) == data
        assert not lab.malformed()


def test_urgent_octets_of_the_host_stay_in_their_place(lab: Lab, listener: socket.socket) -> None:
    """RFC 6093 §5: a stream is a stream."""
    with connected(lab, listener) as (stream, peer):
        for number in range(3):
            peer.send(b"before")
            peer.send(b"!", socket.MSG_OOB)
            peer.send(b"after%d" % number)
        assert stream.receive(39) == b"before!after0before!after1before!after2"


def test_a_lost_frame_is_sent_again_from_the_hosts_queue(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        peer.sendall(b"once and again")
        lab.turn(lambda: bool(stream.received))
        first = stream.segments[-1]
        for _ in range(3):
            stream.segments.clear()
            clock.advance(5)
            lab.turn()
            assert [(s.seq, s.data) for s in stream.segments] == [(first.seq, first.data)]
            clock.advance(20)
        stream.put(ACK)
        stream.segments.clear()
        lab.turn()
        clock.advance(100)
        lab.turn()
        assert not stream.segments
        assert bytes(stream.received) == b"once and again"


# --- room -----------------------------------------------------------------------------------------


def test_no_room_at_the_port_leaves_the_octets_in_the_kernel(
    lab: Lab, listener: socket.socket
) -> None:
    with connected(lab, listener) as (stream, peer):
        lab.port.room = 0
        peer.sendall(DATA[:30000])
        lab.turn()
        assert lab.port.refused
        refused = lab.port.refused
        for _ in range(50):
            lab.network.poll(0)
        assert lab.port.refused - refused < 200, "it asks, but it does not hammer"
        assert not stream.received
        for granted in (1, 2, 3):
            before = len(stream.segments)
            lab.port.grant(granted)
            lab.turn()
            assert len(stream.segments) == before + granted
        lab.port.grant(None)
        assert stream.receive(30000) == DATA[:30000]
        assert lab.attachment.lost == 0


def test_a_port_without_room_is_no_busy_loop(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (_, peer):
        lab.port.room = 0
        peer.sendall(DATA[:30000])
        lab.turn()
        assert not [n for n in range(20) if lab.network.poll(0.001)]


def test_many_flows_wait_for_room_and_all_go_on(lab: Lab, listener: socket.socket) -> None:
    streams = [lab.guest.connect((GATEWAY, listener.getsockname()[1])) for _ in range(8)]
    peers = [listener.accept()[0] for _ in streams]
    lab.port.room = 0
    for number, peer in enumerate(peers):
        peer.sendall(bytes((number,)) * 20000)
    lab.turn()
    while sum(len(stream.received) for stream in streams) < 8 * 20000:
        lab.port.grant(1)
        lab.turn()
    by_port = {peer.getpeername()[1]: peer for peer in peers}
    assert sorted(set(stream.received) for stream in streams) == [{n} for n in range(8)]
    for peer in by_port.values():
        peer.close()


def test_zero_window_of_the_guest_is_probed_and_reopens(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        stream.window = 0
        stream.put(ACK)
        lab.turn()
        send_all(lab, peer, b"x" * 5000)
        lab.turn()
        assert not stream.received
        for _ in range(3):
            stream.segments.clear()
            clock.advance(61)
            lab.turn()
            assert len(stream.segments) == 1, "one probe"
            assert not stream.segments[0].data
            stream.put(ACK)
            lab.turn()
        stream.window = 65535
        stream.put(ACK)
        assert stream.receive(5000) == b"x" * 5000


def test_window_withdrawn_over_octets_in_flight(lab: Lab, listener: socket.socket) -> None:
    """What the guest no longer has room for is sent again when it has."""
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        peer.sendall(DATA[:10000])
        lab.turn(lambda: len(stream.received) == 10000)
        stream.received.clear()
        stream.ack += 100 - 10000
        stream.window = 0
        stream.put(ACK)
        stream.segments.clear()
        lab.turn()
        assert all(not segment.data for segment in stream.segments)
        stream.auto_ack = True
        stream.window = 65535
        stream.put(ACK)
        assert stream.receive(9900) == DATA[100:10000]


@pytest.mark.parametrize("share", [1, 3])
def test_a_host_that_does_not_read_bounds_what_is_taken(
    share: int, make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window closes; what was taken beyond the kernel's queue is little, and arrives."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        slow.settimeout(5)
        lab = make_lab()
        with connected(lab, slow) as (stream, peer):
            sent = bytearray()
            for turn in range(100000):
                room = stream.una + stream.peer_window - stream.seq
                if room < 1460:
                    lab.turn()
                    if stream.una + stream.peer_window - stream.seq < 1460:
                        break
                piece = struct.pack("!I", turn) * (365 // share)
                stream.put(ACK | PSH, piece)
                sent += piece
            lab.turn()
            stats = lab.network.stats()["tcp"]
            assert len(sent) < 8 << 20
            assert stats["octets_copied"] <= 1 << 20
            stalled = stream.seq
            assert received(lab, peer, len(sent)) == sent
            lab.turn(lambda: stream.una + stream.peer_window - stalled > 1460)
            stream.send(b"and on")
            assert received(lab, peer, 6) == b"and on"


def test_the_spill_of_a_guest_that_is_done_still_arrives(make_lab: MakeLab) -> None:
    """FIN from the guest and close by the host while bytes wait for the host's kernel."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        slow.settimeout(5)
        lab = make_lab()
        with connected(lab, slow) as (stream, peer):
            peer.shutdown(socket.SHUT_WR)
            lab.turn(lambda: stream.got_fin)
            sent = 0
            while stream.una + stream.peer_window - stream.seq >= 1460:
                stream.put(ACK | PSH, b"z" * 1460)
                sent += 1460
                if not sent % (20 * 1460):
                    lab.turn()
            stream.finish()
            lab.turn(lambda: stream.una == stream.seq)
            assert len(received(lab, peer, sent)) == sent
            peer.setblocking(True)
            peer.settimeout(0)
            lab.turn(lambda: at_end(peer))
            lab.turn(lambda: flow_count(lab) == 0)


def at_end(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


# --- opening and ending ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_end_comes_behind_what_the_guest_has_not_acknowledged(
    size: int, lab: Lab, listener: socket.socket
) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = size > 1
        send_all(lab, peer, DATA[:size])
        peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: stream.got_fin)
        assert stream.received == DATA[:size]


def test_urgent_bytes_are_not_the_end(lab: Lab, listener: socket.socket) -> None:
    """A read stops in front of them, and the host's FIN has come already."""
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        peer.send(b"before")
        peer.send(b"!", socket.MSG_OOB)
        peer.send(b"after")
        peer.close()
        lab.turn()
        stream.auto_ack = True
        stream.put(ACK)
        lab.turn(lambda: stream.got_fin)
        assert stream.received == b"before!after"


def test_half_close_by_the_guest(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.send(b"question")
        stream.finish()
        lab.turn(lambda: stream.una == stream.seq)
        assert received(lab, peer, 8) == b"question"
        lab.turn(lambda: at_end(peer))
        peer.sendall(b"answer")
        assert stream.receive(6) == b"answer"
        peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: stream.got_fin and flow_count(lab) == 0)


def test_half_close_by_the_host(make_lab: MakeLab, listener: socket.socket) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        peer.sendall(b"banner")
        peer.shutdown(socket.SHUT_WR)
        assert stream.receive(6) == b"banner"
        lab.turn(lambda: stream.got_fin)
        stream.send(b"still talking")
        assert received(lab, peer, 13) == b"still talking"
        stream.finish()
        lab.turn(lambda: at_end(peer))
        clock.advance(10)  # TIME-WAIT
        lab.turn()
        assert flow_count(lab) == 0


def test_reset_by_the_guest(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.reset()
        lab.turn()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert flow_count(lab) == 0


def test_reset_by_the_host(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        lab.turn(lambda: stream.got_reset)
        assert flow_count(lab) == 0


def test_an_orderly_end_is_no_reset_for_the_host(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    """The guest acknowledges all and says its last word in one segment: the host sees an end."""
    clock = Clock()
    lab = make_lab(clock=clock)
    for size in (1, 500, 1023, 1024, 1460):
        with connected(lab, listener) as (stream, peer):
            stream.auto_ack = False
            peer.sendall(b"x" * size)
            peer.shutdown(socket.SHUT_WR)
            lab.turn(lambda: stream.got_fin)
            stream.put(ACK | PSH | FIN, b"last word")
            lab.turn()
            clock.advance(TIME_WAIT_FOR)
            lab.turn()
            assert flow_count(lab) == 0
            assert peer.recv(100) == b"last word"
            assert peer.recv(100) == b""
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_host_that_resets_over_a_spill(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not take is of no use any more: nothing waits for it."""
    monkeypatch.setattr(tcp_feed, "WINDOW_SHARE", 16)  # more than there is room for
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        slow.settimeout(5)
        lab = make_lab()
        before = open_fds()
        with connected(lab, slow) as (stream, peer):
            flow = next(iter(lab.network._dispatcher.tcp.flows.values()))
            for _ in range(20000):
                if flow.spill is not None:
                    break
                stream.put(ACK | PSH, b"z" * 1460)
                lab.network.poll(0)
                lab.guest.read()
            assert flow.spill is not None
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            peer.close()
            lab.turn(lambda: stream.got_reset)
            lab.turn()
            assert flow_count(lab) == 0
            assert open_fds() <= before


def test_a_host_that_closes_over_unread_octets(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.send(b"never read")
        peer.close()
        lab.turn(lambda: stream.got_reset)
        assert flow_count(lab) == 0


def test_refused_is_a_reset(lab: Lab, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        lab.guest.connect((GATEWAY, port))
    assert flow_count(lab) == 0
    assert lab.network.stats()["tcp"]["refused"] == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [(errno.EHOSTUNREACH, 1), (errno.ENETUNREACH, 0), (errno.ETIMEDOUT, 1), (errno.EACCES, 13)],
)
def test_unreachable_is_icmp_and_leaves_nothing(
    failure: int, code: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(socket.socket):
        def connect_ex(self, address: object) -> int:
            return failure

    monkeypatch.setattr(socket, "socket", Unreachable)
    before = open_fds()
    stream = lab.guest.open(("192.0.2.1", 80), iss=77)
    lab.turn(lambda: bool(lab.guest.inbox))
    (message,) = lab.guest.icmps()
    assert (message.type, message.code) == (3, code)
    quoted = message.data
    assert quoted[16:20] == socket.inet_aton("192.0.2.1")
    assert quoted[20:28] == struct.pack("!HHI", stream.port, 80, 77)
    assert flow_count(lab) == 0
    lab.turn()
    assert open_fds() <= before


def test_a_reused_pair_is_a_new_connection(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.finish()
        peer.close()
        lab.turn(lambda: stream.got_fin)
        lab.guest._next_port = stream.port - 1
        with connected(lab, listener, iss=stream.seq + 100000) as (again, other):
            assert again.port == stream.port
            again.send(b"new")
            assert received(lab, other, 3) == b"new"


def test_the_first_syn_is_answered_when_the_host_has_answered(lab: Lab) -> None:
    """A full backlog: the kernel answers neither, and so do we; then it does."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        first = socket.create_connection(busy.getsockname())
        stream = lab.guest.open((GATEWAY, busy.getsockname()[1]))
        lab.turn()
        assert not stream.segments
        assert lab.network.flows()[0]["state"] == "CONNECTING"
        busy.accept()[0].close()
        first.close()
        lab.turn(lambda: stream.connected)


def test_detaching_resets_hosts_and_leaves_nothing(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.put(ACK | PSH, b"last words")
        lab.network.poll(0)
        lab.network.detach(lab.attachment)
        assert peer.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            peer.recv(100)
        assert flow_count(lab) == 0
        for _ in range(3):
            lab.network.poll(0)
        assert lab.network._loop.deadline() is None, "no deadline is left of it"


def test_a_table_that_is_full_answers_with_a_reset(
    lab: Lab, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "FLOWS_MAX", 1)
    with connected(lab, listener) as (stream, _):
        before = open_fds()
        for remote in ((GATEWAY, listener.getsockname()[1]), (DNS, 53)):
            with pytest.raises(ConnectionRefusedError):
                lab.guest.connect(remote)
        lab.turn()
        assert open_fds() <= before
        stream.send(b"undisturbed")


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    gc.collect()  # what earlier tests have left must not be closed in here
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_a_guest_s_syn_waits_for_its_next_try(
    lab: Lab, listener: socket.socket
) -> None:
    """A shortage passes: a RST would tell the guest that nobody is there."""
    remote = (GATEWAY, listener.getsockname()[1])
    with connected(lab, listener) as (stream, peer):
        with no_more_descriptors():
            waiting = lab.guest.open(remote)
            lab.turn()
            with pytest.raises(ConnectionRefusedError):
                lab.guest.connect((DNS, 53))
            stream.send(b"old ones go on")
            assert not waiting.connected
            assert not waiting.got_reset
        assert received(lab, peer, 14) == b"old ones go on"
        waiting.put(SYN, seq=waiting.seq - 1)
        lab.turn(lambda: waiting.connected)
    assert lab.network.stats()["tcp"]["shortages"] > 0


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINTR])
@pytest.mark.parametrize(
    "call", ["recv_into", "recvmsg_into", "send", "setsockopt", "getsockopt", "sendmsg"]
)
def test_a_call_that_meets_a_shortage_ends_nothing(
    call: str, number: int, make_lab: MakeLab, listener: socket.socket
) -> None:
    """Every third call of its kind fails, and every byte arrives all the same."""
    lab = make_lab(MemoryPort(piece=700))
    with connected(lab, listener) as (stream, peer):
        (flow,) = lab.network._dispatcher.tcp.flows.values()
        assert flow.sock is not None
        flow.sock = Starved(flow.sock, call, number)  # type: ignore[assignment]
        stream.send(DATA[:5_000])
        assert received(lab, peer, 5_000) == DATA[:5_000]
        send_all(lab, peer, DATA[:5_000])
        assert stream.receive(5_000) == DATA[:5_000]
        peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: stream.got_fin)
        stream.finish()
        if Lab.endpoint == endpoints.EPOLL:  # two seconds, and they are the same with each
            lab.turn(lambda: not flow_count(lab))
        assert not stream.got_reset


class Starved:
    """A socket one of whose calls fails every third time."""

    def __init__(self, sock: socket.socket, call: str, number: int) -> None:
        self._sock = sock
        self._call = call
        self._number = number
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sock, name)
        if name != self._call:
            return found

        def sometimes(*args: Any) -> Any:
            self._count += 1
            if self._count % 3 == 1:
                raise OSError(self._number, os.strerror(self._number))
            return found(*args)

        return sometimes


def test_short_connections_leave_nothing(make_lab: MakeLab, listener: socket.socket) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    before = open_fds()
    for _ in range(40):
        with connected(lab, listener) as (stream, peer):
            stream.send(b"?")
            assert received(lab, peer, 1) == b"?"
            send_all(lab, peer, b"!")
            assert stream.receive(1) == b"!"
            peer.close()
            lab.turn(lambda: stream.got_fin)
            stream.finish()
            lab.turn()
    clock.advance(5)
    lab.turn()
    assert flow_count(lab) == 0
    assert open_fds() <= before
    assert lab.network._loop.deadline() is None


def test_a_silent_guest_is_given_up(make_lab: MakeLab, listener: socket.socket) -> None:
    """The guest disappears in the middle: retries end, the host is reset, nothing is left."""
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        peer.sendall(b"anybody?")
        for _ in range(200):
            lab.network.poll(0)
            lab.arrive()
            lab.port.take()
            clock.advance(10)
        assert flow_count(lab) == 0
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert stream


# --- the numbers that go out ----------------------------------------------------------------------


def test_one_acknowledgement_per_batch(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.segments.clear()
        for _ in range(20):
            stream.put(ACK, b"x" * 100)
        lab.turn()
        assert [segment.ack for segment in stream.segments] == [stream.seq]
        assert received(lab, peer, 2000) == b"x" * 2000


def test_the_answer_to_a_syn(lab: Lab, listener: socket.socket) -> None:
    """MSS from the MTU, and no option that was not offered."""
    stream = lab.guest.open((GATEWAY, listener.getsockname()[1]), iss=0xFFFFFFFF)
    lab.turn(lambda: stream.connected)
    (answer, *_) = stream.segments
    assert answer.flags == SYN | ACK
    assert answer.ack == 0
    assert answer.options == b"\x02\x04\x05\xb4"


@pytest.mark.parametrize("mtu", [68, 576, 9000])
def test_segments_fit_the_mtu(mtu: int, make_lab: MakeLab, listener: socket.socket) -> None:
    lab = make_lab(MemoryPort(max_frame=14 + mtu), mtu=mtu)
    with connected(lab, listener, options=b"\x02\x04\x23\x28") as (stream, peer):
        send_all(lab, peer, DATA[:20000])
        assert stream.receive(20000) == DATA[:20000]
        sizes = {len(segment.data) for segment in stream.segments}
        assert max(sizes) == mtu - 40


def test_timestamps_are_part_of_the_segment(lab: Lab, listener: socket.socket) -> None:
    options = b"\x02\x04\x05\xb4\x01\x01\x08\x0a" + struct.pack("!II", 5, 0)
    remote = (GATEWAY, listener.getsockname()[1])
    stream = lab.guest.open(remote, options=options)
    lab.turn(lambda: stream.connected)
    peer, _ = listener.accept()
    with peer:
        peer.sendall(DATA[:5000])
        assert stream.receive(5000) == DATA[:5000]
        data = [segment for segment in stream.segments if segment.data]
        assert {len(segment.options) for segment in data} == {12}
        assert max(len(segment.data) for segment in data) == 1448


def test_no_frame_of_a_flow_is_malformed(lab: Lab, listener: socket.socket) -> None:
    """`is_right` has looked at every one; here it is seen to look."""
    lab.guest.give(tcp(SYN, GATEWAY, listener.getsockname()[1]), VNET_NONE)
    lab.turn(lambda: bool(lab.guest.inbox))
    (frame,) = lab.guest.inbox
    is_right(frame)
    for at in range(14, len(frame)):
        broken = bytearray(frame)
        broken[at] ^= 0x10
        with pytest.raises(AssertionError):
            is_right(bytes(broken))


def test_a_guest_that_moves_takes_its_flows_along(lab: Lab, listener: socket.socket) -> None:
    """The same address at another MAC of the port: frames of old flows go to the new MAC."""
    moved = b"\x02moved"
    with connected(lab, listener) as (stream, peer):
        lab.guest.give(arp(1, GUEST, GATEWAY, sender_mac=moved))
        lab.turn()
        peer.sendall(b"hello")
        lab.turn(lambda: bool(lab.port.sent) or bool(stream.received))
        assert stream.receive(5) == b"hello"
        lab.network.poll(0)
    lab.turn()
    assert lab.guest.dst_mac == moved
