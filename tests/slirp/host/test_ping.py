"""Echo to the world, by the kernel's ping sockets, by raw ones, and by neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slirp.host import ping as relay
from slirp.linux import syscalls
from tests.kit.clock import Clock
from tests.kit.forked import ELSEWHERE, in_namespace
from tests.kit.guest import Icmp, Lab, addr, icmp, is_right
from tests.slirp.host.conftest import open_fds
from tests.slirp.host.test_tcp import no_more_descriptors

OTHER_MAC = bytes.fromhex("52540012 3457")


def allow_ping_sockets() -> None:
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")


def be_allowed_nothing() -> None:
    syscalls.drop_capabilities()


def be_root() -> None:
    return


KINDS = [
    pytest.param(allow_ping_sockets, id="ping sockets"),
    pytest.param(be_root, id="raw sockets"),
]


def echoes(lab: Lab, ident: int, sequence: int, data: bytes, **ip: int) -> list[Icmp]:
    """What comes back for one request."""
    lab.guest.give(icmp(8, 0, ident << 16 | sequence, data, ELSEWHERE, **ip))
    lab.turn(lambda: bool(lab.guest.inbox))
    assert {is_right(frame).src for frame in lab.guest.inbox} <= {
        addr(ELSEWHERE), addr("10.0.2.2"),
    }  # fmt: skip
    return lab.guest.icmps()


@pytest.mark.parametrize("prepare", KINDS)
def test_an_echo_comes_back_as_the_guests_own(prepare: Callable[[], None]) -> None:
    def body() -> None:
        prepare()
        with Lab() as lab:
            for sequence, data in enumerate((b"", b"x", bytes(range(256)) * 5)):
                (reply,) = echoes(lab, 0x1234, sequence, data)
                assert reply == (0, 0, 0x1234 << 16 | sequence, data)
            assert lab.network.stats()["icmp"]["replies"] == 3

    in_namespace(body)


@pytest.mark.parametrize("prepare", KINDS)
def test_guests_with_one_identifier_do_not_meet(prepare: Callable[[], None]) -> None:
    def body() -> None:
        prepare()
        with Lab() as lab:
            other = lab.add_guest("10.0.2.16", b"\x02other")
            lab.guest.give(icmp(8, 0, 0x00070001, b"mine", ELSEWHERE))
            frame = bytearray(icmp(8, 0, 0x00070001, b"theirs", ELSEWHERE, src="10.0.2.16"))
            frame[6:12] = b"\x02other"
            other.give(bytes(frame))
            lab.turn(lambda: bool(lab.guest.inbox and other.inbox))
            assert [m.data for m in lab.guest.icmps()] == [b"mine"]
            assert [m.data for m in other.icmps()] == [b"theirs"]

    in_namespace(body)


@pytest.mark.parametrize("prepare", KINDS)
def test_sockets_end_unused_and_are_bounded(prepare: Callable[[], None]) -> None:
    def body() -> None:
        prepare()
        clock = Clock()
        relay.PINGS_MAX = 4  # type: ignore[misc]
        with Lab(clock=clock) as lab:
            before = open_fds()
            for ident in range(10):
                clock.advance(1)
                echoes(lab, ident, 1, b"x")
            assert len(open_fds() - before) == 4
            clock.advance(relay.PING_FOR)
            lab.turn()
            clock.advance(relay.PING_FOR)
            lab.turn()
            assert open_fds() <= before

    in_namespace(body)


@pytest.mark.parametrize("prepare", KINDS)
def test_no_route_is_net_unreachable(prepare: Callable[[], None]) -> None:
    def body() -> None:
        prepare()
        with Lab() as lab:
            lab.guest.give(icmp(8, 0, 0x00070009, b"far away", "198.51.100.1"))
            lab.turn(lambda: bool(lab.guest.inbox))
            (message,) = lab.guest.icmps()
            assert (message.type, message.code) == (3, 0)
            assert message.data[16:20] == addr("198.51.100.1")
            assert message.data[24:28] == b"\0\7\0\t"
            assert message.data[28:] == b"far away"

    in_namespace(body)


def test_where_nothing_is_allowed_the_guest_is_told() -> None:
    def body() -> None:
        be_allowed_nothing()
        with Lab() as lab:
            (message,) = echoes(lab, 7, 9, b"please")
            assert (message.type, message.code) == (3, 13)
            assert lab.network.stats()["icmp"]["prohibited"] == 1

    in_namespace(body)


def test_without_descriptors_nothing_is_claimed() -> None:
    def body() -> None:
        with Lab() as lab:
            with no_more_descriptors():
                lab.guest.give(icmp(8, 0, 0x00070009, b"x", ELSEWHERE))
                lab.turn()
            assert not lab.guest.inbox
            assert echoes(lab, 7, 10, b"again") == [(0, 0, 0x0007000A, b"again")]

    in_namespace(body)


def test_a_reply_longer_than_the_mtu_is_fragmented() -> None:
    def body() -> None:
        allow_ping_sockets()
        with Lab() as lab:
            message = icmp(8, 0, 0x00070001, bytes(3000), ELSEWHERE)[34:]
            from tests.kit.guest import ether, ipv4

            for at in range(0, len(message), 1480):
                more = 0x2000 if at + 1480 < len(message) else 0
                piece = message[at : at + 1480]
                lab.guest.give(ether(ipv4(piece, 1, ELSEWHERE, ident=5, fragment=more | at >> 3)))
            lab.turn(lambda: len(lab.guest.inbox) == 3)
            packets = lab.guest.packets(1)
            assert sum(len(packet.payload) for packet in packets) == 3008

    in_namespace(body)


def test_detaching_ends_pings() -> None:
    def body() -> None:
        with Lab() as lab:
            before = open_fds()
            echoes(lab, 7, 1, b"x")
            lab.network.detach(lab.attachment)
            assert open_fds() <= before

    in_namespace(body)


def test_echoes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One guest that tries every identifier does not cost another its answers."""

    def body() -> None:
        monkeypatch.setattr(relay, "PINGS_MAX", 4)
        with Lab() as lab:
            other = lab.add_guest("10.0.2.16", OTHER_MAC)
            frame = icmp(8, 0, 1 << 16, b"", ELSEWHERE, src="10.0.2.16")
            other.give(frame[:6] + OTHER_MAC + frame[12:])
            lab.turn()
            for ident in range(6):
                echoes(lab, ident, 0, b"")
                lab.guest.inbox.clear()
            pings = lab.network._dispatcher.ping._pings.values()
            assert [(ping.attachment is lab.attachment, ping.ident) for ping in pings] == [
                (False, 1), (True, 4), (True, 5),
            ]  # fmt: skip

    in_namespace(body)
