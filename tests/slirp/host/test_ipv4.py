"""IPv4's sockets: options and error queue judged by the kernel, echoes by scapy."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP

from slirp.host.ipv4 import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    Ipv4Sockets,
)
from slirp.ip.packet import DONT_FRAGMENT

PEER = ("192.0.2.1", 53)
FAMILY = Ipv4Sockets()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        yield opened


def test_a_closed_port_is_reported_by_who_said_so(sock: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as once:
        once.bind(("127.0.0.1", 0))
        closed = once.getsockname()
    FAMILY.prepare(sock)
    sock.sendto(b"anybody?", closed)
    (error,) = FAMILY.errors(sock)
    assert (error.peer, error.quoted) == (closed, b"anybody?")
    assert (error.kind, error.code, error.rest, error.mtu) == (3, 3, 0, 0)
    assert error.offender == bytes((127, 0, 0, 1))
    assert list(FAMILY.errors(sock)) == []
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "went with its entry"


def test_hops_and_the_flag_are_set_where_they_changed(sock: socket.socket) -> None:
    def state() -> tuple[int, int]:
        ttl = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
        return ttl, sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER)

    FAMILY.prepare(sock)
    default = state()[0]
    assert state()[1] == IP_PMTUDISC_DONT
    FAMILY.set_hops(sock, 7, 0)
    assert state() == (7, IP_PMTUDISC_DONT)
    FAMILY.set_hops(sock, 7 | DONT_FRAGMENT, 7)
    assert state() == (7, IP_PMTUDISC_DO)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, default)
    FAMILY.set_hops(sock, 7, 7 | DONT_FRAGMENT)
    assert state() == (default, IP_PMTUDISC_DONT), "the hop limit had not changed"


def test_the_outbound_address(sock: socket.socket) -> None:
    Ipv4Sockets().leave(sock)
    assert sock.getsockname() == ("0.0.0.0", 0)
    Ipv4Sockets(bytes((127, 0, 0, 9))).leave(sock)
    assert sock.getsockname()[0] == "127.0.0.9"


def extended(number: int, origin: int, kind: int, code: int, info: int, offender: bytes) -> bytes:
    """struct sock_extended_err, and the sockaddr_in behind it."""
    return struct.pack("=IBBBxIIH2x4s8x", number, origin, kind, code, info, 0, 2, offender)


def test_what_the_host_finds_too_long_tells_the_paths_mtu() -> None:
    error = FAMILY.parse_error(PEER, b"x", extended(errno.EMSGSIZE, 1, 0, 0, 1400, bytes(4)))
    assert (error.mtu, error.kind, error.offender) == (1400, -1, None)


def test_the_next_hops_mtu_is_passed_on() -> None:
    error = FAMILY.parse_error(
        PEER, b"x", extended(errno.EMSGSIZE, 2, 3, 4, 1400, bytes((192, 0, 2, 9)))
    )
    assert error == (PEER, b"x", 0, 3, 4, 1400, bytes((192, 0, 2, 9)))


def test_an_offender_that_the_kernel_does_not_name() -> None:
    error = FAMILY.parse_error(PEER, b"x", extended(errno.EHOSTUNREACH, 2, 3, 1, 77, bytes(4)))
    assert (error.kind, error.code, error.rest, error.offender) == (3, 1, 0, None)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=64))
def test_an_echo_request_as_scapy_has_it(rest: int, payload: bytes) -> None:
    octets = FAMILY.echo_request(rest, payload)
    message = ICMP(octets)
    assert (message.type, message.id << 16 | message.seq) == (8, rest)
    assert bytes(message.payload) == payload
    del message.chksum
    assert bytes(message) == octets


@given(st.integers(0, 65535), st.binary(max_size=64))
def test_an_echo_reply_with_and_without_its_ip_header(ident: int, payload: bytes) -> None:
    reply = ICMP(type=0, id=ident, seq=3) / payload
    assert FAMILY.echo_reply(bytes(reply), raw=False) == (ident << 16 | 3, payload)
    assert FAMILY.echo_reply(bytes(IP() / reply), raw=True) == (ident << 16 | 3, payload)


@pytest.mark.parametrize("data", [b"\0", bytes(7), bytes(ICMP(type=8)), bytes(ICMP(type=3))])
def test_what_is_no_echo_reply(data: bytes) -> None:
    assert FAMILY.echo_reply(data, raw=False) is None
