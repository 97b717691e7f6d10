"""What the stack believes of the host's kernel, as tests: where one fails, the design is wrong.

No file of the project is exercised. A belief that only newer kernels hold (SO_PEEK_OFF on TCP) is
checked for the form in which the stack probes it: either it works to the letter, or it refuses.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kit.need import missing, need_root

SO_PEEK_OFF: Final = 42  # asm-generic/socket.h; the socket module has no name for it
SIOCINQ: Final = 0x541B  # linux/sockios.h: bytes in the receive queue
TCP_ESTABLISHED: Final = 1  # linux/tcp_states.h
TCP_CLOSE_WAIT: Final = 8
SIOCOUTQ: Final = 0x5411  # linux/sockios.h: bytes the peer has not acknowledged
IP_RECVERR: Final = 11  # linux/in.h
TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h from here on
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNGETFEATURES: Final = 0x800454CF
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
DATA: Final = b"0123456789"

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.settimeout(5)
        far.settimeout(5)
        yield near, far


@pytest.fixture
def udp() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        far.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        far.settimeout(5)
        yield near, far


def readable(sock: socket.socket, size: int) -> None:
    """Wait until `size` bytes are queued, without taking any."""
    sock.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)


def test_recvmsg_into_fills_in_order(tcp: Pair) -> None:
    near, far = tcp
    near.sendall(DATA)
    readable(far, len(DATA))
    first, second, third = bytearray(3), bytearray(4), bytearray(10)
    size, *_ = far.recvmsg_into([first, second, third])
    assert size == 10
    assert [bytes(b) for b in (first, second, third)] == [b"012", b"3456", b"789" + bytes(7)]


def test_sendmsg_gathers_in_order(tcp: Pair) -> None:
    near, far = tcp
    assert near.sendmsg([b"01", b"", memoryview(b"xx2345xx")[2:6], b"6789"]) == 10
    assert far.recv(10, socket.MSG_WAITALL) == DATA


def test_peek_leaves_the_data(tcp: Pair) -> None:
    near, far = tcp
    near.sendall(DATA)
    readable(far, len(DATA))
    buffer = bytearray(10)
    assert far.recvmsg_into([buffer], 0, socket.MSG_PEEK)[0] == 10
    assert far.recv(10) == bytes(buffer) == DATA


def test_truncated_receive_drops_without_a_buffer(tcp: Pair) -> None:
    """MSG_TRUNC on TCP consumes bytes and copies none: how acknowledged bytes leave the queue."""
    near, far = tcp
    near.sendall(DATA)
    readable(far, len(DATA))
    buffer = bytearray(b"-" * 4)
    assert far.recv_into(buffer, 4, socket.MSG_TRUNC) == 4
    assert buffer == b"----"
    assert far.recv(10) == b"456789"


def peek_offset(sock: socket.socket, offset: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # what Linux before 6.9 says
            raise
        pytest.skip("no SO_PEEK_OFF on TCP: the stack peeks over a discard segment")


def test_peek_offset_moves_with_each_peek(tcp: Pair) -> None:
    near, far = tcp
    peek_offset(far, 0)
    near.sendall(DATA)
    readable_by_poll(far)
    assert far.recv(4, socket.MSG_PEEK) == b"0123"
    assert far.recv(4, socket.MSG_PEEK) == b"4567"
    peek_offset(far, 2)  # retransmission: back to an older byte
    assert far.recv(4, socket.MSG_PEEK) == b"2345"


def readable_by_poll(sock: socket.socket) -> None:
    assert select.select([sock], [], [], 5)[0]


def test_a_reset_leaves_what_came_before_it(tcp: Pair) -> None:
    """The receive queue outlives the connection; the error is told behind its last byte, or to
    whoever asks first, and then the end looks like any other."""
    near, far = tcp
    near.sendall(b"upload")
    assert far.recv(1)
    far.sendall(b"answer")
    far.close()  # over unread bytes: a RST
    assert near.recv(100, socket.MSG_PEEK) == b"answer"
    assert near.recv_into(bytearray(3), 3, socket.MSG_TRUNC) == 3
    assert near.recv(100) == b"wer"
    with pytest.raises(ConnectionResetError):
        near.recv(100)
    assert near.recv(100) == b""


def reset_behind(sock: socket.socket, peer: socket.socket, answer: bytes) -> None:
    """`sock` has said something; its peer answers and closes over it, which is a reset."""
    assert peer.recv(1)
    peer.sendall(answer)
    peer.close()
    poller = select.poll()
    poller.register(sock, 0)
    assert poller.poll(5000)[0][1] & (select.POLLERR | select.POLLHUP)


def ask(sock: socket.socket, how: str) -> int:
    """Learn of the reset, in one of the ways in which it is told: the error number."""
    if how == "SO_ERROR":
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if how == "send":
        with pytest.raises(ConnectionError) as caught:
            sock.send(b"more")
    else:
        with pytest.raises(ConnectionError) as caught:
            sock.recv(100, socket.MSG_PEEK)
    return caught.value.errno or 0


@pytest.mark.parametrize("how", ["SO_ERROR", "send"])
def test_whoever_learns_of_a_reset_first_takes_nothing_of_the_queue(tcp: Pair, how: str) -> None:
    """The error is told once; the bytes, and then the end, to every reader after that."""
    near, far = tcp
    near.sendall(b"upload")
    reset_behind(near, far, DATA)
    assert ask(near, how) == errno.ECONNRESET
    peek_offset(near, 4)
    assert near.recv(100, socket.MSG_PEEK) == b"456789"
    assert near.recv(100, socket.MSG_PEEK) == b""
    peek_offset(near, 0)
    assert near.recv(100, socket.MSG_PEEK) == DATA


def test_an_error_is_told_past_the_queue_to_whoever_peeks_there(tcp: Pair) -> None:
    near, far = tcp
    near.sendall(b"upload")
    reset_behind(near, far, DATA)
    peek_offset(near, len(DATA))
    assert ask(near, "peek") == errno.ECONNRESET
    peek_offset(near, 0)
    assert near.recv(100, socket.MSG_PEEK) == DATA


def test_a_unix_peer_that_closes_over_unread_bytes_leaves_its_own() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        near.sendall(b"upload")
        reset_behind(near, far, DATA)
        assert near.recv(4, socket.MSG_PEEK) == b"0123"
        assert near.recv(100, socket.MSG_PEEK) == b"456789"
        assert ask(near, "peek") == errno.ECONNRESET
        assert near.recv(100, socket.MSG_PEEK) == b""
        assert near.recv(100) == DATA


@pytest.mark.parametrize("again", [False, True])
def test_to_connect_again_throws_away_what_came_before_a_reset(again: bool) -> None:
    """So how far a connect is, is read from TCP_INFO and SO_ERROR, which leave the queue."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as near,
    ):
        assert near.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED
        far, _ = listener.accept()
        far.sendall(DATA)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        if again:
            assert near.connect_ex(listener.getsockname()) == errno.ECONNRESET
            with pytest.raises(OSError, match="not connected"):
                near.recv(100)
        else:
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            assert near.recv(100) == DATA


