from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire.tcp import (
    ACK,
    FIN,
    HEADER_LEN,
    NO_OPTIONS,
    PSH,
    RST,
    SYN,
    URG,
    TcpHeader,
    TcpOptions,
    emit_options,
    parse_options,
)
from tests.kit.oracle import attempt

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
REASONS = {
    ("tcp", "truncated"),
    ("tcp", "data offset below 20"),
    ("tcp", "data offset beyond the segment"),
    ("tcp", "flags"),
    ("tcp", "port 0"),
    ("tcp", "option length"),
}

PLAIN = TcpHeader(1025, 80, 0x11223344, 0x55667788, 20, ACK | PSH, 8192, 0xABCD, 0)
LINUX_SYN = bytes.fromhex("020405b4 0402 080a 00000064 00000000 01 030307")


def test_a_header_as_it_lies_on_the_wire() -> None:
    octets = bytes.fromhex("0401 0050 11223344 55667788 50 18 2000 abcd 0000")
    assert TcpHeader.parse(memoryview(octets + b"data")) == PLAIN
    assert PLAIN.emit() == octets


def test_options_follow_the_header() -> None:
    octets = PLAIN._replace(data_offset=40, flags=SYN).emit(LINUX_SYN)
    assert octets[12] == 0xA0
    assert TcpHeader.parse(octets).data_offset == 40
    assert octets[20:] == LINUX_SYN


@pytest.mark.parametrize("size", range(HEADER_LEN))
def test_fewer_octets_than_a_header(size: int) -> None:
    with pytest.raises(MalformedPacket, match="truncated"):
        TcpHeader.parse(PLAIN.emit()[:size])


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_a_data_offset_inside_the_header(offset: int) -> None:
    with pytest.raises(MalformedPacket, match="below 20"):
        TcpHeader.parse(PLAIN._replace(data_offset=offset).emit() + bytes(40))


@pytest.mark.parametrize(("offset", "available"), [(24, 20), (60, 59), (60, 21)])
def test_a_data_offset_beyond_the_segment(offset: int, available: int) -> None:
    octets = PLAIN._replace(data_offset=offset).emit() + bytes(40)
    with pytest.raises(MalformedPacket, match="beyond the segment"):
        TcpHeader.parse(octets, available)
    with pytest.raises(MalformedPacket, match="beyond the segment"):
        TcpHeader.parse(octets[:available])


@pytest.mark.parametrize(
    "flags",
    [0, FIN, PSH, URG, FIN | PSH | URG, SYN | FIN, SYN | RST, SYN | FIN | ACK, SYN | RST | ACK, 63],
)
def test_flags_that_no_tcp_sends(flags: int) -> None:
    """Null, xmas, and two wishes at once."""
    with pytest.raises(MalformedPacket, match="flags"):
        TcpHeader.parse(PLAIN._replace(flags=flags).emit())


@pytest.mark.parametrize(
    "flags", [SYN, SYN | ACK, ACK, RST, RST | ACK, FIN | ACK, FIN | PSH | ACK, URG | ACK, SYN | PSH]
)
def test_lawful_flags(flags: int) -> None:
    assert TcpHeader.parse(PLAIN._replace(flags=flags).emit()).flags == flags


def test_the_bits_of_ecn_and_the_reserved_ones_are_ignored() -> None:
    octets = bytearray(PLAIN.emit())
    octets[12] |= 0x0F
    octets[13] |= 0xC0
    assert TcpHeader.parse(bytes(octets)) == PLAIN


@pytest.mark.parametrize(("src_port", "dst_port"), [(0, 80), (80, 0), (0, 0)])
def test_port_0(src_port: int, dst_port: int) -> None:
    with pytest.raises(MalformedPacket, match="port 0"):
        TcpHeader.parse(PLAIN._replace(src_port=src_port, dst_port=dst_port).emit())


# CVE-2026-9539: an urgent pointer beyond the data, or with none, is a number and nothing more
@pytest.mark.parametrize("urgent", [1, 4, 5, 1460, 0x7FFF, 0x8000, 0xFFFF])
@pytest.mark.parametrize("payload", [b"", b"data"])
def test_an_urgent_pointer_moves_nothing(urgent: int, payload: bytes) -> None:
    octets = PLAIN._replace(flags=ACK | URG, urgent=urgent).emit() + payload
    header = TcpHeader.parse(octets)
    assert header.urgent == urgent
    assert header.data_offset == 20


