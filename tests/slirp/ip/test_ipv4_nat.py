"""Where a guest's packets go, and as whom the host's peers appear."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp import flow
from slirp.config import Config
from slirp.flow import Refusal
from slirp.ip.ipv4_nat import LOOPBACK4, Nat4

PREFIX = ipaddress.IPv4Network("10.0.2.0/24")
GATEWAY = bytes((10, 0, 2, 2))
DNS = bytes((10, 0, 2, 3))


def nat(*, host_loopback: bool = True, restrict: bool = False) -> Nat4:
    return Nat4(Config(host_loopback=host_loopback, restrict=restrict))


def packed(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


@pytest.mark.parametrize(
    ("dst", "plain", "no_loopback", "restricted"),
    [
        ("10.0.2.2", LOOPBACK4, flow.NO_LOOPBACK, flow.RESTRICTED),
        ("10.0.2.3", flow.NO_SERVICE, flow.NO_SERVICE, flow.NO_SERVICE),
        ("10.0.2.15", flow.NOT_ROUTED, flow.NOT_ROUTED, flow.NOT_ROUTED),
        ("10.0.2.0", flow.NOT_ROUTED, flow.NOT_ROUTED, flow.NOT_ROUTED),
        ("10.0.2.255", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("255.255.255.255", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("0.0.0.0", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("0.1.2.3", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("127.0.0.1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("127.255.255.255", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("224.0.0.1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("240.0.0.1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("10.0.3.2", packed("10.0.3.2"), packed("10.0.3.2"), flow.RESTRICTED),
        ("192.0.2.1", packed("192.0.2.1"), packed("192.0.2.1"), flow.RESTRICTED),
        ("223.255.255.255", packed("223.255.255.255"), packed("223.255.255.255"), flow.RESTRICTED),
    ],
)
def test_outward(
    dst: str, plain: bytes | Refusal, no_loopback: bytes | Refusal, restricted: bytes | Refusal
) -> None:
    addr = packed(dst)
    assert nat().outward(addr) == plain
    assert nat(host_loopback=False).outward(addr) == no_loopback
    assert nat(restrict=True).outward(addr) == restricted


@given(st.binary(min_size=4, max_size=4))
def test_the_hosts_loopback_has_one_way_in(dst: bytes) -> None:
    """No destination but the gateway's address leads to 127.0.0.0/8."""
    found = nat().outward(dst)
    assert isinstance(found, Refusal) or found[0] != 127 or dst == GATEWAY
    assert nat(host_loopback=False).outward(dst) != LOOPBACK4
    assert isinstance(nat(restrict=True).outward(dst), Refusal)


@given(st.binary(min_size=4, max_size=4))
def test_inward_never_shows_an_address_of_the_network(peer: bytes) -> None:
    seen = nat().inward(peer)
    assert seen == GATEWAY or (seen == peer and ipaddress.IPv4Address(seen) not in PREFIX)
    if ipaddress.IPv4Address(peer).is_loopback:
        assert seen == GATEWAY
