"""IPv6 as a family: what it makes is judged by scapy, what it recognises is scapy's making."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    defragment6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from slirp.address import addr_from_text
from slirp.flow import Cause
from slirp.ip.icmpv6 import may_send_error
from slirp.ip.ipv6 import IPV6
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from tests.slirp.ip.test_family import CASES, MAC

GUEST_TEXT, FAR_TEXT, GATEWAY_TEXT = "fd00::100", "2001:db8::1", "fd00::2"
GUEST, FAR, GATEWAY = map(addr_from_text, (GUEST_TEXT, FAR_TEXT, GATEWAY_TEXT))
KEY = GUEST + FAR + (1025).to_bytes(2, "big") + (80).to_bytes(2, "big")  # the guest's direction
LINK = bytes(Ether(src="52:55:00:00:02:02", dst="52:54:00:00:00:01", type=0x86DD))
CASE = CASES[1]
EXPERIMENT = 253  # a protocol without a header that scapy would mend, RFC 3692

payloads = st.binary(min_size=1, max_size=200)


def remade(packet: Packet) -> bytes:
    """The packet, its lengths and sums computed by scapy."""
    again = packet.copy()
    del again[IPv6].plen
    for layer in (TCP, UDP):
        if layer in again:
            del again[layer].chksum
    for layer in (ICMPv6EchoReply, *SAYS.values()):
        if layer in again:
            del again[layer].cksum
    return bytes(again)


SAYS = {
    1: ICMPv6DestUnreach,
    2: ICMPv6PacketTooBig,
    3: ICMPv6TimeExceeded,
    4: ICMPv6ParamProblem,
}


# Room


def test_the_longest_datagram_is_one_that_the_length_field_can_say() -> None:
    whole = IPv6(bytes(IPv6() / UDP() / Raw(bytes(IPV6.udp_max))))
    assert (whole.plen, whole[UDP].len) == (65535, 65535)


# Packets of the network's own


@given(st.integers(0, 9000), st.integers(IPV6.min_mtu, 2000))
def test_packets_fit_the_mtu_and_are_one_datagram(size: int, mtu: int) -> None:
    payload = bytes(n & 0xFF for n in range(size))
    made = IPV6.packets(GATEWAY, GUEST, EXPERIMENT, IoVec.of(payload), mtu)
    packets = [IPv6(header + bytes(piece)) for header, piece in made]
    assert all(len(packet) <= mtu for packet in packets)
    assert [bytes(packet) for packet in packets] == [remade(packet) for packet in packets]
    if 40 + size <= mtu:
        (whole,) = packets
    else:
        assert len(packets) > 1, "RFC 6946: nobody needs an atomic fragment"
        assert all(IPv6ExtHdrFragment in packet for packet in packets)
        whole = IPv6(bytes(defragment6(packets)))
    assert (whole.src, whole.dst, whole.nh) == (GATEWAY_TEXT, GUEST_TEXT, EXPERIMENT)
    assert bytes(whole)[40:] == payload


@pytest.mark.parametrize(("size", "mtu"), [(65536, 1500), (2000, 1279)])
def test_what_no_caller_may_ask_for(size: int, mtu: int) -> None:
    with pytest.raises(ValueError, match="cannot fragment"):
        IPV6.packets(GATEWAY, GUEST, EXPERIMENT, IoVec.of(bytes(size)), mtu)


# ICMPv6


@pytest.mark.parametrize(
    ("cause", "numbers"),
    [
        (Cause.NO_ROUTE, (1, 0)), (Cause.NO_HOST, (1, 3)), (Cause.NO_PROTOCOL, (4, 1)),
        (Cause.NO_PORT, (1, 4)), (Cause.TOO_LONG, (2, 0)), (Cause.NETWORK_PROHIBITED, (1, 1)),
        (Cause.PROHIBITED, (1, 1)), (Cause.EXPIRED, (3, 0)), (Cause.INCOMPLETE, (3, 1)),
    ],
)  # fmt: skip
def test_each_cause_has_its_number(cause: Cause, numbers: tuple[int, int]) -> None:
    assert IPV6.causes[cause] == numbers


@pytest.mark.parametrize("size", [0, 8, 1500, 60000])
@pytest.mark.parametrize("cause", Cause)
def test_an_error_quotes_the_guests_packet(cause: Cause, size: int) -> None:
    sent = bytes(UDP(sport=1025, dport=53) / Raw(bytes(size)))
    original = IoVec.of(IPV6.header(GUEST, FAR, PROTOCOL_UDP, len(sent)), sent)
    kind, code = IPV6.causes[cause]
    octets = bytes(IPV6.error(GATEWAY, GUEST, kind, code, 1400, original))
    packet = IPv6(bytes(IPv6(src=GATEWAY_TEXT, dst=GUEST_TEXT, nh=58) / Raw(octets)))
    message = packet[SAYS[kind]]
    assert (message.type, message.code) == (kind, code)
    assert remade(packet) == bytes(packet)
    quoted = IPv6(octets[8:])
    assert (quoted.src, quoted.dst, quoted.plen) == (GUEST_TEXT, FAR_TEXT, len(sent))
    assert bytes(original).startswith(octets[8:])
    assert len(octets) + 40 <= 1280, "RFC 4443 §2.4 (c)"
    if cause is Cause.TOO_LONG:
        assert message.mtu == 1400


@given(st.integers(0, 2**32 - 1), payloads)
def test_an_echo_reply(rest: int, payload: bytes) -> None:
    octets = bytes(IPV6.message(FAR, GUEST, IPV6.echo_reply, 0, rest, IoVec.of(payload)))
    packet = IPv6(bytes(IPv6(src=FAR_TEXT, dst=GUEST_TEXT, nh=58) / Raw(octets)))
    message = packet[ICMPv6EchoReply]
    assert (message.id << 16 | message.seq, bytes(message.data)) == (rest, payload)
    assert remade(packet) == bytes(packet)


@pytest.mark.parametrize(
    ("src", "dst", "protocol", "first", "link", "may"),
    [
        (GUEST_TEXT, FAR_TEXT, 17, 0, 0x52, True),
        (GUEST_TEXT, FAR_TEXT, 58, 128, 0x52, True),
        (GUEST_TEXT, FAR_TEXT, 58, 1, 0x52, False),
        (GUEST_TEXT, FAR_TEXT, 58, 137, 0x52, False),
        (GUEST_TEXT, "ff02::1", 17, 0, 0x52, False),
        (GUEST_TEXT, FAR_TEXT, 17, 0, 0x33, False),
        ("::", FAR_TEXT, 17, 0, 0x52, False),
        ("ff02::1", FAR_TEXT, 17, 0, 0x52, False),
    ],
)
def test_what_must_not_be_answered_by_an_error(
    src: str, dst: str, protocol: int, first: int, link: int, may: bool
) -> None:
    payload = IoVec.of(bytes((first,)) + bytes(7))
    mac = bytes((link, 0x33, 0, 0, 0, 1))
    assert may_send_error(addr_from_text(src), addr_from_text(dst), protocol, payload, mac) == may


def test_an_icmp_packet_without_a_message_is_not_answered() -> None:
    assert not may_send_error(GUEST, FAR, 58, IoVec(), bytes(6))


# The first look


def frame_of(transport: Packet, payload: bytes = b"", **fields: Any) -> bytes:
    fields = {"src": GUEST_TEXT, "dst": FAR_TEXT} | fields
    return bytes(Ether(dst=MAC, type=0x86DD) / IPv6(**fields) / transport / Raw(payload))


@given(st.integers(0, 255), st.integers(0, 0xFFFFF), st.integers(1, 255), payloads)
def test_a_plain_segment_is_read_at_one_look(
    traffic: int, label: int, hops: int, payload: bytes
) -> None:
    segment = TCP(sport=1025, dport=80, seq=7, ack=9, flags="PA", window=512)
    frame = frame_of(segment, payload, tc=traffic, fl=label, hlim=hops)
    assert CASE.first_look(frame + b"pad") == (
        PROTOCOL_TCP,
        len(frame),
        KEY,
        7,
        9,
        5 << 12 | 0x18,
        512,
    )
    plain = IPV6.plain
    assert frame[plain.hops_at] == hops
    assert frame[plain.flags_at] & 0x40, "nobody on its way cuts it"
    assert plain.summed_to == 14, "no checksum of the header"
    assert frame[plain.addrs_at : plain.transport_at] == GUEST + FAR
    assert plain.least == len(LINK) + len(IPv6()) + len(TCP())


@pytest.mark.parametrize(
    "between", [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1)]
)
def test_what_has_to_be_walked_is_not_plain(between: Packet) -> None:
    found = CASE.first_look(frame_of(between / TCP(sport=1025, dport=80), bytes(20)))
    assert found is None or found[0] not in (PROTOCOL_TCP, PROTOCOL_UDP)


def test_another_version_is_not_plain() -> None:
    frame = frame_of(TCP(), bytes(20), version=4)
    assert CASE.first_look(frame) is None


def test_echo_has_the_numbers_of_rfc_4443() -> None:
    assert (IPV6.echo_request, IPV6.echo_reply) == (ICMPv6EchoRequest().type, 129)
