"""NTP packets, against scapy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.ntp import NTPHeader

from slirp.errors import MalformedPacket
from slirp.wire import ntp


def test_a_packet_as_scapy_writes_it() -> None:
    octets = bytes(NTPHeader(version=3, mode=3, poll=6, sent=1.5))
    packet = ntp.NtpPacket.parse(octets)
    assert (packet.version, packet.mode, packet.poll) == (3, 3, 6)
    assert packet.transmit == bytes((0, 0, 0, 1, 0x80, 0, 0, 0))
    assert packet.emit() == octets


def test_timestamps() -> None:
    assert ntp.timestamp(0) == (2208988800).to_bytes(4) + bytes(4)
    assert ntp.timestamp(500_000_000)[4:] == b"\x80\0\0\0"
    assert ntp.timestamp((2**32 - 2208988800) * 10**9) == bytes(8)  # 2036: the next era


@pytest.mark.parametrize(
    ("octets", "reason"), [(b"\x1b" + bytes(46), "truncated"), (b"\x3b" + bytes(47), "version")]
)
def test_malformed(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        ntp.NtpPacket.parse(octets)


@given(st.binary(max_size=100))
def test_parse_raises_only_malformed(octets: bytes) -> None:
    try:
        ntp.NtpPacket.parse(octets)
    except MalformedPacket:
        pass
