from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.udp import HEADER_LEN, UdpHeader
from tests.kit.oracle import attempt

REASONS = {
    ("udp", "truncated"),
    ("udp", "length below the header's"),
    ("udp", "length beyond the packet"),
    ("udp", "port 0"),
}


def test_a_header_as_it_lies_on_the_wire() -> None:
    octets = bytes.fromhex("c0de 0035 000c 1234") + b"abcd"
    assert UdpHeader.parse(memoryview(octets)) == (0xC0DE, 53, 12, 0x1234)
    assert UdpHeader(0xC0DE, 53, 12, 0x1234).emit() == octets[:8]


# CVE-2021-3594
@pytest.mark.parametrize("size", range(HEADER_LEN))
def test_fewer_octets_than_a_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        UdpHeader.parse(UdpHeader(1, 2, 8, 0).emit()[:size])


@pytest.mark.parametrize("length", range(HEADER_LEN))
def test_a_length_that_does_not_cover_the_header(length: int) -> None:
    with pytest.raises(MalformedPacket, match="length below"):
        UdpHeader.parse(UdpHeader(1, 2, length, 0).emit() + bytes(100))


@pytest.mark.parametrize(("length", "available"), [(9, 8), (1480, 1479), (65535, 100)])
def test_a_length_beyond_the_packet(length: int, available: int) -> None:
    with pytest.raises(MalformedPacket, match="length beyond"):
        UdpHeader.parse(UdpHeader(1, 2, length, 0).emit(), available)


def test_an_empty_datagram_and_octets_after_the_datagram_are_lawful() -> None:
    assert UdpHeader.parse(UdpHeader(1, 2, 8, 0).emit()).length == 8
    assert UdpHeader.parse(UdpHeader(1, 2, 8, 0).emit(), available=1480).length == 8


# CVE-2014-3640, and the destination port that aborted another stack in 2024
@pytest.mark.parametrize(("src_port", "dst_port"), [(0, 53), (53, 0), (0, 0)])
def test_port_0(src_port: int, dst_port: int) -> None:
    with pytest.raises(MalformedPacket, match="port 0"):
        UdpHeader.parse(UdpHeader(src_port, dst_port, 8, 0).emit())


@given(st.binary(max_size=40), st.none() | st.integers(0, 70000))
def test_parse_raises_only_malformed_and_round_trips(octets: bytes, available: int | None) -> None:
    header = attempt(UdpHeader.parse, memoryview(octets), available)
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
    else:
        assert header.emit() == octets[:HEADER_LEN]
        assert 8 <= header.length <= (len(octets) if available is None else available)
