from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.icmp import (
    DEST_UNREACHABLE,
    ECHO_REQUEST,
    FRAGMENTATION_NEEDED,
    HEADER_LEN,
    IcmpHeader,
    QuotedPacket,
)
from tests.kit.oracle import attempt

REASONS = {
    ("icmp", "truncated"),
    ("icmp", "quoted packet truncated"),
    ("icmp", "quoted packet is not IPv4"),
}

SRC = bytes([10, 0, 2, 15])
DST = bytes([192, 0, 2, 1])


def quoted(ihl: int = 20, version: int = 4) -> bytes:
    """A quoted UDP packet from 1025 to 53, its total length far beyond what is quoted."""
    header = bytes([version << 4 | ihl // 4, 0, 0x7F, 0xFF]) + bytes(5) + b"\x11\0\0" + SRC + DST
    return header + bytes(max(ihl - 20, 0)) + bytes.fromhex("04010035 7feb 0000")


def test_an_echo_as_it_lies_on_the_wire() -> None:
    octets = bytes.fromhex("0800 f7a1 0042 0007") + b"data"
    header = IcmpHeader.parse(memoryview(octets))
    assert header == (ECHO_REQUEST, 0, 0xF7A1, 0x00420007)
    assert (header.ident, header.sequence) == (0x42, 7)
    assert header.emit() == octets[:8]


def test_the_mtu_of_the_next_hop() -> None:
    header = IcmpHeader.parse(bytes.fromhex("0304 0000 0000 05d4"))
    assert (header.type, header.code) == (DEST_UNREACHABLE, FRAGMENTATION_NEEDED)
    assert header.next_hop_mtu == 1492


@pytest.mark.parametrize("size", range(HEADER_LEN))
def test_a_short_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        IcmpHeader.parse(bytes(size))


@pytest.mark.parametrize("ihl", [20, 24, 60])
def test_a_quoted_packet_leads_to_its_flow(ihl: int) -> None:
    assert QuotedPacket.parse(memoryview(quoted(ihl))) == (17, SRC, DST, 1025, 53)


# error messages containing short inner packets
@pytest.mark.parametrize("ihl", [20, 60])
def test_a_quoted_packet_cut_short(ihl: int) -> None:
    for size in range(ihl + 4):
        with pytest.raises(MalformedPacket, match="quoted packet truncated"):
            QuotedPacket.parse(quoted(ihl)[:size])
    QuotedPacket.parse(quoted(ihl)[: ihl + 4])


@pytest.mark.parametrize(("ihl", "version"), [(16, 4), (0, 4), (20, 6), (20, 0)])
def test_a_quoted_packet_that_is_not_ipv4(ihl: int, version: int) -> None:
    with pytest.raises(MalformedPacket, match="not IPv4"):
        QuotedPacket.parse(quoted(ihl, version))


@given(st.binary(max_size=80))
def test_parse_raises_only_malformed_and_round_trips(octets: bytes) -> None:
    header = attempt(IcmpHeader.parse, memoryview(octets))
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
    else:
        assert header.emit() == octets[:HEADER_LEN]
    packet = attempt(QuotedPacket.parse, memoryview(octets))
    if isinstance(packet, MalformedPacket):
        assert (packet.layer, packet.reason) in REASONS
    else:
        assert packet.src == octets[12:16]
