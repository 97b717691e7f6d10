from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP

from slirp.errors import MalformedPacket
from slirp.wire.checksum import checksum
from slirp.wire.ipv4 import PROTOCOL_UDP, Ipv4Header
from tests.kit.oracle import attempt

REASONS = {
    ("ipv4", "truncated"),
    ("ipv4", "version"),
    ("ipv4", "header length below 20"),
    ("ipv4", "total length below the header's"),
    ("ipv4", "total length beyond the frame"),
    ("ipv4", "header checksum"),
}

SRC = bytes([10, 0, 2, 15])
DST = bytes([192, 0, 2, 1])
PLAIN = Ipv4Header(20, 0, 28, 0x1234, True, False, 0, 64, PROTOCOL_UDP, 0, SRC, DST)


def with_checksum(octets: bytes, ihl: int = 20) -> bytes:
    """The bytes with the checksum that their first `ihl` ask for."""
    clean = octets[:10] + b"\0\0" + octets[12:]
    return clean[:10] + checksum((memoryview(clean)[:ihl],)).to_bytes(2, "big") + clean[12:]


def test_a_header_as_others_make_it() -> None:
    octets = bytes(
        IP(src="10.0.2.15", dst="192.0.2.1", tos=0x10, id=0xBEEF, flags="DF", ttl=3, proto=17)
        / (b"x" * 8)
    )
    header = Ipv4Header.parse(memoryview(octets))
    check = int.from_bytes(octets[10:12], "big")
    assert header == (20, 0x10, 28, 0xBEEF, True, False, 0, 3, 17, check, SRC, DST, b"")
    assert header.emit() == octets[:20]
    assert not header.is_fragment


def test_options_are_kept_for_quoting() -> None:
    octets = bytes(IP(src="10.0.2.15", dst="192.0.2.1", options=[IPOption_NOP()] * 5) / b"12345678")
    header = Ipv4Header.parse(octets)
    assert header.ihl == 28
    assert header.options == b"\x01" * 5 + b"\0" * 3
    assert header.emit() == octets[:28]


def test_fragment_fields_are_octets() -> None:
    octets = PLAIN._replace(dont_fragment=False, more_fragments=True, fragment_offset=65528).emit()
    assert octets[6:8] == b"\x3f\xff"
    header = Ipv4Header.parse(octets, available=28)
    assert header.more_fragments
    assert header.fragment_offset == 65528
    assert header.is_fragment


def test_a_frame_longer_than_its_packet_has_padding() -> None:
    assert Ipv4Header.parse(PLAIN.emit() + bytes(26)).total_len == 28
    assert Ipv4Header.parse(PLAIN.emit(), available=46).total_len == 28


@pytest.mark.parametrize("size", range(20))
def test_fewer_octets_than_a_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        Ipv4Header.parse(PLAIN.emit()[:size])


@pytest.mark.parametrize("version", [0, 3, 5, 6, 15])
def test_a_version_that_belies_the_ethertype(version: int) -> None:
    octets = bytes([version << 4 | 5]) + PLAIN.emit()[1:] + bytes(8)
    with pytest.raises(MalformedPacket, match="version"):
        Ipv4Header.parse(with_checksum(octets))


@pytest.mark.parametrize("words", range(5))
def test_a_header_length_below_20(words: int) -> None:
    octets = bytes([0x40 | words]) + PLAIN.emit()[1:] + bytes(8)
    with pytest.raises(MalformedPacket, match="header length"):
        Ipv4Header.parse(with_checksum(octets))


def test_a_header_length_beyond_the_octets() -> None:
    octets = bytes([0x4F]) + PLAIN.emit()[1:] + bytes(8)
    with pytest.raises(MalformedPacket, match="truncated"):
        Ipv4Header.parse(with_checksum(octets))


def test_a_header_length_beyond_the_total_length() -> None:
    octets = bytes([0x48]) + PLAIN.emit()[1:] + bytes(12)
    with pytest.raises(MalformedPacket, match="total length below"):
        Ipv4Header.parse(with_checksum(octets, 32))


@pytest.mark.parametrize("total_len", [0, 1, 19])
def test_a_total_length_below_the_header(total_len: int) -> None:
    with pytest.raises(MalformedPacket, match="total length below"):
        Ipv4Header.parse(PLAIN._replace(total_len=total_len).emit() + bytes(40))


@pytest.mark.parametrize("total_len", [29, 0x7FFF, 0x8000, 0xFFFF])
def test_a_total_length_beyond_the_frame(total_len: int) -> None:
    with pytest.raises(MalformedPacket, match="total length beyond"):
        Ipv4Header.parse(PLAIN._replace(total_len=total_len).emit() + bytes(8))
    with pytest.raises(MalformedPacket, match="total length beyond"):
        Ipv4Header.parse(PLAIN._replace(total_len=total_len).emit(), available=28)


@pytest.mark.parametrize("bit", range(160))
def test_any_flipped_bit_of_a_header_is_seen(bit: int) -> None:
    octets = bytearray(PLAIN.emit() + bytes(8))
    octets[bit // 8] ^= 0x80 >> bit % 8
    with pytest.raises(MalformedPacket):
        Ipv4Header.parse(bytes(octets))


def test_emit_never_needs_a_second_form_of_zero() -> None:
    """Whatever the identification, also where the checksum comes out as 0."""
    zero = 0xFFFF ^ checksum((memoryview(PLAIN._replace(ident=0).emit()),))
    seen = set()
    for ident in range(zero, zero + 65536, 257):
        octets = PLAIN._replace(ident=ident & 0xFFFF).emit()
        seen.add(octets[10:12])
        assert octets == with_checksum(octets)
        Ipv4Header.parse(octets, 28)
    assert len(seen) > 200


@given(
    st.binary(max_size=70)
    | st.builds(
        lambda first, rest: with_checksum(bytes([first]) + rest, 4 * (first & 15)),
        st.integers(0x45, 0x4F),
        st.binary(min_size=59, max_size=70),
    ),
    st.none() | st.integers(0, 70000),
)
def test_parse_raises_only_malformed_and_round_trips(octets: bytes, size: int | None) -> None:
    header = attempt(Ipv4Header.parse, memoryview(octets), size)
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
    else:
        assert header.ihl == 20 + len(header.options)
        assert header.ihl <= header.total_len <= (len(octets) if size is None else size)
        clean = octets[:6] + bytes([octets[6] & 0x7F]) + octets[7:]  # the reserved bit is not kept
        assert header.emit() == with_checksum(clean[: header.ihl], header.ihl)
