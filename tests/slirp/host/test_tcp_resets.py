"""What was sent before a reset arrives before the reset, whichever side resets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from pathlib import Path

import pytest

from slirp.host import tcp as relay
from slirp.host.tcp_farewell import LINGER_FOR
from slirp.host.tcp_flow import BROKEN_FOR, connect_answer
from tests.kit.clock import Clock
from tests.kit.guest import ACK, GATEWAY, PSH, Lab, Stream
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_forward import TO_GUEST, accepted, forwarded, seen
from tests.slirp.host.test_tcp import DATA, RESET, connected, flow_count, received, send_all

pytestmark = pytest.mark.usefixtures("peeking", "every_endpoint")

ANSWER = b"HTTP/1.1 413 Too Large\r\n\r\n"


def more_came(stream: Stream, before: int) -> bool:
    return len(stream.received) > before or stream.got_reset


def turn_until_reset(lab: Lab, stream: Stream) -> None:
    lab.turn(lambda: stream.got_reset and not flow_count(lab))


def close_over_unread(peer: socket.socket, answer: bytes) -> None:
    """As a server does that has read enough: the kernel sends what it answered, then RST."""
    peer.setblocking(True)
    assert peer.recv(1)
    peer.sendall(answer)
    peer.close()


# --- the host resets ------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [True, False], ids=["guest sends on", "guest waits"])
def test_an_answer_before_a_reset_reaches_the_guest(
    busy: bool, lab: Lab, listener: socket.socket
) -> None:
    for _ in range(20):
        with connected(lab, listener) as (stream, peer):
            stream.send(bytes(10_000))
            close_over_unread(peer, ANSWER)
            if busy:  # so that it is a write that fails
                stream.put(ACK | PSH, b"more")
            turn_until_reset(lab, stream)
            assert stream.received == ANSWER
            assert not stream.got_fin


def test_a_long_answer_waits_for_the_guest_s_window(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        stream.window = 5000
        stream.put(ACK | PSH, b"U" * 100)
        received(lab, peer, 1)
        close_over_unread(peer, DATA[:50_000])
        lab.turn(lambda: len(stream.received) >= 4000)
        while len(stream.received) < 50_000:
            before = len(stream.received)
            assert not stream.got_reset
            stream.put(ACK)
            lab.turn(partial(more_came, stream, before))
        stream.put(ACK)
        turn_until_reset(lab, stream)
        assert stream.received == DATA[:50_000]


def test_a_guest_that_never_takes_it_is_reset_in_the_end(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        stream.window = 0
        stream.put(ACK | PSH, b"U" * 100)
        received(lab, peer, 1)
        close_over_unread(peer, ANSWER)
        lab.turn()
        clock.advance(BROKEN_FOR - 1)
        lab.turn()
        assert not stream.got_reset
        clock.advance(2)
        turn_until_reset(lab, stream)
        assert stream.received == b""


def test_what_a_guest_sends_after_it_is_taken_and_dropped(
    lab: Lab, listener: socket.socket
) -> None:
    """It must not have to wait for a host that will take nothing: the answer is behind it."""
    with connected(lab, listener) as (stream, peer):
        stream.auto_ack = False
        stream.window = 10
        stream.put(ACK | PSH, b"U" * 100)
        received(lab, peer, 1)
        close_over_unread(peer, ANSWER)
        lab.turn(lambda: bool(stream.received))
        stream.window = 0
        stream.send(DATA[:20_000])
        stream.window = 65535
        stream.auto_ack = True
        stream.put(ACK)
        turn_until_reset(lab, stream)
        assert stream.received == ANSWER


def test_a_reset_with_nothing_before_it_is_told_at_once(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        turn_until_reset(lab, stream)
        assert stream.received == b""


def test_a_reset_after_the_host_s_fin(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        peer.sendall(ANSWER)
        peer.shutdown(socket.SHUT_WR)
        lab.turn(lambda: stream.got_fin)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        turn_until_reset(lab, stream)
        assert stream.received == ANSWER


def test_a_unix_peer_that_closes_over_what_it_has_not_read(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab, path = make_lab(), str(tmp_path / "web.sock")
    seen(lab)
    lab.network.forward("unix", host=path, guest=TO_GUEST)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        stream = accepted(lab)
        stream.send(bytes(10_000))
        close_over_unread(peer, ANSWER)
        turn_until_reset(lab, stream)
        assert stream.received == ANSWER


@pytest.fixture
def not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes a while to answer, as one on another machine does."""
    monkeypatch.setattr(relay, "connect_answer", lambda sock: errno.EINPROGRESS)


