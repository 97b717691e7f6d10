"""Where a datagram was sent to, and an answer from there: read and written, and by the kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from slirp.host import pktinfo
from tests.kit.guest import addr

ANY4, ANY6 = "0.0.0.0", "::"


def told4(interface: int, local: str, header: str) -> pktinfo.Control:
    data = struct.pack("=i4s4s", interface, addr(local), addr(header))
    return [(socket.IPPROTO_IP, pktinfo.IP_PKTINFO, data)]


def told6(address: str, interface: int) -> pktinfo.Control:
    packed = socket.inet_pton(socket.AF_INET6, address)
    return [(socket.IPPROTO_IPV6, pktinfo.IPV6_PKTINFO, packed + struct.pack("=i", interface))]


def test_the_interface_is_left_to_routing() -> None:
    info = pktinfo.INFO4
    asked = info.asked(told4(3, "192.0.2.1", "192.0.2.1"))
    assert asked == info.asked(told4(4, "192.0.2.1", "192.0.2.1"))
    assert list(info.source(asked)) == told4(0, "192.0.2.1", ANY4)
    info = pktinfo.INFO6
    asked = info.asked(told6("2001:db8::1", 3))
    assert asked == info.asked(told6("2001:db8::1", 4))
    assert list(info.source(asked)) == told6("2001:db8::1", 0)


def test_but_for_link_local_addresses() -> None:
    info = pktinfo.INFO4
    asked = info.asked(told4(3, "169.254.7.7", "169.254.7.7"))
    assert asked != info.asked(told4(4, "169.254.7.7", "169.254.7.7"))
    assert list(info.source(asked)) == told4(3, "169.254.7.7", ANY4)
    info = pktinfo.INFO6
    asked = info.asked(told6("fe80::1", 3))
    assert asked != info.asked(told6("fe80::1", 4))
    assert list(info.source(asked)) == told6("fe80::1", 3)


def test_a_broadcast_is_answered_from_the_address_that_the_kernel_names() -> None:
    asked = pktinfo.INFO4.asked(told4(3, "192.0.2.1", "192.0.2.255"))
    assert list(pktinfo.INFO4.source(asked)) == told4(0, "192.0.2.1", ANY4)


def test_a_group_is_no_source() -> None:
    asked = pktinfo.INFO6.asked(told6("ff02::1", 3))
    assert pktinfo.INFO6.source(asked) == ()


def test_nothing_told_is_nothing_said() -> None:
    for info in (pktinfo.NONE, pktinfo.INFO4, pktinfo.INFO6):
        assert info.asked([(socket.SOL_SOCKET, 29, b"timestamp")]) == b""
        assert info.asked([]) == b""
        assert info.source(b"") == ()


@pytest.mark.parametrize(
    ("bound", "asked", "info"),
    [
        (ANY4, "127.0.0.9", pktinfo.INFO4),
        (ANY6, "::1", pktinfo.INFO6),
        ("127.0.0.9", "127.0.0.9", pktinfo.NONE),
    ],
)
def test_the_kernel_tells_and_obeys(bound: str, asked: str, info: pktinfo.PacketInfo) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((bound, 0))
        server.settimeout(5)
        client.settimeout(5)
        assert pktinfo.enable(server) is info
        client.connect((asked, server.getsockname()[1]))  # takes an answer from nobody else
        client.send(b"question")
        data, control, _, peer = server.recvmsg(100, info.room)
        server.sendmsg([data], info.source(info.asked(control)), 0, peer)
        assert client.recv(100) == b"question"
