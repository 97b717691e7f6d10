"""BESS sockets: one message is one frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nic import bess
from nic.port import DeviceGone


@pytest.fixture
def ends() -> Iterator[tuple[bess.BessPort, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        far.settimeout(5)
        yield bess.BessPort(near, 1500), far


def test_frames_are_messages(ends: tuple[bess.BessPort, socket.socket]) -> None:
    port, far = ends
    far.send(b"first")
    far.send(b"second")
    seen = [bytes(frame.iov) for frame in port.frames()]
    assert seen == [b"first", b"second"]
    assert list(port.frames()) == []


def test_claim_is_cut_at_its_headers(ends: tuple[bess.BessPort, socket.socket]) -> None:
    port, far = ends
    claim = port.claim(60, (14, 20, 8))
    assert claim is not None
    assert [len(view) for view in claim.iov] == [14, 20, 8, 18]
    claim.iov.copy_from(bytes(range(60)))
    claim.commit(50)
    assert far.recv(100) == bytes(range(50))
    assert port.sent == 1


def test_cancelled_claim_leaves_no_trace(ends: tuple[bess.BessPort, socket.socket]) -> None:
    port, far = ends
    claim = port.claim(14)
    assert claim is not None
    claim.cancel()
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(100)


def test_frame_over_the_mtu_is_a_mistake_of_ours(
    ends: tuple[bess.BessPort, socket.socket],
) -> None:
    with pytest.raises(ValueError, match="1515 bytes"):
        ends[0].claim(1515)


def test_work_of_one_call_is_bounded(ends: tuple[bess.BessPort, socket.socket]) -> None:
    port, far = ends
    for _ in range(bess.FRAMES_PER_CALL + 5):
        far.send(b"frame")
    assert len(list(port.frames())) == bess.FRAMES_PER_CALL
    assert len(list(port.frames())) == 5


def test_machine_that_does_not_read_loses_frames(
    ends: tuple[bess.BessPort, socket.socket],
) -> None:
    port, _ = ends
    while not port.dropped:
        claim = port.claim(1514)
        assert claim is not None
        claim.commit(1514)
    assert port.sent > 0


def test_machine_that_goes_away(ends: tuple[bess.BessPort, socket.socket]) -> None:
    port, far = ends
    far.close()
    with pytest.raises(DeviceGone, match="has gone"):
        list(port.frames())
    claim = port.claim(14)
    assert claim is not None
    with pytest.raises(DeviceGone, match="has gone"):
        claim.commit(14)


def test_listening_socket_replaces_what_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "bess.sock"
    bess.listen(str(path)).close()
    with (
        bess.listen(str(path)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as machine,
    ):
        machine.connect(str(path))
        accepted, _ = listener.accept()
        accepted.close()
    with pytest.raises(OSError, match="No such file"):
        bess.listen(str(tmp_path / "missing" / "bess.sock"))
