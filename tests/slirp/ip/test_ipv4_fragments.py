from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from slirp.ip.ipv4_fragments import MIN_MTU, fragment
from slirp.wire.ipv4 import MAX_PACKET, PROTOCOL_UDP, Ipv4Header
from tests.kit.cuts import cuts

SRC = bytes([192, 0, 2, 1])
DST = bytes([10, 0, 2, 15])
HEADER = Ipv4Header(20, 0, 0, 0xCAFE, False, False, 0, 64, PROTOCOL_UDP, 0, SRC, DST)


def test_a_datagram_that_fits_is_one_packet() -> None:
    payload = IoVec.of(bytes(1480))
    [(octets, body)] = fragment(HEADER, payload, 1500)
    header = Ipv4Header.parse(octets, 1500)
    assert (header.total_len, header.is_fragment) == (1500, False)
    assert body.segments[0].obj is payload.segments[0].obj  # views, no copies


def test_one_octet_more_makes_two() -> None:
    first, second = fragment(HEADER, IoVec.of(bytes(1481)), 1500)
    a = Ipv4Header.parse(first[0], 1500)
    b = Ipv4Header.parse(second[0], 21)
    assert (a.total_len, a.fragment_offset, a.more_fragments) == (1500, 0, True)
    assert (b.total_len, b.fragment_offset, b.more_fragments) == (21, 1480, False)
    assert a.ident == b.ident == 0xCAFE


def test_an_empty_payload_is_a_packet_too() -> None:
    [(octets, body)] = fragment(HEADER, IoVec(), MIN_MTU)
    assert Ipv4Header.parse(octets).total_len == 20
    assert len(body) == 0


@given(cuts(max_size=3000), st.integers(MIN_MTU, 1500))
def test_fragments_fit_and_cover_the_payload(data: tuple[bytes, IoVec], mtu: int) -> None:
    flat, payload = data
    packets = fragment(HEADER, payload, mtu)
    at = 0
    for octets, body in packets:
        header = Ipv4Header.parse(octets, 20 + len(body))
        assert header.total_len == 20 + len(body) <= mtu
        assert header.fragment_offset == at
        assert header.more_fragments is (at + len(body) < len(flat))
        assert bytes(body) == flat[at : at + len(body)]
        at += len(body)
    assert at == len(flat)


def test_the_largest_datagram() -> None:
    packets = fragment(HEADER, IoVec.of(bytes(MAX_PACKET - 20)), 1500)
    assert len(packets) == 45
    assert Ipv4Header.parse(packets[-1][0], 1500).fragment_offset == 65120


@pytest.mark.parametrize(
    ("header", "size", "mtu"),
    [
        (HEADER, 65516, 1500),
        (HEADER, 100, 67),
        (HEADER._replace(ihl=24, options=bytes(4)), 100, 1500),
    ],
)
def test_what_no_caller_may_ask_for(header: Ipv4Header, size: int, mtu: int) -> None:
    with pytest.raises(ValueError, match="cannot fragment"):
        fragment(header, IoVec.of(bytes(size)), mtu)
