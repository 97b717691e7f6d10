from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)

from slirp.errors import MalformedPacket
from slirp.wire.ipv6 import (
    ERRONEOUS_FIELD,
    EXTENSIONS_MAX,
    OPTIONS_MAX,
    UNKNOWN_NEXT_HEADER,
    UNKNOWN_OPTION,
    Chain,
    FragmentHeader,
    Ipv6Header,
    Problem,
    walk,
)
from tests.kit.oracle import attempt

SRC = bytes.fromhex("fd000000000000000000000000000015")
DST = bytes.fromhex("20010db8000000000000000000000001")
REASONS = {
    "truncated",
    "version",
    "payload length beyond the frame",
    "extension header truncated",
    "too many extension headers",
    "too many options",
    "option runs past its header",
    "option that asks to be dropped",
    "jumbogram",
}


def packet(*layers: object) -> bytes:
    """scapy's bytes of these headers, one inside the other, and a UDP datagram."""
    whole = IPv6(src="fd00::15", dst="2001:db8::1", hlim=64)
    for layer in layers:
        whole = whole / layer
    return bytes(whole / UDP(sport=1, dport=2) / b"data")


def walked(octets: bytes) -> Chain | Problem:
    return walk(Ipv6Header.parse(octets), octets)


def test_a_header_as_scapy_writes_it() -> None:
    octets = bytes(IPv6(tc=0x12, fl=0x34567, plen=4, nh=59, hlim=9, src="fd00::15", dst="::1"))
    header = Ipv6Header.parse(octets + b"1234")
    assert header == (0x01234567, 4, 59, 9, SRC, bytes(15) + b"\x01")
    assert header.emit() == octets


def test_the_payload_length_ends_the_packet() -> None:
    octets = packet()
    Ipv6Header.parse(octets[:40], len(octets))
    with pytest.raises(MalformedPacket, match="beyond the frame"):
        Ipv6Header.parse(octets, len(octets) - 1)


@pytest.mark.parametrize("size", range(40))
def test_a_short_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        Ipv6Header.parse(packet()[:size])


@pytest.mark.parametrize("version", [0, 4, 5, 7, 15])
def test_another_version(version: int) -> None:
    octets = bytes([version << 4]) + packet()[1:]
    with pytest.raises(MalformedPacket, match="version"):
        Ipv6Header.parse(octets)


def test_without_extension_headers() -> None:
    assert walked(packet()) == Chain(17, 40, 6, None)


def test_past_options_and_a_used_up_route() -> None:
    octets = packet(
        IPv6ExtHdrHopByHop(options=[RouterAlert()]),
        IPv6ExtHdrRouting(segleft=0, addresses=["2001:db8::2"]),
        IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]),
    )
    chain = walked(octets)
    assert isinstance(chain, Chain)
    assert (chain.protocol, chain.start) == (17, len(octets) - 12)
    assert octets[chain.named_at] == 17


def test_a_fragment_ends_the_walk() -> None:
    octets = packet(IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(offset=185, m=1, id=0xDEADBEEF))
    fragment = FragmentHeader(17, 1480, True, 0xDEADBEEF)
    assert walked(octets) == Chain(44, 48, 40, fragment)
    assert fragment.emit() == octets[48:56]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(0x1E, None), (0x9E, Problem(UNKNOWN_OPTION, 42, True)), (0xDE, Problem(2, 42, False))],
)
def test_an_unknown_option_asks_for_what_its_high_bits_say(
    kind: int, expected: Problem | None
) -> None:
    found = walked(packet(IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=kind, optdata=b"1234")])))
    assert found == expected or (expected is None and isinstance(found, Chain))


@pytest.mark.parametrize(("kind", "reason"), [(0x5E, "asks to be dropped"), (0xC2, "jumbogram")])
def test_an_option_that_drops_the_packet(kind: int, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        walked(packet(IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=kind, optdata=b"1234")])))


def test_a_route_with_segments_left_is_refused() -> None:
    octets = packet(IPv6ExtHdrRouting(type=0, segleft=1, addresses=["2001:db8::2"]))
    assert walked(octets) == Problem(ERRONEOUS_FIELD, 42, False)


def test_hop_by_hop_options_anywhere_but_first() -> None:
    octets = packet(IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop())
    assert walked(octets) == Problem(UNKNOWN_NEXT_HEADER, 40, False)


def test_chains_and_options_are_bounded() -> None:
    with pytest.raises(MalformedPacket, match="too many extension headers"):
        walked(packet(*(IPv6ExtHdrDestOpt() for _ in range(EXTENSIONS_MAX + 1))))
    walked(packet(*(IPv6ExtHdrDestOpt() for _ in range(EXTENSIONS_MAX))))
    pads = bytes([17, (OPTIONS_MAX + 6) // 8, *bytes(OPTIONS_MAX + 6)])
    octets = Ipv6Header(0, len(pads), 60, 1, SRC, DST).emit() + pads
    with pytest.raises(MalformedPacket, match="too many options"):
        walked(octets)


@pytest.mark.parametrize("protocol", [0, 43, 44, 60])
def test_an_extension_header_cut_short(protocol: int) -> None:
    for size in range(8):
        octets = Ipv6Header(0, size, protocol, 1, SRC, DST).emit() + bytes(8)
        with pytest.raises(MalformedPacket, match="truncated"):
            walked(octets)


def test_what_lies_behind_the_packet_is_not_read() -> None:
    octets = Ipv6Header(0, 8, 60, 1, SRC, DST).emit() + bytes([60, 0, 1, 4, 0, 0, 0, 0])
    with pytest.raises(MalformedPacket, match="truncated"):
        walked(octets + bytes([17, 0, 1, 4, 0, 0, 0, 0]))


@given(st.sampled_from([0, 43, 44, 60, 17, 59]), st.binary(max_size=200))
def test_any_chain_leads_somewhere_or_is_malformed(protocol: int, rest: bytes) -> None:
    octets = Ipv6Header(0, len(rest), protocol, 1, SRC, DST).emit() + rest
    found = attempt(walked, octets)
    if isinstance(found, MalformedPacket):
        assert found.reason in REASONS
    elif isinstance(found, Chain):
        assert 40 <= found.start <= len(octets)
    else:
        assert 6 <= found.pointer < len(octets)


@given(st.binary(max_size=60))
def test_parse_raises_only_malformed_and_round_trips(octets: bytes) -> None:
    header = attempt(Ipv6Header.parse, octets)
    if isinstance(header, MalformedPacket):
        assert header.reason in REASONS
    else:
        assert header.emit() == octets[:40]
