"""TFTP and NTP through a whole network: transfers, hostile packets, what is off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slirp.services import tftp as service
from slirp.wire import tftp as wire
from tests.kit.clock import Clock
from tests.kit.guest import DNS, GATEWAY, GUEST, Lab, addr, udp
from tests.slirp.host.conftest import MakeLab

OUTSIDE = "192.0.2.1"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"x" * 1000)
    (root / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return str(root)


def ask(lab: Lab, payload: bytes, port: int = wire.PORT, src_port: int = 2000) -> list[wire.Packet]:
    lab.guest.give(udp(payload, GATEWAY, port, src_port=src_port))
    lab.turn()
    return [wire.parse(came.data) for came in lab.guest.datagrams()]


def request(name: bytes, **options: bytes) -> bytes:
    told = {key.encode(): value for key, value in options.items()}
    return wire.emit_request(wire.RRQ, name, b"octet", told)


def begin(lab: Lab) -> int:
    """A transfer, and the port that it comes from."""
    lab.guest.give(udp(request(b"file"), GATEWAY, wire.PORT, src_port=2000))
    lab.turn()
    (came,) = lab.guest.datagrams()
    assert (came.src, came.dst_port) == (addr(GATEWAY), 2000)
    assert came.data[:4] == b"\0\3\0\1"
    return came.src_port


def test_a_transfer(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder)
    tid = begin(lab)
    assert ask(lab, wire.emit_ack(1), tid) == [wire.Data(2, b"x" * 488)]
    assert ask(lab, wire.emit_ack(2), tid) == []
    assert lab.network.stats()["tftp"] == {"requests": 1, "finished": 1}
    assert ask(lab, wire.emit_ack(2), tid) == []  # and not to the host's port of that number
    assert lab.network.stats()["udp"]["mappings"] == 0


def test_a_transfer_is_sent_again_and_given_up(make_lab: MakeLab, folder: str) -> None:
    clock = Clock()
    lab = make_lab(tftp=folder, clock=clock)
    tid = begin(lab)
    for _ in range(service.RETRIES_MAX):
        clock.until(clock.now + service.TIMEOUT)
        lab.turn()
        (came,) = lab.guest.datagrams()
        assert (came.src_port, came.data[:4]) == (tid, b"\0\3\0\1")
    clock.until(clock.now + service.TIMEOUT)
    lab.turn()
    assert lab.guest.datagrams() == []
    layer = lab.network._stack.layer(addr(GATEWAY))
    assert tid in layer.services
    clock.until(clock.now + service.LINGER_FOR)
    lab.turn()
    assert tid not in layer.services


@pytest.mark.parametrize(
    "name",
    [
        b"..\\..\\secret", b"../secret", b"a/../../secret", b"/../secret", b"file/", b"", b"/",
        b"out", b"C:\\secret", b"x" * 490, b"//etc/passwd", b"..", b".",
    ],
)  # fmt: skip
def test_cve_2020_7211_names(name: bytes, make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder)
    (error,) = ask(lab, request(name))
    assert isinstance(error, wire.Error)
    assert error == wire.Error(wire.NOT_FOUND, b"no such file")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"\0", "truncated"),
        (b"\0\1", "no mode"),
        (b"\0\1f", "text without end"),
        (b"\0\1file", "text without end"),
        (b"\0\1file\0", "no mode"),
        (b"\0\1file\0octet\0blksize\0", "option without value"),
        (b"\0\1file\0octet\0blksize\x00512", "text without end"),
        (b"\0\1" + b"x" * 600 + b"\0octet\0", "oversized"),
        (b"\xff\xff\0\0", "opcode"),
    ],
)
def test_cve_2021_3595_packets(payload: bytes, reason: str, make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder)
    assert ask(lab, payload) == []
    assert lab.malformed() == {f"tftp: {reason}": 1}
    begin(lab)  # others go on


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (b"0", wire.Error), (b"7", wire.Error), (b"65465", wire.Error), (b"-1", wire.Data),
        (b"9" * 40, wire.Data), (b"1428", wire.OptionAck),
    ],
)  # fmt: skip
def test_cve_2021_3595_block_sizes(
    value: bytes, answer: type, make_lab: MakeLab, folder: str
) -> None:
    lab = make_lab(tftp=folder)
    (came,) = ask(lab, request(b"file", blksize=value, tsize=b"4294967296"))
    expected = wire.OptionAck if answer is wire.Data else answer  # tsize is told in any case
    assert isinstance(came, expected)
    if isinstance(came, wire.OptionAck):
        assert came.options[b"tsize"] == b"1000"


def test_a_second_request_and_an_error_in_the_middle(make_lab: MakeLab, folder: str) -> None:
    """What libslirp 4.8.0 had fixed."""
    lab = make_lab(tftp=folder)
    first = begin(lab)
    ask(lab, wire.emit_ack(1), first)
    second = begin(lab)
    assert first != second
    assert ask(lab, wire.emit_ack(1), first) == []
    assert ask(lab, wire.emit_error(0, "enough"), second) == []
    assert ask(lab, wire.emit_ack(1), second) == []
    begin(lab)


def test_it_is_at_the_gateway_only(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder, ntp=True, restrict=True)
    for where in (DNS, OUTSIDE):
        for port in (69, 123):
            lab.guest.give(udp(request(b"file"), where, port))
        lab.turn()
        assert lab.guest.datagrams() == []


def test_a_source_that_is_nobody(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder, ntp=True)
    for port in (69, 123):
        lab.exchange(udp(request(b"file") + bytes(48), GATEWAY, port, src="0.0.0.0"))
    assert lab.malformed() == {"udp: source address unspecified": 2}


def test_ntp(make_lab: MakeLab) -> None:
    lab = make_lab(ntp=True)
    lab.guest.give(udp(b"\x23" + bytes(47), GATEWAY, 123, src_port=4000))
    lab.turn()
    (came,) = lab.guest.datagrams()
    assert (came.src, came.src_port, came.dst_port) == (addr(GATEWAY), 123, 4000)
    assert len(came.data) == 48
    lab.exchange(udp(b"\x23", GATEWAY, 123))
    assert lab.malformed() == {"ntp: truncated": 1}


def test_a_port_that_is_gone_has_no_transfers(make_lab: MakeLab, folder: str) -> None:
    lab = make_lab(tftp=folder)
    before = len(os.listdir("/proc/self/fd"))
    begin(lab)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    lab.network.detach(lab.attachment)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Lab(tftp=str(tmp_path / "nothing"))
    assert caught.value.filename == str(tmp_path / "nothing")
    assert GUEST
