"""HTTP at the gateway through a whole network: who reads, who does not, who is too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from slirp.host import http
from tests.kit.clock import Clock
from tests.kit.guest import ACK, GATEWAY, PSH, Lab, Stream
from tests.slirp.host.conftest import MakeLab

CONTENT = bytes(n % 251 for n in range(1_000_000))
ASK = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "file").write_bytes(CONTENT)
    return str(tmp_path)


def get(stream: Stream, ask: bytes = ASK) -> bytes:
    """The body of an answer."""
    stream.put(ACK | PSH, ask)
    lab = stream.guest.lab
    lab.turn(lambda: b"\r\n\r\n" in stream.received)
    head, _, rest = bytes(stream.received).partition(b"\r\n\r\n")
    size = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    stream.received[:] = rest
    return stream.receive(size)


def clients(lab: Lab) -> int:
    relay = lab.network._own._http
    assert relay is not None
    return len(relay._clients)


def test_files_over_one_connection(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(http=folder, restrict=True)
    stream = lab.guest.connect((GATEWAY, 80))
    assert get(stream) == CONTENT
    assert get(stream, ASK.replace(b"\r\n\r\n", b"\r\nRange: bytes=5-9\r\n\r\n")) == CONTENT[5:10]
    assert get(stream, ASK.replace(b"file", b"none")) == b""
    assert lab.network.stats()["http"] == {"requests": 3, "octets": len(CONTENT) + 5}
    stream.finish()
    lab.turn(lambda: stream.got_fin)
    lab.turn()
    assert clients(lab) == 0
    assert lab.attachment.sockets == 0


def test_several_requests_at_once(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(http=folder)
    stream = lab.guest.connect((GATEWAY, 80))
    part = ASK.replace(b"\r\n\r\n", b"\r\nRange: bytes=0-9\r\n\r\n")
    assert get(stream, part * 3) == CONTENT[:10]
    lab.turn()
    assert bytes(stream.received).count(b"206 Partial") == 2


def test_who_does_not_read_holds_nobody_up(make_lab: MakeLab, folder: str) -> None:
    clock = Clock()
    lab = make_lab(http=folder, clock=clock)
    slow = lab.guest.connect((GATEWAY, 80))
    slow.auto_ack = False
    slow.put(ACK | PSH, ASK)
    lab.turn()
    other = lab.guest.connect((GATEWAY, 80))
    assert get(other) == CONTENT
    assert clients(lab) == 2
    clock.until(clock.now + http.CLIENT_FOR + 1)
    lab.turn()
    assert clients(lab) == 0


def test_connections_are_bounded(
    make_lab: MakeLab, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has been quiet for longest gives way."""
    monkeypatch.setattr(http, "CLIENTS_MAX", 2)
    clock = Clock()
    lab = make_lab(http=folder, clock=clock)
    streams = []
    for _ in range(3):
        streams.append(lab.guest.connect((GATEWAY, 80)))
        clock.until(clock.now + 1)
        lab.turn()
    assert clients(lab) == 2
    assert [stream.got_reset for stream in streams] == [True, False, False]


def test_what_is_no_http(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(http=folder)
    stream = lab.guest.connect((GATEWAY, 80))
    stream.put(ACK | PSH, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n")
    lab.turn(lambda: stream.got_fin)
    assert bytes(stream.received).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert clients(lab) == 0


def test_a_port_that_is_gone(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(http=folder)
    stream = lab.guest.connect((GATEWAY, 80))
    stream.put(ACK | PSH, ASK)
    lab.network.poll()
    lab.network.detach(lab.attachment)
    assert clients(lab) == 0
