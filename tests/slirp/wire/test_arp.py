from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.arp import PACKET_LEN, REPLY, REQUEST, ArpPacket
from tests.kit.oracle import attempt

REASONS = {
    ("arp", "truncated"),
    ("arp", "not IPv4 over Ethernet"),
    ("arp", "sender is a group address"),
}

GUEST_MAC = bytes.fromhex("080020010203")
GUEST = bytes([10, 0, 2, 15])
GATEWAY = bytes([10, 0, 2, 2])
WHO_HAS = bytes.fromhex("0001080006040001 080020010203 0a00020f 000000000000 0a000202")


def test_a_request_as_it_lies_on_the_wire() -> None:
    packet = ArpPacket.parse(memoryview(WHO_HAS + bytes(18)))
    assert packet == (REQUEST, GUEST_MAC, GUEST, bytes(6), GATEWAY)
    assert packet.emit() == WHO_HAS


def test_a_reply_as_it_lies_on_the_wire() -> None:
    octets = ArpPacket(REPLY, GUEST_MAC, GUEST, GUEST_MAC, GATEWAY).emit()
    assert octets.hex() == "0001080006040002080020010203 0a00020f 080020010203 0a000202".replace(
        " ", ""
    )


# CVE-2020-29130
@pytest.mark.parametrize("size", range(PACKET_LEN))
def test_a_short_packet(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        ArpPacket.parse(WHO_HAS[:size])


@pytest.mark.parametrize(
    ("offset", "value"),
    [(1, 6), (1, 0), (2, 0x86), (4, 0), (4, 7), (4, 255), (5, 0), (5, 16), (5, 255)],
)
def test_anything_but_ipv4_over_ethernet(offset: int, value: int) -> None:
    octets = bytearray(WHO_HAS)
    octets[offset] = value
    with pytest.raises(MalformedPacket, match="not IPv4 over Ethernet"):
        ArpPacket.parse(bytes(octets))


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001", "333300000001"])
def test_a_sender_that_is_a_group(mac: str) -> None:
    octets = WHO_HAS[:8] + bytes.fromhex(mac) + WHO_HAS[14:]
    with pytest.raises(MalformedPacket, match="group"):
        ArpPacket.parse(bytes(octets))


@given(
    st.one_of(st.binary(max_size=60), st.binary(min_size=20, max_size=30).map(WHO_HAS[:8].__add__))
)
def test_parse_raises_only_malformed_and_round_trips(octets: bytes) -> None:
    packet = attempt(ArpPacket.parse, memoryview(octets))
    if isinstance(packet, MalformedPacket):
        assert (packet.layer, packet.reason) in REASONS
    else:
        assert packet.emit() == octets[:PACKET_LEN]
