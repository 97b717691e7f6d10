"""DHCP messages, judged by scapy where we emit and by RFC 2131, 2132 and 3396 where we parse."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from slirp.errors import MalformedPacket
from slirp.wire import dhcp
from slirp.wire.dhcp import MAGIC_COOKIE, DhcpMessage

MAC = b"\x52\x54\x00\x12\x34\x56"


def message(options: dict[int, bytes] | None = None, **fields: object) -> DhcpMessage:
    base = DhcpMessage(
        op=dhcp.BOOTREQUEST,
        htype=1,
        hlen=6,
        hops=0,
        xid=0x1234ABCD,
        secs=3,
        flags=0,
        ciaddr=bytes(4),
        yiaddr=bytes(4),
        siaddr=bytes(4),
        giaddr=bytes(4),
        chaddr=MAC.ljust(16, b"\0"),
        sname=b"",
        file=b"",
        options=options or {},
    )
    return base._replace(**fields)  # type: ignore[arg-type]


def octets(area: bytes, sname: bytes = b"", file: bytes = b"") -> bytes:
    """A message whose options field holds `area` as it is, behind the cookie."""
    fixed = message(sname=sname, file=file).emit()[: dhcp.FIXED_LEN]
    return fixed + MAGIC_COOKIE + area


def reason(data: bytes) -> str:
    with pytest.raises(MalformedPacket) as caught:
        DhcpMessage.parse(data)
    assert caught.value.layer == "dhcp"
    return caught.value.reason


def test_scapy_reads_what_we_emit() -> None:
    sent = message(
        {53: b"\2", 1: b"\xff\xff\xff\0", 3: b"\x0a\0\2\2", 51: b"\0\1\x51\x80"},
        op=dhcp.BOOTREPLY,
        yiaddr=b"\x0a\0\2\x0f",
        sname=b"server",
        file=b"boot",
    )
    seen = BOOTP(sent.emit())
    assert (seen.op, seen.htype, seen.hlen, seen.xid, seen.secs) == (2, 1, 6, 0x1234ABCD, 3)
    assert (seen.yiaddr, seen.chaddr[:6]) == ("10.0.2.15", MAC)
    assert (seen.sname.rstrip(b"\0"), seen.file.rstrip(b"\0")) == (b"server", b"boot")
    assert seen[DHCP].options[:5] == [
        ("message-type", 2),
        ("subnet_mask", "255.255.255.0"),
        ("router", "10.0.2.2"),
        ("lease_time", 86400),
        "end",
    ]


def test_we_read_what_scapy_emits() -> None:
    data = bytes(
        BOOTP(op=1, chaddr=MAC, xid=7, flags=0x8000, ciaddr="10.0.2.15")
        / DHCP(options=[("message-type", "request"), ("requested_addr", "10.0.2.16"), "end"])
    )
    seen = DhcpMessage.parse(data)
    assert (seen.xid, seen.flags, seen.mac) == (7, dhcp.FLAG_BROADCAST, MAC)
    assert seen.ciaddr == b"\x0a\0\2\x0f"
    assert seen.octet(53) == dhcp.REQUEST
    assert seen.address(50) == b"\x0a\0\2\x10"
    assert seen.long(51) is None


option_values = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != dhcp.OVERLOAD),
    st.binary(max_size=600),
    max_size=4,
)


@settings(max_examples=50)
@given(option_values, st.binary(max_size=64), st.binary(max_size=128))
def test_a_message_survives_emit_and_parse(
    options: dict[int, bytes], sname: bytes, file: bytes
) -> None:
    sent = message(options, sname=sname.rstrip(b"\0"), file=file.rstrip(b"\0"))
    emitted = sent.emit()
    assert len(emitted) >= dhcp.MESSAGE_MIN
    assert DhcpMessage.parse(memoryview(emitted)) == sent


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_parse_raises_only_malformed_packet(area: bytes) -> None:
    for data in (area, octets(area), octets(b"\x34\1\3\xff", sname=area[:64], file=area[:128])):
        with suppress(MalformedPacket):
            DhcpMessage.parse(data)


@pytest.mark.parametrize("size", [0, 1, 235, 236, 238, 239])
def test_a_message_shorter_than_its_cookie_is_malformed(size: int) -> None:
    assert reason(octets(b"\xff")[:size]) == "truncated"


def test_the_longest_message_is_bounded() -> None:
    assert DhcpMessage.parse(octets(b"\xff").ljust(dhcp.MESSAGE_MAX, b"\0")).options == {}
    assert reason(octets(b"\xff").ljust(dhcp.MESSAGE_MAX + 1, b"\0")) == "oversized"


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        (b"\x35\1\1\x0c\x05abcd", "option length"),
        (b"\x35\xff\1\xff", "option length"),
        (b"\x35\1\1\x0c", "option without length"),
        (b"\x35\1\1", "no end option"),
        (b"\0" * 64, "no end option"),
        (b"", "no end option"),
        (b"\x34\1\4\xff", "overload"),
        (b"\x34\0\xff", "overload"),
        (b"\x34\2\1\1\xff", "overload"),
    ],
)
def test_broken_option_areas_are_malformed(area: bytes, expected: str) -> None:
    assert reason(octets(area)) == expected


def test_broken_fixed_fields_are_malformed() -> None:
    assert reason(message(op=0).emit()) == "op"
    assert reason(message(op=3).emit()) == "op"
    assert reason(message(hlen=17).emit()) == "hardware address length"
    assert DhcpMessage.parse(message(hlen=16).emit()).mac == MAC.ljust(16, b"\0")


def test_what_follows_the_end_option_is_not_read() -> None:
    assert DhcpMessage.parse(octets(b"\0\0\x35\1\1\xff\x0c\xff\x01")).options == {53: b"\1"}


def test_without_the_cookie_there_are_no_options() -> None:
    data = message().emit()[: dhcp.FIXED_LEN] + bytes(64)
    assert DhcpMessage.parse(data).options == {}


def test_pieces_of_an_option_are_joined() -> None:  # RFC 3396 §7
    seen = DhcpMessage.parse(octets(b"\x0c\2ab\x35\1\1\x0c\1c\xff"))
    assert seen.options == {12: b"abc", 53: b"\1"}


@pytest.mark.parametrize(("overload", "joined"), [(1, b"abfi"), (2, b"absn"), (3, b"abfisn")])
def test_overloaded_fields_hold_options(overload: int, joined: bytes) -> None:
    area = bytes((0x34, 1, overload)) + b"\x0c\2ab\xff"
    data = octets(area, sname=b"\x0c\2sn\xff", file=b"\x0c\2fi\xff")
    seen = DhcpMessage.parse(data)
    assert seen.options == {12: joined}  # options, file, sname: RFC 3396 §5
    assert (seen.file == b"") == bool(overload & 1)
    assert (seen.sname == b"") == bool(overload & 2)


def test_an_overloaded_field_must_end_as_the_options_do() -> None:
    assert reason(octets(b"\x34\1\1\xff", file=b"\x0c\xc8ab")) == "option length"
    assert reason(octets(b"\x34\1\2\xff", sname=b"\x0c\2ab")) == "no end option"


def test_options_of_another_size_than_asked_for_are_malformed() -> None:
    seen = message({53: b"\1\1", 57: b"\1", 51: b"\1\2", 50: b"\1\2\3"})
    for read in (
        lambda: seen.octet(53),
        lambda: seen.short(57),
        lambda: seen.long(51),
        lambda: seen.address(50),
    ):
        with pytest.raises(MalformedPacket, match="option size"):
            read()


def test_a_long_option_is_split() -> None:
    emitted = dhcp.emit_option(119, b"x" * 300)
    assert emitted == b"\x77\xff" + b"x" * 255 + b"\x77\x2d" + b"x" * 45
    assert dhcp.emit_option(80, b"") == b"\x50\0"