def test_the_peer_s_fin_is_no_byte_of_the_queue(tcp: Pair) -> None:
    """SIOCINQ counts what lies behind an urgent mark, where a read stops; not the FIN."""
    near, far = tcp
    near.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    far.send(b"01234")
    far.send(b"5", socket.MSG_OOB)
    far.send(b"6789")
    far.close()
    poller = select.poll()
    poller.register(near, select.POLLRDHUP)
    assert poller.poll(5000)
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE_WAIT
    assert near.recv(100, socket.MSG_PEEK) == b"01234"
    assert struct.unpack("i", fcntl.ioctl(near, SIOCINQ, bytes(4))) == (len(DATA),)


def test_dropping_moves_the_peek_offset_back(tcp: Pair) -> None:
    """The offset counts from the queue's head, so it shrinks by what a real read takes."""
    near, far = tcp
    peek_offset(far, 0)
    near.sendall(DATA)
    readable_by_poll(far)
    assert far.recv(6, socket.MSG_PEEK) == b"012345"
    assert far.recv_into(bytearray(4), 4, socket.MSG_TRUNC) == 4
    assert far.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 2
    assert far.recv(4, socket.MSG_PEEK) == b"6789"


def test_peek_past_the_end_would_block(tcp: Pair) -> None:
    near, far = tcp
    peek_offset(far, 0)
    near.sendall(DATA)
    readable_by_poll(far)
    far.setblocking(False)
    assert far.recv(20, socket.MSG_PEEK) == DATA
    with pytest.raises(BlockingIOError):
        far.recv(20, socket.MSG_PEEK)
    near.shutdown(socket.SHUT_WR)
    far.settimeout(5)
    assert far.recv(20, socket.MSG_PEEK) == b""  # the end of the stream is seen past the queue


