"""IPv4 as a family: what it makes is judged by scapy, what it recognises is scapy's making."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, defragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from slirp.flow import Cause
from slirp.ip.ipv4 import IPV4
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from tests.slirp.ip.test_family import CASES, MAC

GUEST, FAR, GATEWAY = bytes((10, 0, 2, 15)), bytes((192, 0, 2, 1)), bytes((10, 0, 2, 2))
GUEST_TEXT, FAR_TEXT, GATEWAY_TEXT = "10.0.2.15", "192.0.2.1", "10.0.2.2"
KEY = GUEST + FAR + (1025).to_bytes(2, "big") + (80).to_bytes(2, "big")  # the guest's direction
LINK = bytes(Ether(src="52:55:00:00:02:02", dst="52:54:00:00:00:01", type=0x0800))
CASE = CASES[0]
EXPERIMENT = 253  # a protocol without a header that scapy would mend, RFC 3692

payloads = st.binary(min_size=1, max_size=200)


def remade(packet: Packet) -> bytes:
    """The packet, its lengths and sums computed by scapy."""
    again = packet.copy()
    for layer in (IP, ICMP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    return bytes(again)


# Room


@given(st.integers(576, 65535))
def test_what_an_mtu_leaves_fills_a_packet(mtu: int) -> None:
    assert len(IP() / TCP() / Raw(bytes(IPV4.mss(mtu)))) == mtu
    assert len(IP() / UDP() / Raw(bytes(IPV4.udp_room(mtu)))) == mtu


def test_the_longest_datagram_is_one_that_the_length_field_can_say() -> None:
    whole = IP(bytes(IP() / UDP() / Raw(bytes(IPV4.udp_max))))
    assert (whole.len, whole[UDP].len) == (65535, 65515)


def test_a_super_frame_has_room_for_the_longest_tcp_header() -> None:
    options = [("NOP", None)] * 40
    assert len(IP() / TCP(options=options) / Raw(bytes(IPV4.tcp_super_max))) == 65535


# Packets of the network's own


@given(st.integers(0, 5000), st.integers(IPV4.min_mtu, 2000))
def test_packets_fit_the_mtu_and_are_one_datagram(size: int, mtu: int) -> None:
    payload = bytes(n & 0xFF for n in range(size))
    made = IPV4.packets(GATEWAY, GUEST, EXPERIMENT, IoVec.of(payload), mtu)
    packets = [IP(header + bytes(piece)) for header, piece in made]
    assert all(len(packet) <= mtu for packet in packets)
    assert [bytes(packet) for packet in packets] == [remade(packet) for packet in packets]
    if len(packets) == 1:
        whole = packets[0]
        assert (str(whole.flags), whole.id) == ("DF", 0), "RFC 6864 §4.1: atomic"
    else:
        (whole,) = defragment(packets)
    assert (whole.src, whole.dst, whole.proto) == (GATEWAY_TEXT, GUEST_TEXT, EXPERIMENT)
    assert bytes(whole)[20:] == payload


# ICMP


@pytest.mark.parametrize(
    ("cause", "numbers"),
    [
        (Cause.NO_ROUTE, (3, 0)), (Cause.NO_HOST, (3, 1)), (Cause.NO_PROTOCOL, (3, 2)),
        (Cause.NO_PORT, (3, 3)), (Cause.TOO_LONG, (3, 4)), (Cause.NETWORK_PROHIBITED, (3, 9)),
        (Cause.PROHIBITED, (3, 13)), (Cause.EXPIRED, (11, 0)), (Cause.INCOMPLETE, (11, 1)),
    ],
)  # fmt: skip
def test_each_cause_has_its_number(cause: Cause, numbers: tuple[int, int]) -> None:
    assert IPV4.causes[cause] == numbers


def test_no_cause_is_without_a_number() -> None:
    assert set(IPV4.causes) == set(Cause)
    assert len(set(IPV4.causes.values())) == len(Cause)


@pytest.mark.parametrize("size", [0, 8, 1500, 60000])
@pytest.mark.parametrize("cause", Cause)
def test_an_error_quotes_the_guests_packet(cause: Cause, size: int) -> None:
    sent = bytes(UDP(sport=1025, dport=53) / Raw(bytes(size)))
    original = IoVec.of(IPV4.header(GUEST, FAR, PROTOCOL_UDP, len(sent)), sent)
    kind, code = IPV4.causes[cause]
    octets = bytes(IPV4.error(GATEWAY, GUEST, kind, code, 1400, original))
    message = ICMP(octets)
    assert (message.type, message.code) == (kind, code)
    assert remade(message) == octets
    quoted = IP(octets[8:])
    assert (quoted.src, quoted.dst, quoted.len) == (GUEST_TEXT, FAR_TEXT, 20 + len(sent))
    assert bytes(original).startswith(octets[8:])
    assert len(octets) + 20 <= 576, "RFC 1812 §4.3.2.3"
    if cause is Cause.TOO_LONG:
        assert message.nexthopmtu == 1400


@given(st.integers(0, 2**32 - 1), payloads)
def test_an_echo_reply(rest: int, payload: bytes) -> None:
    octets = bytes(IPV4.message(FAR, GUEST, IPV4.echo_reply, 0, rest, IoVec.of(payload)))
    message = ICMP(octets)
    assert (message.type, message.id << 16 | message.seq) == (0, rest)
    assert (bytes(message.payload), remade(message)) == (payload, octets)


# The first look


def frame_of(transport: Packet, payload: bytes = b"", **fields: Any) -> bytes:
    fields = {"src": GUEST_TEXT, "dst": FAR_TEXT} | fields
    return bytes(Ether(dst=MAC, type=0x0800) / IP(**fields) / transport / Raw(payload))


@given(st.integers(0, 255), st.integers(1, 255), st.booleans(), payloads, st.binary(max_size=20))
def test_a_plain_segment_is_read_at_one_look(
    tos: int, ttl: int, unfragmented: bool, payload: bytes, padding: bytes
) -> None:
    segment = TCP(sport=1025, dport=80, seq=7, ack=9, flags="PA", window=512)
    flags = "DF" if unfragmented else 0
    frame = frame_of(segment, payload, tos=tos, ttl=ttl, flags=flags)
    found = CASE.first_look(frame + padding)
    assert found == (PROTOCOL_TCP, len(frame), KEY, 7, 9, 5 << 12 | 0x18, 512)
    plain = IPV4.plain
    assert frame[plain.hops_at] == ttl
    assert bool(frame[plain.flags_at] & 0x40) == unfragmented
    assert int.from_bytes(frame[14 : plain.summed_to]) % 0xFFFF == 0
    assert frame[plain.addrs_at : plain.transport_at] == GUEST + FAR
    assert plain.least == len(LINK) + len(IP()) + len(TCP())


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": "MF"}, {"frag": 1}, {"frag": 0x1FFF, "flags": "MF"},
        {"options": [IPOption_NOP()] * 4}, {"version": 6}, {"version": 0}, {"ihl": 6},
    ],
)  # fmt: skip
def test_what_has_to_be_parsed_is_not_plain(fields: dict[str, Any]) -> None:
    found = CASE.first_look(frame_of(TCP(sport=1025, dport=80), bytes(20), **fields))
    assert found is None or found[0] not in (PROTOCOL_TCP, PROTOCOL_UDP)
