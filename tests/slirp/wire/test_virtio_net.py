from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.virtio_net import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_UDP_L4,
    HEADER_LEN,
    NEEDS_CSUM,
    VnetHeader,
)
from tests.kit.oracle import attempt

REASONS = {
    ("virtio-net", "truncated"),
    ("virtio-net", "unknown segmentation"),
    ("virtio-net", "segments of no bytes"),
    ("virtio-net", "checksum beyond the frame"),
}


def test_a_header_as_a_tap_device_gives_it() -> None:
    octets = bytes.fromhex("01 01 4200 a805 2200 1000")
    assert VnetHeader.parse(memoryview(octets)) == (NEEDS_CSUM, GSO_TCPV4, 66, 1448, 34, 16)
    assert VnetHeader(NEEDS_CSUM, GSO_TCPV4, 66, 1448, 34, 16).emit() == octets


def test_no_offload_is_ten_zeros() -> None:
    assert VnetHeader(0, GSO_NONE, 0, 0, 0, 0).emit() == bytes(HEADER_LEN)


@pytest.mark.parametrize("size", range(HEADER_LEN))
def test_a_short_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        VnetHeader.parse(bytes(size))


@pytest.mark.parametrize("gso_type", [2, 6, 0x7F, 0xFE])
def test_an_unknown_segmentation(gso_type: int) -> None:
    with pytest.raises(MalformedPacket, match="unknown"):
        VnetHeader.parse(VnetHeader(0, gso_type, 0, 1, 0, 0).emit())


def test_segments_of_no_octets_would_be_endless() -> None:
    for gso_type in (GSO_TCPV4, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN):
        with pytest.raises(MalformedPacket, match="no bytes"):
            VnetHeader.parse(VnetHeader(0, gso_type, 54, 0, 0, 0).emit())


@pytest.mark.parametrize(("start", "offset"), [(59, 0), (34, 25), (65535, 65535), (0, 59)])
def test_a_checksum_field_beyond_the_frame(start: int, offset: int) -> None:
    octets = VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, start, offset).emit()
    with pytest.raises(MalformedPacket, match="beyond"):
        VnetHeader.parse(octets, frame_len=60)
    VnetHeader.parse(octets)


def test_a_checksum_field_at_the_end_of_the_frame() -> None:
    VnetHeader.parse(VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 42, 16).emit(), frame_len=60)


@given(st.binary(max_size=16), st.none() | st.integers(0, 70000))
def test_parse_raises_only_malformed_and_round_trips(octets: bytes, size: int | None) -> None:
    header = attempt(VnetHeader.parse, memoryview(octets), size)
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
    else:
        assert header.emit() == octets[:HEADER_LEN]