def queued(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0])


def test_send_queue_is_what_the_peer_has_not_acknowledged(tcp: Pair) -> None:
    near, far = tcp
    near.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += near.send(bytes(65536))
    assert 0 < queued(near) <= sent
    taken = 0
    while taken < sent:
        taken += len(far.recv(1 << 20))
    while queued(near):  # the last acknowledgement is on its way
        select.select([], [], [], 0.001)
    assert taken == sent


def test_zero_length_receive_discards_a_datagram(udp: Pair) -> None:
    """By recvmsg: Python's recv(0) answers by itself and asks no kernel."""
    near, far = udp
    near.send(b"first")
    near.send(b"second")
    readable_by_poll(far)
    assert far.recv(0) == b""
    assert far.recvmsg(0)[0] == b""
    assert far.recv(100) == b"second"


def test_empty_datagram_is_not_the_end(udp: Pair) -> None:
    near, far = udp
    near.send(b"")
    near.send(b"next")
    assert far.recv(100) == b""
    assert far.recv(100) == b"next"


def test_truncated_datagram_is_flagged(udp: Pair) -> None:
    near, far = udp
    near.send(DATA)
    size, _, flags, _ = far.recvmsg_into([bytearray(4)])
    assert (size, bool(flags & socket.MSG_TRUNC)) == (4, True)


def test_icmp_errors_reach_the_error_queue() -> None:
    """A closed port's ICMP comes back through IP_RECVERR, with who said so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.sendto(b"x", ("127.0.0.1", 1))  # tcpmux: nobody listens
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(5000)[0][1] & select.POLLERR
        data, ancillary, flags, _ = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
        assert data == b"x"
        assert flags & socket.MSG_ERRQUEUE
        level, kind, payload = ancillary[0]
        code, origin, icmp_type, icmp_code = struct.unpack_from("IBBB", payload)
    assert (level, kind) == (socket.IPPROTO_IP, IP_RECVERR)
    assert (code, origin, icmp_type, icmp_code) == (errno.ECONNREFUSED, 2, 3, 3)


def test_ping_socket_where_the_group_is_allowed() -> None:
    """An unprivileged ICMP socket sends echo, chooses the identifier, hides the IP header."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ping_group_range").read_text().split())
    groups = {os.getegid(), *os.getgroups()}
    allowed = any(low <= group <= high for group in groups)
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        assert not allowed
        return
    with sock:
        assert allowed
        sock.settimeout(5)
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0, 0xBEEF, 7) + b"payload", ("127.0.0.1", 0))
        reply = sock.recv(100)
        ident = sock.getsockname()[1]
    kind, code, _, echoed, sequence = struct.unpack_from("!BBHHH", reply)
    assert (kind, code, echoed, sequence) == (0, 0, ident, 7)
    assert reply[8:] == b"payload"


@pytest.fixture
def tun() -> Iterator[int]:
    need_root()  # an ordinary user's way leads through a namespace: tests/slirp/test_netns.py
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        missing(f"/dev/net/tun: {error.strerror}")
    yield fd
    os.close(fd)


def test_tap_takes_offloads_and_the_short_header(tun: int) -> None:
    features = struct.unpack("I", fcntl.ioctl(tun, TUNGETFEATURES, bytes(4)))[0]
    assert features & IFF_VNET_HDR
    request = struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    name = fcntl.ioctl(tun, TUNSETIFF, request)[:16].rstrip(b"\0")
    assert name  # the kernel chose one
    fcntl.ioctl(tun, TUNSETVNETHDRSZ, struct.pack("i", 10))
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    fcntl.ioctl(tun, TUNSETOFFLOAD, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_TSO4)  # segmentation without checksum makes no sense
