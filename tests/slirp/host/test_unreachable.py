"""Where the host has no way on, the guest hears what a router would say: UDP, echo and TCP alike.

The judge is the host's kernel with real routes, in a namespace. EPERM is what a packet filter says;
there is none in there, so a socket of the test's says it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from slirp.ip.limit import ERRORS_AT_ONCE
from tests.kit.clock import Clock
from tests.kit.forked import in_namespace
from tests.kit.guest import GATEWAY, Icmp, Lab, addr, icmp, is_right, udp
from tests.kit.need import need_tool
from tests.kit.port import MemoryPort
from tests.slirp.host.conftest import MakeLab

DF = 0x4000
NO_ROUTE = "198.51.100.1"
UNREACHABLE = "198.51.100.65"
PROHIBITED = "198.51.100.129"
BLACK_HOLE = "198.51.100.193"
NARROW = "203.0.113.1"  # its path carries NARROW_MTU bytes
NARROW_MTU = 1280


def add_routes() -> None:
    ip = need_tool("ip")
    for route in (
        f"unreachable {UNREACHABLE}",
        f"prohibit {PROHIBITED}",
        f"blackhole {BLACK_HOLE}",
        f"{NARROW} dev lo mtu {NARROW_MTU}",
    ):
        assert not os.system(f"{ip} route add {route}")


def send_udp(lab: Lab, to: str) -> bytes:
    lab.guest.give(udp(b"anybody?", to, 53, src_port=40404))
    return struct.pack("!HHHH", 40404, 53, 16, 0) + b"anybody?"


def send_echo(lab: Lab, to: str) -> bytes:
    lab.guest.give(icmp(8, 0, 0x00070009, b"anybody?", to))
    return struct.pack("!BBHHH", 8, 0, 0, 7, 9) + b"anybody?"


def send_syn(lab: Lab, to: str) -> bytes:
    stream = lab.guest.open((to, 80), iss=77)
    return struct.pack("!HHI", stream.port, 80, 77)


KINDS = [
    pytest.param(send_udp, 17, id="udp"),
    pytest.param(send_echo, 1, id="echo"),
    pytest.param(send_syn, 6, id="tcp"),
]


def heard(lab: Lab) -> Icmp:
    """The one error that came, from the gateway."""
    lab.turn(lambda: bool(lab.guest.inbox))
    assert [is_right(frame).src for frame in lab.guest.inbox] == [addr(GATEWAY)]
    (message,) = lab.guest.icmps()
    return message


@pytest.mark.parametrize(("send", "protocol"), KINDS)
def test_the_hosts_routes(send: Callable[[Lab, str], bytes], protocol: int) -> None:
    def body() -> None:
        add_routes()
        with Lab() as lab:
            for to, code in ((NO_ROUTE, 0), (UNREACHABLE, 1), (PROHIBITED, 13)):
                for _ in range(2):  # the second time by the short way, where there is one
                    quoted = send(lab, to)
                    message = heard(lab)
                    assert (message.type, message.code, message.rest) == (3, code, 0)
                    assert message.data[9] == protocol
                    assert message.data[16:20] == addr(to)
                    assert message.data[20:] == quoted
            assert lab.network.stats()["icmp"]["errors"] == 6

    in_namespace(body)


@pytest.mark.parametrize(("send", "protocol"), KINDS)
def test_a_black_hole_says_nothing(send: Callable[[Lab, str], bytes], protocol: int) -> None:
    def body() -> None:
        add_routes()
        with Lab() as lab:
            send(lab, BLACK_HOLE)
            lab.turn()
            assert not lab.guest.inbox, protocol
            assert lab.network.stats()["icmp"]["errors"] == 0

    in_namespace(body)


def too_long(lab: Lab, send: bytes) -> Icmp:
    lab.guest.give(send)
    return heard(lab)


def test_the_mtu_of_the_path_is_told() -> None:
    """RFC 1191: whoever forbids fragments learns what fits, and what fits goes out."""

    def body() -> None:
        add_routes()
        with Lab() as lab:
            for _ in range(2):
                message = too_long(lab, udp(bytes(1400), NARROW, 53, fragment=DF))
                assert (message.type, message.code, message.rest) == (3, 4, NARROW_MTU)
                message = too_long(lab, icmp(8, 0, 0x00070009, bytes(1400), NARROW, fragment=DF))
                assert (message.type, message.code, message.rest) == (3, 4, NARROW_MTU)
                assert message.data[24:28] == b"\0\7\0\x09"
            sent = lab.network.stats()["udp"]["datagrams_to_host"]
            fits = NARROW_MTU - 28
            lab.guest.give(udp(bytes(fits), NARROW, 53, fragment=DF))
            lab.guest.give(udp(bytes(1400), NARROW, 53))  # whose fragments the host makes
            lab.guest.give(icmp(8, 0, 0x00070009, bytes(1400), NARROW))
            lab.turn()
            assert not lab.guest.inbox
            assert lab.network.stats()["udp"]["datagrams_to_host"] == sent + 2
            assert lab.network.stats()["icmp"]["echoes"] == 1

    in_namespace(body)


def test_a_link_of_our_own_that_is_wider_than_any_costs_nothing() -> None:
    """A Linux guest sets DF on all that its own link carries; the host fragments it."""

    def body() -> None:
        add_routes()
        with Lab(MemoryPort(max_frame=14 + 9000), mtu=9000) as lab:
            lab.guest.give(udp(bytes(8000), NARROW, 53, fragment=DF))
            lab.turn()
            assert not lab.guest.inbox
            assert lab.network.stats()["udp"]["datagrams_to_host"] == 1

    in_namespace(body)


@pytest.mark.parametrize("fragment", [0, DF])
def test_a_run_that_the_path_does_not_take(fragment: int) -> None:
    """Its datagrams go one by one: each is fragmented, or each is told; what fits arrives."""

    def body() -> None:
        add_routes()
        with Lab(MemoryPort(max_frame=14 + 65535, offload=True)) as lab:
            vnet = bytes((1, 5, 42, 0)) + (1400).to_bytes(2, "little") + bytes((34, 0, 6, 0))
            lab.guest.give(udp(bytes(2 * 1400 + 100), NARROW, 53, fragment=fragment), vnet)
            while lab.network.poll(0.05):
                pass
            frames = [f for f in lab.port.take() if f[23] == 1]
            if not fragment:
                assert not frames
                return
            assert frames
            message = Icmp(frames[0][34], frames[0][35], 0, frames[0][42:])
            assert (message.type, message.code) == (3, 4)
            assert int.from_bytes(frames[0][40:42], "big") == NARROW_MTU

    in_namespace(body)


def test_a_run_of_frames_that_has_no_route() -> None:
    def body() -> None:
        port = MemoryPort()
        port.keeps_frames = True  # type: ignore[attr-defined]
        with Lab(port) as lab:
            send_udp(lab, NO_ROUTE)
            heard(lab)
            for _ in range(10):
                send_udp(lab, NO_ROUTE)
            lab.turn(lambda: len(lab.guest.inbox) == 10)
            assert {(m.type, m.code, m.data[28:]) for m in lab.guest.icmps()} == {
                (3, 0, b"anybody?")
            }
            assert lab.network.stats()["udp"]["failed"] == 11

    in_namespace(body)


def test_a_flood_is_told_so_many_times_a_second() -> None:
    def body() -> None:
        clock = Clock()
        with Lab(clock=clock) as lab:
            for _ in range(20):
                for _ in range(50):
                    send_udp(lab, NO_ROUTE)
                lab.turn()
            assert len(lab.guest.icmps()) == ERRORS_AT_ONCE
            stats = lab.network.stats()
            assert stats["icmp"]["errors"] == ERRORS_AT_ONCE
            assert stats["icmp"]["errors_withheld"] == 1000 - ERRORS_AT_ONCE
            clock.advance(1.0)
            send_udp(lab, NO_ROUTE)
            heard(lab)

    in_namespace(body)


def test_an_outbound_address_that_is_not_the_hosts_is_told() -> None:
    def body() -> None:
        with Lab(outbound_addr="192.0.2.99") as lab:
            for send in (send_udp, send_echo, send_syn):
                send(lab, "192.0.2.1")
                message = heard(lab)
                assert (message.type, message.code) == (3, 0)

    in_namespace(body)


@pytest.mark.parametrize("failure", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize(("send", "protocol"), KINDS)
def test_what_a_filter_of_the_hosts_forbids(
    send: Callable[[Lab, str], bytes],
    protocol: int,
    failure: int,
    make_lab: MakeLab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Filtered(socket.socket):
        def forbid(self, *_: Any) -> int:
            raise OSError(failure, "filtered")

        sendto = sendmsg = send = forbid

        def connect(self, *_: Any) -> None:
            return

        def connect_ex(self, *_: Any) -> int:
            return failure

    monkeypatch.setattr(socket, "socket", Filtered)
    lab = make_lab()
    send(lab, "192.0.2.1")
    message = heard(lab)
    assert (message.type, message.code) == (3, 13)
    assert message.data[9] == protocol


def test_an_error_of_an_earlier_datagram_is_not_this_ones(make_lab: MakeLab) -> None:
    """The kernel reports ECONNREFUSED by the next send; that one goes out all the same."""
    lab = make_lab()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        deaf = holder.getsockname()[1]
        lab.guest.give(udp(b"one", GATEWAY, deaf))
        lab.network.poll(0.1)
        lab.guest.give(udp(b"two", GATEWAY, deaf))
        lab.turn(lambda: len(lab.guest.inbox) == 2)
        assert [(m.type, m.code, m.data[28:]) for m in lab.guest.icmps()] == [
            (3, 3, b"one"), (3, 3, b"two"),
        ]  # fmt: skip
    assert lab.network.stats()["udp"]["failed"] == 0
    assert lab.network.stats()["icmp"]["errors"] == 0, "these are the host's own"


def test_a_run_that_the_path_takes_arrives_as_its_datagrams() -> None:
    def body() -> None:
        with (
            Lab(MemoryPort(max_frame=14 + 65535, offload=True)) as lab,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        ):
            server.bind(("192.0.2.1", 0))
            server.settimeout(5)
            vnet = bytes((1, 5, 42, 0)) + (1400).to_bytes(2, "little") + bytes((34, 0, 6, 0))
            lab.guest.give(udp(bytes(2 * 1400 + 100), "192.0.2.1", server.getsockname()[1]), vnet)
            while lab.network.poll(0.05):
                pass
            assert [len(server.recv(65536)) for _ in range(3)] == [1400, 1400, 100]

    in_namespace(body)
