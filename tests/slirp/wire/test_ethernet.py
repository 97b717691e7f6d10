from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.ethernet import (
    BROADCAST,
    ETHERTYPE_ARP,
    HEADER_LEN,
    MIN_FRAME,
    EthernetHeader,
    check_length,
    is_group,
    padding,
)
from tests.kit.oracle import attempt

REASONS = {
    ("ethernet", "truncated"),
    ("ethernet", "source is a group address"),
}

DST = bytes.fromhex("525500000202")
SRC = bytes.fromhex("080020010203")


def test_a_header_as_it_lies_on_the_wire() -> None:
    frame = DST + SRC + b"\x08\x06" + b"payload"
    assert EthernetHeader.parse(frame) == (DST, SRC, ETHERTYPE_ARP)
    assert EthernetHeader.parse(memoryview(frame)).emit() == frame[:14]


@given(st.binary(max_size=20))
def test_parse_raises_only_malformed_and_round_trips(octets: bytes) -> None:
    header = attempt(EthernetHeader.parse, memoryview(octets))
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
        assert len(octets) < HEADER_LEN or octets[6] & 1
    else:
        assert header.emit() == octets[:HEADER_LEN]


@pytest.mark.parametrize("size", range(HEADER_LEN))
def test_runts_are_refused(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        EthernetHeader.parse(bytes(size))


@pytest.mark.parametrize("src", [BROADCAST, bytes.fromhex("01005e000001")])
def test_nobody_is_a_group(src: bytes) -> None:
    with pytest.raises(MalformedPacket, match="group"):
        EthernetHeader.parse(DST + src + b"\x08\x00")
    assert is_group(src)
    assert not is_group(SRC)


# CVE-2020-29129: an NC-SI frame too short for its own header
@pytest.mark.parametrize("size", range(14, 31))
def test_a_short_frame_of_a_type_that_nobody_serves(size: int) -> None:
    frame = (DST + SRC + b"\x88\xf8").ljust(size, b"\0")
    assert EthernetHeader.parse(frame).ethertype == 0x88F8


# CVE-2007-5729, and the off-by-one of 2011: frames at and beyond the link's limit; sizes that are
# negative as 32-bit integers (CVE-2007-1321, CVE-2018-17963)
@pytest.mark.parametrize("size", [1515, 1516, 65535, 65536, 131072, 1 << 31, (1 << 32) - 1])
def test_a_frame_longer_than_the_link_carries(size: int) -> None:
    with pytest.raises(MalformedPacket, match="longer"):
        check_length(size, 1514)


@pytest.mark.parametrize("mtu", [68, 1500, 65521])
def test_the_limit_itself_is_lawful(mtu: int) -> None:
    check_length(mtu + 13, mtu + 14)
    check_length(mtu + 14, mtu + 14)
    with pytest.raises(MalformedPacket, match="longer"):
        check_length(mtu + 15, mtu + 14)
    with pytest.raises(MalformedPacket, match="truncated"):
        check_length(13, mtu + 14)


@pytest.mark.parametrize(("size", "missing"), [(0, 60), (42, 18), (59, 1), (60, 0), (1514, 0)])
def test_padding_fills_a_frame_to_the_minimum(size: int, missing: int) -> None:
    assert bytes(padding(size)) == bytes(missing)
    assert size + len(padding(size)) >= MIN_FRAME
