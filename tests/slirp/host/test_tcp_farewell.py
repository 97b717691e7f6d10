"""Who is over for the guest and not for the host: when each leaves, and what it costs meanwhile."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.host import tcp_farewell
from slirp.host.descriptors import RESERVE
from slirp.host.loop import RETRY_AFTER
from slirp.host.tcp_farewell import LINGER_FOR
from slirp.host.tcp_flow import TcpFlow
from slirp.tcp.lifecycle import TIME_WAIT_FOR
from tests.kit.clock import Clock
from tests.kit.guest import ACK, GATEWAY, PSH, Lab, Stream
from tests.slirp.host.conftest import MakeLab, open_fds
from tests.slirp.host.test_descriptors import ledger_of, only
from tests.slirp.host.test_forward import TO_GUEST, accepted, seen
from tests.slirp.host.test_tcp import DATA, RESET, Starved, connected, flow_count, received

pytestmark = pytest.mark.usefixtures("every_endpoint")


def fill(lab: Lab, stream: Stream) -> int:
    """Send until the network has no more room; how much."""
    sent = 0
    while stream.una + stream.peer_window - stream.seq >= 1460:
        stream.put(ACK | PSH, DATA[sent % 100_000 :][:1460])
        sent += 1460
        lab.turn()
    return sent


def drained(peer: socket.socket) -> int:
    """Read to the end; the error number that ended it, or 0."""
    try:
        while peer.recv(1 << 20):
            pass
    except OSError as error:
        return error.errno or 0
    return 0


def flow_of(lab: Lab) -> TcpFlow:
    (flow,) = lab.network._dispatcher.tcp.flows.values()
    return flow


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def unread(
    make_lab: MakeLab, tmp_path: Path, clock: Clock
) -> Iterator[tuple[Lab, Stream, socket.socket, int]]:
    """A guest's connection to a client of a Unix socket that reads nothing: there is a spill."""
    lab, path = make_lab(clock=clock), str(tmp_path / "web.sock")
    seen(lab)
    lab.network.forward("unix", host=path, guest=TO_GUEST)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        stream = accepted(lab)
        sent = fill(lab, stream)
        assert flow_of(lab).spill is not None
        peer.setblocking(False)
        yield lab, stream, peer, sent


def end_in_order(lab: Lab, stream: Stream, peer: socket.socket, clock: Clock) -> None:
    """Both have said FIN, TIME-WAIT is over; the spill is not."""
    peer.shutdown(socket.SHUT_WR)
    lab.turn(lambda: stream.got_fin)
    stream.finish()
    lab.turn()
    clock.advance(TIME_WAIT_FOR)
    lab.turn()
    assert not flow_count(lab)


@pytest.mark.parametrize("how", ["in order", "by a reset"])
def test_a_spill_reaches_the_host_after_the_guest_s_end(
    how: str, unread: tuple[Lab, Stream, socket.socket, int], clock: Clock
) -> None:
    lab, stream, peer, sent = unread
    before = len(open_fds())
    if how == "in order":
        end_in_order(lab, stream, peer, clock)
    else:
        stream.reset()
        lab.turn()
        assert not flow_count(lab)
    assert len(received(lab, peer, sent)) == sent
    clock.advance(LINGER_FOR / 10)
    lab.turn()
    assert peer.recv(1) == b""
    assert len(open_fds()) == before - 1


def test_a_host_that_is_gone_is_not_waited_for(
    unread: tuple[Lab, Stream, socket.socket, int], clock: Clock
) -> None:
    """The kernel takes nothing more of the spill: the socket is closed, not kept for a minute."""
    lab, stream, peer, _ = unread
    end_in_order(lab, stream, peer, clock)
    before = len(open_fds())
    peer.close()
    lab.turn()
    assert len(open_fds()) == before - 2


def test_a_shortage_does_not_lose_the_spill(
    unread: tuple[Lab, Stream, socket.socket, int], clock: Clock
) -> None:
    lab, stream, peer, sent = unread
    flow = flow_of(lab)
    stream.reset()
    lab.turn()
    assert flow.sock is not None
    flow.sock = Starved(flow.sock, "send", errno.ENOMEM)  # type: ignore[assignment]
    got = 0
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            while data := peer.recv(1 << 16):
                got += len(data)
        lab.turn()  # the call that fails is the last that the kernel asks for
        clock.advance(RETRY_AFTER)
        lab.turn()
    assert got == sent


def test_a_host_that_reads_nothing_is_not_looked_at_often(
    make_lab: MakeLab, listener: socket.socket, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them would keep a processor busy."""
    lab = make_lab(clock=clock)
    looks = 0

    def looked(sock: socket.socket) -> int:
        nonlocal looks
        looks += 1
        return 1

    with connected(lab, listener) as (stream, _):
        monkeypatch.setattr(tcp_farewell, "unsent", looked)
        stream.put(ACK | PSH, b"bytes on the way")
        stream.reset()
        lab.turn()
        before = len(open_fds())
        for _ in range(int(LINGER_FOR * 100) + 1):
            clock.advance(0.01)
            lab.network.poll(0)
        assert len(open_fds()) == before - 1
        assert 10 < looks < 50


def test_who_waits_longest_gives_way(
    make_lab: MakeLab, listener: socket.socket, clock: Clock
) -> None:
    """A guest that leaves its hosts with much to take still gets a socket when it asks for one."""
    lab = make_lab(clock=clock)
    with (
        connected(lab, listener) as (stream, peer),
        connected(lab, listener) as (other, _),
    ):
        for each in (stream, other):
            fill(lab, each)
            each.reset()
            clock.advance(0.001)
            lab.turn()
        before = len(open_fds())
        with only(RESERVE, ledger_of(lab)):
            third = lab.guest.connect((GATEWAY, listener.getsockname()[1]))
            assert third.connected
        assert len(open_fds()) == before  # one closed, one opened
        peer.setblocking(True)
        assert drained(peer) == errno.ECONNRESET
        assert ledger_of(lab).displaced == 1


def test_what_is_displaced_is_closed_at_once(
    make_lab: MakeLab, listener: socket.socket, clock: Clock
) -> None:
    """Its descriptor is what is needed: it does not wait for a host that reads nothing."""
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, _):
        fill(lab, stream)
        before = len(open_fds())
        clock.advance(1000)
        assert ledger_of(lab).make_room(clock.now)
        assert len(open_fds()) == before - 1
        lab.turn(lambda: stream.got_reset)


def test_a_reset_comes_at_once_where_nothing_is_on_the_way(
    make_lab: MakeLab, listener: socket.socket, clock: Clock
) -> None:
    lab = make_lab(clock=clock)
    with connected(lab, listener) as (stream, peer):
        stream.reset()
        lab.turn()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_the_network_s_end_is_theirs(make_lab: MakeLab, listener: socket.socket) -> None:
    before = len(open_fds())
    with Lab() as lab, connected(lab, listener) as (stream, peer):
        fill(lab, stream)
        stream.reset()
        lab.turn()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert len(open_fds()) == before
