from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.address import (
    LIMITED_BROADCAST,
    UNSPECIFIED_V4,
    UNSPECIFIED_V6,
    Endpoint,
    Prefix,
    addr_from_text,
    addr_to_ipaddress,
    addr_to_text,
    family,
    is_host,
    is_link_local,
    is_loopback,
    is_multicast,
    is_reserved,
    is_unspecified,
    mac_from_text,
    mac_to_text,
    unmapped,
)

ADDRS = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(ADDRS)
def test_text_and_octets_agree_with_ipaddress(addr: bytes) -> None:
    theirs = ipaddress.ip_address(addr)
    assert addr_from_text(addr_to_text(addr)) == addr
    assert addr_to_ipaddress(addr) == theirs == ipaddress.ip_address(addr_to_text(addr))
    assert is_loopback(addr) == theirs.is_loopback
    assert is_multicast(addr) == theirs.is_multicast
    assert is_link_local(addr) == theirs.is_link_local
    assert is_unspecified(addr) == theirs.is_unspecified


@pytest.mark.parametrize("text", ["", "10.0.2", "10.0.2.256", "host", "::g", "1::2::3", "[::1]"])
def test_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        addr_from_text(text)


def test_an_endpoint_of_either_family_makes_a_sockaddr() -> None:
    v4 = Endpoint(bytes([10, 0, 2, 15]), 80)
    v6 = Endpoint(addr_from_text("fe80::1"), 443)
    assert v4.to_sockaddr() == ("10.0.2.15", 80)
    assert v6.to_sockaddr(scope_id=3) == ("fe80::1", 443, 0, 3)
    assert (str(v4), str(v6)) == ("10.0.2.15:80", "[fe80::1]:443")
    assert family(v4.addr) is socket.AF_INET
    assert family(v6.addr) is socket.AF_INET6


@given(ADDRS, st.integers(0, 65535))
def test_a_sockaddr_leads_back_to_its_endpoint(addr: bytes, port: int) -> None:
    endpoint = Endpoint(addr, port)
    assert Endpoint.from_sockaddr(endpoint.to_sockaddr()) == (unmapped(addr), port)


def test_ipv4_inside_ipv6_and_scopes() -> None:
    assert Endpoint.from_sockaddr(("::ffff:192.0.2.7", 53, 0, 0)) == (bytes([192, 0, 2, 7]), 53)
    assert Endpoint.from_sockaddr(("fe80::2%eth0", 53, 0, 2)).addr == addr_from_text("fe80::2")
    assert unmapped(addr_from_text("::7f00:1")) == addr_from_text("::7f00:1")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("10.0.2.15", True), ("223.255.255.255", True), ("169.254.1.1", True), ("1.0.0.1", True),
        ("0.0.0.0", False), ("0.1.2.3", False), ("127.0.0.1", False), ("224.0.0.1", False),
        ("240.0.0.1", False), ("255.255.255.255", False),
        ("2001:db8::1", True), ("fe80::1", True),
        ("::", False), ("::1", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_who_can_be_a_source(text: str, host: bool) -> None:
    assert is_host(addr_from_text(text)) is host


def test_constants() -> None:
    assert addr_to_text(UNSPECIFIED_V4) == "0.0.0.0"
    assert addr_to_text(UNSPECIFIED_V6) == "::"
    assert is_reserved(LIMITED_BROADCAST)
    assert not is_reserved(addr_from_text("239.255.255.255"))
    assert not is_reserved(addr_from_text("fff0::"))


@given(st.binary(min_size=6, max_size=6))
def test_macs(mac: bytes) -> None:
    text = mac_to_text(mac)
    assert mac_from_text(text) == mac_from_text(text.replace(":", "-").upper()) == mac


@pytest.mark.parametrize(
    "text", ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3:4:5:g", "001:2:3:4:5:6", "1:2:3::5:6"]
)
def test_text_that_is_no_mac(text: str) -> None:
    with pytest.raises(ValueError, match="not a MAC"):
        mac_from_text(text)


@pytest.mark.parametrize("text", ["10.0.2.0/24", "0.0.0.0/0", "192.0.2.1/32", "fd00::/64"])
def test_a_prefix_is_what_ipaddress_says(text: str) -> None:
    prefix, network = Prefix.from_text(text), ipaddress.ip_network(text)
    assert str(prefix) == text
    assert prefix.mask == network.netmask.packed
    assert prefix.last == network.broadcast_address.packed
    assert prefix.size == network.num_addresses
    assert prefix.covers(prefix.last)


def test_a_prefix_by_its_netmask() -> None:
    assert Prefix.from_text("10.0.2.0/255.255.255.0") == Prefix.from_text("10.0.2.0/24")


@pytest.mark.parametrize(
    "text", ["10.0.2.1/24", "10.0.2.0/33", "10.0.2.0/", "10.0.2.0/-1", "10/8", "x", "fd00::1/64"]
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=r"bits|not an IP"):
        Prefix.from_text(text)


def test_which_prefixes_have_an_address_in_common() -> None:
    ten = Prefix.from_text("10.0.0.0/8")
    assert ten.overlaps(Prefix.from_text("10.2.0.0/16"))
    assert Prefix.from_text("0.0.0.0/0").overlaps(ten)
    assert not ten.overlaps(Prefix.from_text("11.0.0.0/8"))
    assert not ten.overlaps(Prefix.from_text("::/0"))
    assert not ten.has_host(ten.addr)
    assert not ten.has_host(ten.last)
    assert ten.has_host(ten.host(1))
