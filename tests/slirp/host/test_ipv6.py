"""IPv6's sockets: options and error queue judged by the kernel, echoes by scapy."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest

from slirp.address import addr_from_text
from slirp.host.ipv6 import (
    IPV6_MTU_DISCOVER,
    IPV6_PMTUDISC_DO,
    IPV6_PMTUDISC_DONT,
    Ipv6Sockets,
)
from slirp.ip.packet import DONT_FRAGMENT
from tests.kit.need import need_ipv6

PEER = ("2001:db8::1", 53, 0, 0)
OFFENDER = addr_from_text("2001:db8::9")
FAMILY = Ipv6Sockets()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    need_ipv6()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        yield opened


@pytest.mark.parametrize("size", [8, 2000])
def test_a_closed_port_is_reported_by_who_said_so(sock: socket.socket, size: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as once:
        once.bind(("::1", 0))
        closed = once.getsockname()
    FAMILY.prepare(sock)
    sock.sendto(bytes(size), closed)
    (error,) = FAMILY.errors(sock)
    assert error.peer == closed
    assert len(error.quoted) == min(size, FAMILY.quoted_max)
    assert (error.kind, error.code, error.rest, error.mtu) == (1, 4, 0, 0)
    assert error.offender == addr_from_text("::1")
    assert FAMILY.is_closed_port(error)
    assert list(FAMILY.errors(sock)) == []
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "went with its entry"


def test_hops_and_the_flag_are_set_where_they_changed(sock: socket.socket) -> None:
    def state() -> tuple[int, int]:
        hops = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        return hops, sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)

    FAMILY.prepare(sock)
    default = state()[0]
    assert state()[1] == IPV6_PMTUDISC_DONT
    FAMILY.set_hops(sock, 7, 0)
    assert state() == (7, IPV6_PMTUDISC_DONT)
    FAMILY.set_hops(sock, 7 | DONT_FRAGMENT, 7)
    assert state() == (7, IPV6_PMTUDISC_DO)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, default)
    FAMILY.set_hops(sock, 7, 7 | DONT_FRAGMENT)
    assert state() == (default, IPV6_PMTUDISC_DONT), "the hop limit had not changed"


def test_the_outbound_address(sock: socket.socket) -> None:
    Ipv6Sockets().leave(sock)
    assert sock.getsockname()[:2] == ("::", 0)
    Ipv6Sockets(addr_from_text("::1")).leave(sock)
    assert sock.getsockname()[0] == "::1"


def extended(number: int, origin: int, kind: int, code: int, info: int, offender: bytes) -> bytes:
    """struct sock_extended_err, and the sockaddr_in6 behind it."""
    return struct.pack("=IBBBxIIH6x16s4x", number, origin, kind, code, info, 0, 10, offender)


def test_what_the_host_finds_too_long_tells_the_paths_mtu() -> None:
    error = FAMILY.parse_error(PEER, b"x", extended(errno.EMSGSIZE, 1, 0, 0, 1400, bytes(16)))
    assert (error.mtu, error.kind, error.offender) == (1400, -1, None)


def test_the_next_hops_mtu_is_passed_on() -> None:
    error = FAMILY.parse_error(PEER, b"x", extended(errno.EMSGSIZE, 3, 2, 0, 1400, OFFENDER))
    assert error == (PEER, b"x", 0, 2, 0, 1400, OFFENDER)


def test_an_offender_that_the_kernel_does_not_name() -> None:
    error = FAMILY.parse_error(PEER, b"x", extended(errno.EHOSTUNREACH, 3, 1, 3, 77, bytes(16)))
    assert (error.kind, error.code, error.rest, error.offender) == (1, 3, 0, None)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=64))
def test_an_echo_request_as_scapy_has_it(rest: int, payload: bytes) -> None:
    message = ICMPv6EchoRequest(FAMILY.echo_request(rest, payload))
    assert (message.type, message.id << 16 | message.seq) == (128, rest)
    assert bytes(message.data) == payload


@given(st.integers(0, 65535), st.binary(max_size=64), st.booleans())
def test_an_echo_reply(ident: int, payload: bytes, raw: bool) -> None:
    reply = bytes(ICMPv6EchoReply(id=ident, seq=3, data=payload, cksum=0))
    assert FAMILY.echo_reply(reply, raw) == (ident << 16 | 3, payload)


@pytest.mark.parametrize("data", [b"\0", bytes(7), bytes(ICMPv6EchoRequest(cksum=0)), bytes(8)])
def test_what_is_no_echo_reply(data: bytes) -> None:
    assert FAMILY.echo_reply(data, raw=False) is None


def test_a_raw_socket_takes_echo_replies_only() -> None:
    need_ipv6()
    try:
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    except PermissionError:
        pytest.skip("raw sockets are root's")
    with raw:
        FAMILY.filter_echoes(raw)
        raw.settimeout(5)
        raw.connect(("::1", 0, 0, 0))
        raw.send(FAMILY.echo_request(0x12340001, b"hello"))
        assert FAMILY.echo_reply(raw.recv(2000), raw=True) == (0x12340001, b"hello")
        raw.setblocking(False)
        with pytest.raises(BlockingIOError):
            raw.recv(2000)  # the request, which it would see otherwise, came before the reply
