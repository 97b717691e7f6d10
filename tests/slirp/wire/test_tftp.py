"""TFTP packets, against scapy's and against what others got wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import tftp as scapy

from slirp.errors import MalformedPacket
from slirp.wire import tftp


def test_a_request_as_scapy_writes_it() -> None:
    asked = scapy.TFTP() / scapy.TFTP_RRQ(filename="boot.ipxe", mode="OCTET")
    asked /= scapy.TFTP_Options(
        options=[scapy.TFTP_Option(oname="BlkSize", value="1432"), scapy.TFTP_Option(oname="tsize")]
    )
    octets = bytes(asked).replace(b"tsize\0\0", b"tsize\x000\0")
    assert tftp.parse(octets) == tftp.Request(
        tftp.RRQ, b"boot.ipxe", b"octet", {b"blksize": b"1432", b"tsize": b"0"}
    )


def test_what_we_write_as_scapy_reads_it() -> None:
    data = scapy.TFTP(tftp.emit_data(65535, b"abc"))
    assert (data.op, data.block, bytes(data[scapy.TFTP_DATA].payload)) == (3, 65535, b"abc")
    error = scapy.TFTP(tftp.emit_error(tftp.NOT_FOUND, "no such file"))
    assert (error.errorcode, error.errormsg) == (1, b"no such file")
    oack = scapy.TFTP(tftp.emit_oack({b"blksize": b"1432", b"windowsize": b"8"}))
    told = {option.oname: option.value for option in oack[scapy.TFTP_Options].options}
    assert told == {b"blksize": b"1432", b"windowsize": b"8"}


def test_both_ways() -> None:
    assert tftp.parse(tftp.emit_ack(7)) == tftp.Ack(7)
    assert tftp.parse(tftp.emit_data(1, b"x")) == tftp.Data(1, b"x")
    assert tftp.parse(tftp.emit_error(5, "who?")) == tftp.Error(5, b"who?")
    assert tftp.parse(b"\0\5\0\0cut") == tftp.Error(0, b"cut")  # boot ROMs leave the zero out
    assert tftp.parse(tftp.emit_oack({b"tsize": b"9"})) == tftp.OptionAck({b"tsize": b"9"})
    request = tftp.emit_request(tftp.WRQ, b"a", b"octet", {b"x": b"1"})
    assert tftp.parse(request) == tftp.Request(tftp.WRQ, b"a", b"octet", {b"x": b"1"})


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "truncated"),
        (b"\0", "truncated"),
        (b"\0\1", "no mode"),
        (b"\0\3\0", "truncated"),
        (b"\0\4", "truncated"),
        (b"\0\0ab", "opcode"),
        (b"\0\7ab", "opcode"),
        (b"\0\1name", "text without end"),
        (b"\0\1name\0", "no mode"),
        (b"\0\1name\0octet", "text without end"),
        (b"\0\1name\0octet\0blksize\0", "option without value"),
        (b"\0\1name\0octet\0blksize\x001432", "text without end"),
        (b"\0\1name\0octet\0tsize\x000\0TSIZE\x000\0", "option twice"),
        (b"\0\1" + b"x" * 511 + b"\0octet\0", "oversized"),
        (b"\0\1n\0octet\0" + b"".join(b"%d\0v\0" % n for n in range(17)), "too many options"),
    ],
)
def test_malformed(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        tftp.parse(octets)


@given(st.binary(max_size=600))
def test_parse_raises_only_malformed(octets: bytes) -> None:
    try:
        tftp.parse(octets)
    except MalformedPacket:
        pass