def opened(lab: Lab, listener: socket.socket) -> tuple[Stream, socket.socket]:
    """The host has accepted, and nobody has looked yet."""
    stream = lab.guest.open((GATEWAY, listener.getsockname()[1]))
    lab.network.poll(0)
    return stream, listener.accept()[0]


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


@pytest.mark.usefixtures("not_local")
@pytest.mark.parametrize("banner", [b"", b"too many of you\r\n"])
def test_a_host_that_resets_before_it_is_known_to_be_there(
    banner: bytes, lab: Lab, listener: socket.socket
) -> None:
    """It accepted: so does the network, says what it said, and then resets."""
    stream, peer = opened(lab, listener)
    peer.sendall(banner)
    reset(peer)
    turn_until_reset(lab, stream)
    assert stream.connected
    assert stream.received == banner


@pytest.mark.usefixtures("not_local")
@pytest.mark.parametrize("banner", [b"", b"12:00\r\n"])
def test_a_host_that_closes_before_it_is_known_to_be_there(
    banner: bytes, lab: Lab, listener: socket.socket
) -> None:
    """One event tells of the connection, the bytes and the end."""
    stream, peer = opened(lab, listener)
    peer.sendall(banner)
    peer.close()
    lab.turn(lambda: stream.got_fin)
    assert stream.received == banner


def test_a_host_that_resets_as_soon_as_it_has_accepted(
    lab: Lab, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has answered and reset by the time that connect(2) returns."""

    def look_late(sock: socket.socket) -> int:
        peer, _ = listener.accept()
        peer.sendall(ANSWER)
        reset(peer)
        return connect_answer(sock)

    monkeypatch.setattr(relay, "connect_answer", look_late)
    stream = lab.guest.open((GATEWAY, listener.getsockname()[1]))
    turn_until_reset(lab, stream)
    assert stream.connected
    assert stream.received == ANSWER


def test_a_client_that_resets_before_the_guest_has_answered(make_lab: MakeLab) -> None:
    """A forward: what the client sent reaches the guest's server all the same."""
    lab = make_lab()
    seen(lab)
    with socket.create_connection(forwarded(lab)) as peer:
        lab.network.poll(0)
        peer.sendall(b"last words")
        reset(peer)
        stream = accepted(lab)
        turn_until_reset(lab, stream)
        assert stream.received == b"last words"


# --- the guest resets -----------------------------------------------------------------------------


def read_to_the_end(lab: Lab, peer: socket.socket) -> tuple[bytes, bool]:
    """What the host's end gets, and whether a reset ended it."""
    got = bytearray()
    was_reset = False

    def over() -> bool:
        nonlocal was_reset
        try:
            data = peer.recv(1 << 16)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            was_reset = True
            return True
        got.extend(data)
        return not data

    lab.turn(over)
    return bytes(got), was_reset


def test_what_a_guest_sent_before_its_reset_reaches_the_host(
    lab: Lab, listener: socket.socket
) -> None:
    with connected(lab, listener) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sent = 0
        while True:  # until the network has no room for more: the host's queues are full
            room = stream.una + stream.peer_window - stream.seq
            if room < 1460:
                break
            stream.put(ACK | PSH, DATA[sent % 100_000 :][:1460])
            sent += 1460
            lab.turn()
        stream.reset()
        lab.turn(lambda: not flow_count(lab))
        got, was_reset = read_to_the_end(lab, peer)
        assert len(got) == sent
        assert was_reset


def test_a_host_that_takes_nothing_does_not_hold_it_for_ever(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        for _ in range(200):
            room = stream.una + stream.peer_window - stream.seq
            if room < 1460:
                break
            stream.put(ACK | PSH, DATA[:1460])
            lab.turn()
        before = len(os.listdir("/proc/self/fd"))
        stream.reset()
        lab.turn(lambda: not flow_count(lab))
        clock.advance(LINGER_FOR + 1)
        lab.turn(lambda: len(os.listdir("/proc/self/fd")) < before)
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    if not peer.recv(1 << 16):
                        break
                except ConnectionResetError:
                    break


def test_a_guest_that_resets_with_nothing_on_the_way(lab: Lab, listener: socket.socket) -> None:
    with connected(lab, listener) as (stream, peer):
        send_all(lab, peer, b"hello")
        assert stream.receive(5) == b"hello"
        stream.reset()
        assert read_to_the_end(lab, peer) == (b"", True)
