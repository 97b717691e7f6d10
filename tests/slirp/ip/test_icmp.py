from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from slirp.ip.icmp import ERROR_MAX, QUOTE_MAX, echo_reply, error, may_send_error
from slirp.wire import icmp
from slirp.wire.checksum import valid
from slirp.wire.icmp import IcmpHeader, QuotedPacket
from slirp.wire.ipv4 import PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from tests.kit.cuts import cuts

GUEST = bytes([10, 0, 2, 15])
SERVER = bytes([192, 0, 2, 1])
SUBNET_BROADCAST = bytes([10, 0, 2, 255])
UNICAST_MAC = bytes.fromhex("525500000202")
HEADER = Ipv4Header(20, 0, 28, 1, False, False, 0, 64, PROTOCOL_UDP, 0, GUEST, SERVER)
PAYLOAD = IoVec.of(bytes.fromhex("04010035 0008 0000"))


@given(cuts(), st.integers(0, 0xFFFFFFFF))
def test_an_echo_comes_back_with_its_payload(data: tuple[bytes, IoVec], rest: int) -> None:
    flat, payload = data
    reply = echo_reply(IcmpHeader(icmp.ECHO_REQUEST, 0, 0, rest), payload)
    head, body = reply.pull(8)
    assert IcmpHeader.parse(head)._replace(checksum=0) == (icmp.ECHO_REPLY, 0, 0, rest)
    assert bytes(body) == flat
    assert all(ours is theirs for ours, theirs in zip(body, payload, strict=True))
    assert valid(reply.segments)


def test_the_reply_that_is_all_zeros_but_for_its_checksum() -> None:
    reply = echo_reply(IcmpHeader(icmp.ECHO_REQUEST, 0, 0xF7FF, 0), IoVec.of(bytes(6)))
    assert bytes(reply) == bytes.fromhex("0000ffff") + bytes(10)


@pytest.mark.parametrize("size", [0, 1, 65507])
def test_an_echo_of_any_size(size: int) -> None:
    reply = echo_reply(IcmpHeader(icmp.ECHO_REQUEST, 0, 0, 7), IoVec.of(b"\xa5" * size))
    assert len(reply) == size + 8
    assert valid(reply.segments)


@given(cuts(max_size=700))
def test_an_error_quotes_what_fits_in_576_octets(data: tuple[bytes, IoVec]) -> None:
    flat, original = data
    message = error(icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE, 0, original)
    head, quote = message.pull(8)
    assert IcmpHeader.parse(head)[:2] == (3, 3)
    assert bytes(quote) == flat[:QUOTE_MAX]
    assert 20 + len(message) <= ERROR_MAX
    assert valid(message.segments)


def test_an_error_leads_back_to_the_flow() -> None:
    original = IoVec.of(HEADER.emit()) + PAYLOAD
    message = error(icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, 1400, original)
    head, quote = message.pull(8)
    assert IcmpHeader.parse(head).next_hop_mtu == 1400
    assert QuotedPacket.parse(bytes(quote)) == (PROTOCOL_UDP, GUEST, SERVER, 1025, 53)


@pytest.mark.parametrize("protocol", [PROTOCOL_UDP, PROTOCOL_TCP, 47])
def test_a_packet_of_a_host_to_a_host_may_be_answered(protocol: int) -> None:
    assert may_send_error(GUEST, SERVER, protocol, PAYLOAD, UNICAST_MAC)


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001"])
def test_nothing_that_the_link_sent_to_many(mac: str) -> None:
    assert not may_send_error(GUEST, SERVER, PROTOCOL_UDP, PAYLOAD, bytes.fromhex(mac))


@pytest.mark.parametrize(
    "dst", [SUBNET_BROADCAST, b"\xff" * 4, bytes([224, 0, 0, 251]), bytes([240, 0, 0, 1])]
)
def test_nothing_that_went_to_many_addresses(dst: bytes) -> None:
    assert not may_send_error(GUEST, dst, PROTOCOL_UDP, PAYLOAD, UNICAST_MAC, {SUBNET_BROADCAST})


@pytest.mark.parametrize(
    "src",
    [
        bytes(4), SUBNET_BROADCAST, b"\xff" * 4, bytes([127, 0, 0, 1]), bytes([224, 0, 0, 1]),
        bytes([250, 0, 0, 1]),
    ],
)  # fmt: skip
def test_nothing_from_what_is_not_one_host(src: bytes) -> None:
    assert not may_send_error(src, SERVER, PROTOCOL_UDP, PAYLOAD, UNICAST_MAC, {SUBNET_BROADCAST})


@pytest.mark.parametrize("kind", [0, 8, 13, 14, 15, 16, 17, 18])
def test_a_query_may_be_answered_by_an_error(kind: int) -> None:
    payload = IoVec.of(IcmpHeader(kind, 0, 0, 0).emit())
    assert may_send_error(GUEST, SERVER, PROTOCOL_ICMP, payload, UNICAST_MAC)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12, 1, 42, 255])
def test_errors_beget_no_errors(kind: int) -> None:
    payload = IoVec.of(IcmpHeader(kind, 0, 0, 0).emit())
    assert not may_send_error(GUEST, SERVER, PROTOCOL_ICMP, payload, UNICAST_MAC)


def test_an_icmp_packet_without_a_type() -> None:
    assert not may_send_error(GUEST, SERVER, PROTOCOL_ICMP, IoVec(), UNICAST_MAC)
