from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPREF64,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
)

from slirp.errors import MalformedPacket
from slirp.wire import ndp
from slirp.wire.icmpv6 import NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, Icmpv6Header
from slirp.wire.ndp import NeighbourMessage, RouterAdvertisement, RouterSolicitation
from tests.kit.oracle import attempt

MAC = bytes.fromhex("525400123456")
TARGET = bytes.fromhex("fd000000000000000000000000000015")
REASONS = {
    "hop limit", "truncated", "code", "type", "target is a group address", "option length",
    "link-layer address is a group address", "too many options",
}  # fmt: skip


def solicitation(*options: bytes) -> bytes:
    return bytes(ICMPv6ND_NS(tgt="fd00::15", cksum=0)) + b"".join(options)


def test_a_solicitation_as_scapy_writes_it() -> None:
    octets = solicitation(bytes(ICMPv6NDOptSrcLLAddr(lladdr="52:54:00:12:34:56")))
    message = NeighbourMessage.parse(octets, 255)
    assert message == NeighbourMessage(NEIGHBOUR_SOLICITATION, 0, TARGET, MAC)
    assert message.emit() == octets


def test_an_advertisement_as_scapy_reads_it() -> None:
    flags = ndp.ROUTER | ndp.SOLICITED | ndp.OVERRIDE
    message = NeighbourMessage(NEIGHBOUR_ADVERTISEMENT, flags, TARGET, MAC)
    read = ICMPv6ND_NA(message.emit())
    assert (read.R, read.S, read.O, read.tgt) == (1, 1, 1, "fd00::15")
    assert read[ICMPv6NDOptDstLLAddr].lladdr == "52:54:00:12:34:56"
    assert NeighbourMessage.parse(message.emit(), 255) == message


def test_duplicate_address_detection_has_no_link_address() -> None:
    assert NeighbourMessage.parse(solicitation(), 255).link_addr is None


def test_a_router_solicitation() -> None:
    octets = bytes(ICMPv6ND_RS(cksum=0))
    assert RouterSolicitation.parse(octets, 255).link_addr is None
    octets += bytes(ICMPv6NDOptSrcLLAddr(lladdr="52:54:00:12:34:56"))
    assert RouterSolicitation.parse(octets, 255).link_addr == MAC
    with pytest.raises(MalformedPacket, match="type"):
        RouterSolicitation.parse(solicitation(), 255)


def test_a_router_advertisement_as_scapy_reads_it() -> None:
    prefix = bytes.fromhex("fd000000000000000000000000000000")
    nat64 = bytes.fromhex("0064ff9b") + bytes(12)
    octets = RouterAdvertisement(64, ndp.OTHER, 1800).emit(
        (
            ndp.prefix_option(prefix, 64, ndp.ON_LINK | ndp.AUTONOMOUS, 86400, 14400),
            ndp.mtu_option(1500),
            ndp.rdnss_option([prefix[:15] + b"\x03"], 1800),
            ndp.dnssl_option(b"\x05slirp\x08internal\0", 1800),
            ndp.pref64_option(nat64, 96, 1800),
            ndp.link_option(ndp.SOURCE_LINK_ADDR, MAC),
        )
    )
    read = ICMPv6ND_RA(octets)
    assert (read.chlim, read.M, read.O, read.routerlifetime) == (64, 0, 1, 1800)
    info = read[ICMPv6NDOptPrefixInfo]
    assert (info.prefix, info.prefixlen, info.L, info.A) == ("fd00::", 64, 1, 1)
    assert (info.validlifetime, info.preferredlifetime) == (86400, 14400)
    assert read[ICMPv6NDOptMTU].mtu == 1500
    assert read[ICMPv6NDOptRDNSS].dns == ["fd00::3"]
    assert read[ICMPv6NDOptDNSSL].searchlist == ["slirp.internal."]
    pref64 = read[ICMPv6NDOptPREF64]
    assert (pref64.scaledlifetime, pref64.plc, pref64.prefix) == (225, 0, "64:ff9b::")
    assert read[ICMPv6NDOptSrcLLAddr].lladdr == "52:54:00:12:34:56"


@pytest.mark.parametrize("hop_limit", [0, 1, 64, 254])
def test_what_came_over_a_router_is_not_believed(hop_limit: int) -> None:
    with pytest.raises(MalformedPacket, match="hop limit"):
        NeighbourMessage.parse(solicitation(), hop_limit)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (bytes([1, 0]) + MAC, "option length"),  # would be read for ever
        (bytes([1, 2]) + MAC, "option length"),
        (bytes([1]), "option length"),
        (bytes([1, 1]) + b"\x01" + MAC[1:], "group address"),
        ((bytes([14, 1]) + bytes(6)) * 33, "too many options"),
    ],
)
def test_options_that_lead_nowhere(options: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        NeighbourMessage.parse(solicitation(options), 255)


def test_unknown_options_are_passed_over() -> None:
    octets = solicitation(bytes([14, 1]) + bytes(6), ndp.link_option(1, MAC))
    assert NeighbourMessage.parse(octets, 255).link_addr == MAC


def test_a_group_as_target() -> None:
    octets = bytes(ICMPv6ND_NS(tgt="ff02::1", cksum=0))
    with pytest.raises(MalformedPacket, match="target is a group"):
        NeighbourMessage.parse(octets, 255)


@given(st.sampled_from([133, 134, 135, 136, 137]), st.binary(max_size=120))
def test_parse_raises_only_malformed(kind: int, rest: bytes) -> None:
    octets = bytes([kind, 0]) + rest
    for parse in (NeighbourMessage.parse, RouterSolicitation.parse):
        found = attempt(lambda view, parse=parse: parse(view, 255), octets)
        if isinstance(found, MalformedPacket):
            assert (found.layer, found.reason in REASONS) == ("ndp", True)


@given(st.binary(max_size=20))
def test_a_header_raises_only_malformed_and_round_trips(octets: bytes) -> None:
    header = attempt(Icmpv6Header.parse, octets)
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) == ("icmpv6", "truncated")
    else:
        assert header.emit() == octets[:8]