@given(st.binary(max_size=64), st.none() | st.integers(0, 70000))
def test_parse_raises_only_malformed(octets: bytes, available: int | None) -> None:
    header = attempt(TcpHeader.parse, memoryview(octets), available)
    if isinstance(header, MalformedPacket):
        assert (header.layer, header.reason) in REASONS
    else:
        assert 20 <= header.data_offset <= (len(octets) if available is None else available)


@given(U16, U16, U32, U32, st.integers(5, 15), st.integers(0, 63), U16, U16, U16)
def test_what_is_emitted_parses_to_the_same(
    src_port: int, dst_port: int, seq: int, ack: int, words: int, flags: int,
    window: int, check: int, urgent: int,
) -> None:  # fmt: skip
    header = TcpHeader(src_port, dst_port, seq, ack, 4 * words, flags, window, check, urgent)
    parsed = attempt(TcpHeader.parse, header.emit(), 60)
    if isinstance(parsed, MalformedPacket):
        assert parsed.reason in {"flags", "port 0"}
    else:
        assert parsed == header


def test_the_options_of_a_linux_syn() -> None:
    assert parse_options(memoryview(LINUX_SYN)) == TcpOptions(1460, 7, True, (), (100, 0))


def test_timestamps_alone_take_the_short_way_and_the_long_one() -> None:
    aligned = bytes.fromhex("0101080a 01020304 05060708")
    other = bytes.fromhex("080a 01020304 05060708 0101")
    want = TcpOptions(ts=(0x01020304, 0x05060708))
    assert parse_options(aligned) == parse_options(other) == want
    assert want.emit() == aligned


def test_timestamps_and_sack_blocks() -> None:
    octets = bytes.fromhex(
        "0101080a 00000001 00000002 0101 0512 00000010 00000020 00000030 00000040"
    )
    want = TcpOptions(sack=((0x10, 0x20), (0x30, 0x40)), ts=(1, 2))
    assert parse_options(octets) == want
    assert want.emit() == octets


def test_as_many_sack_blocks_as_fit() -> None:
    blocks = [(n, n + 1) for n in range(10)]
    assert parse_options(emit_options(sack=blocks)).sack == tuple(blocks[:4])
    assert parse_options(emit_options(sack=blocks, ts=(1, 2))).sack == tuple(blocks[:3])
    full = emit_options(1460, 7, True, blocks, (1, 2))
    assert len(full) <= 40
    assert parse_options(full).sack == tuple(blocks[:1])


def test_end_of_options_and_unknown_ones() -> None:
    assert parse_options(bytes.fromhex("fd04aabb 0204 0218 00 ffffff")) == TcpOptions(mss=536)
    assert parse_options(b"") is NO_OPTIONS
    assert parse_options(bytes(4)) is NO_OPTIONS


@pytest.mark.parametrize(
    "octets",
    [
        "0200", "0201", "0300", "fd00", "fd01",  # lengths that would not move on
        "02", "010102", "03",  # a kind and no length
        "0204", "020405", "fdff0000", "080a000000",  # past the data offset
        "0203aa", "02020000", "0302", "030400aa", "0403aa", "0809" + "00" * 7,  # wrong for the kind
        "0502", "0509" + "00" * 7, "050c" + "00" * 10,
    ],
)  # fmt: skip
def test_an_unlawful_option_length(octets: str) -> None:
    with pytest.raises(MalformedPacket, match="option length"):
        parse_options(memoryview(bytes.fromhex(octets)))


@pytest.mark.parametrize("mss", [0, 1, 65535])
@pytest.mark.parametrize("wscale", [0, 14, 15, 255])
def test_extreme_values_are_given_as_sent(mss: int, wscale: int) -> None:
    assert parse_options(emit_options(mss, wscale)) == TcpOptions(mss, wscale)


@given(st.binary(max_size=40))
def test_options_raise_only_malformed(octets: bytes) -> None:
    options = attempt(parse_options, memoryview(octets))
    if isinstance(options, MalformedPacket):
        assert (options.layer, options.reason) == ("tcp", "option length")
    else:
        assert len(options.sack) <= 4


@given(
    st.none() | U16,
    st.none() | st.integers(0, 255),
    st.booleans(),
    st.lists(st.tuples(U32, U32), max_size=1),
    st.none() | st.tuples(U32, U32),
)
def test_options_round_trip(
    mss: int | None,
    wscale: int | None,
    sack_permitted: bool,
    sack: list[tuple[int, int]],
    ts: tuple[int, int] | None,
) -> None:
    options = TcpOptions(mss, wscale, sack_permitted, tuple(sack), ts)
    octets = options.emit()
    assert len(octets) % 4 == 0
    assert len(octets) <= 40
    assert parse_options(memoryview(octets)) == options
