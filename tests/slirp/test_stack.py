"""The stack's edge: frames in, actions out; no sockets, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.flow import Cause
from slirp.ip.ipv4_fragments import Ipv4Reassembler
from slirp.ip.ipv4_input import Ipv4Input
from slirp.ip.limit import ERRORS_AT_ONCE, ERRORS_PER_SECOND
from slirp.ip.neighbours import PORT_MAX, Guest
from slirp.ip.packet import DnsArrived, EchoArrived, Send, TcpArrived, UdpArrived, Unresolved
from slirp.services.dhcp import DhcpConfig, DhcpServer
from slirp.stack import Action, Stack, Switch
from tests.kit import guest as kit
from tests.kit.cuts import cuts
from tests.kit.guest import (
    ACK,
    BROADCAST_MAC,
    DNS,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OWN_MAC,
    SYN,
    addr,
    arp,
    ether,
    icmp,
    ipv4,
    is_right,
    tcp,
    udp,
)

FAR = "192.0.2.1"


class Attachment:
    """As much of a port as the stack looks at."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.port = PortDefaults()
        self.unlabelled = False


def make_stack(*, dhcp: bool = True, **options: Any) -> Stack:
    config = Config(**options)
    stack = Stack(config, DhcpServer(DhcpConfig.of(config)) if dhcp else None)
    stack.ports = 1
    return stack


@pytest.fixture
def stack() -> Stack:
    return make_stack()


def handle(
    stack: Stack, frame: bytes | IoVec, vnet: bytes = VNET_NONE, **where: Any
) -> list[Action]:
    """One frame; `at`: the attachment, `now`: the instant."""
    iov = frame if isinstance(frame, IoVec) else IoVec.of(frame)
    attachment = where.get("at") or ATTACHMENT
    return stack.handle_frame(Frame(iov, vnet), attachment, where.get("now", 1.0))


ATTACHMENT = Attachment()


def only(actions: Sequence[Action], kind: type) -> Any:
    """The one action, of this kind."""
    assert [type(action) for action in actions] == [kind]
    return actions[0]


def reassemblers(stack: Stack) -> dict[Any, Ipv4Reassembler]:
    found = stack.inputs[0]
    assert isinstance(found, Ipv4Input)
    return found.reassemblers


def frame_of(send: Send) -> bytes:
    return b"".join(send.headers) + bytes(send.payload)


# --- what arrives ---------------------------------------------------------------------------------


def test_a_segment_arrives_with_its_numbers(stack: Stack) -> None:
    frame = tcp(SYN | ACK, FAR, 80, seq=7, ack=8, options=b"\2\4\5\xb4", data=b"payload")
    arrived = only(handle(stack, frame), TcpArrived)
    assert arrived.key == addr(GUEST) + addr(FAR) + b"\x9c\x40\0\x50"
    assert (arrived.header.seq, arrived.header.ack) == (7, 8)
    assert arrived.options is not None
    assert arrived.options.mss == 1460
    assert bytes(arrived.payload) == b"payload"
    assert arrived.guest.addr == addr(GUEST)


def test_a_datagram_arrives_with_its_ttl_less_one(stack: Stack) -> None:
    arrived = only(handle(stack, udp(b"data", FAR, 123, ttl=9)), UdpArrived)
    assert (arrived.src_port, arrived.dst, arrived.dst_port) == (40000, addr(FAR), 123)
    assert (arrived.ttl, arrived.gso_size, bytes(arrived.payload)) == (8, 0, b"data")


def test_a_run_of_datagrams_keeps_its_size(stack: Stack) -> None:
    vnet = bytes((1, 5, 42, 0, 100, 0, 34, 0, 6, 0))  # GSO_UDP_L4, 100 bytes each
    arrived = only(handle(stack, udp(bytes(300), FAR, 123, checksum=1), vnet), UdpArrived)
    assert arrived.gso_size == 100


def test_an_echo_to_the_world_arrives(stack: Stack) -> None:
    arrived = only(handle(stack, icmp(8, 0, 0x00050006, b"data", FAR)), EchoArrived)
    assert (arrived.dst, arrived.ident, arrived.sequence) == (addr(FAR), 5, 6)


def test_a_query_arrives_unless_dns_is_off(stack: Stack) -> None:
    frame = udp(b"query", DNS, 53)
    assert bytes(only(handle(stack, frame), DnsArrived).payload) == b"query"
    stack.link.dns_enabled = False
    assert handle(stack, frame) == [], "silence, as if nobody were there"
    assert handle(stack, udp(b"x", DNS, 123)) == []
    assert stack.refused == {"DNS is off": 2}


def test_a_service_that_the_dns_address_does_not_have(stack: Stack) -> None:
    assert error_code(handle(stack, udp(b"x", DNS, 123))) == (3, 3)


@pytest.mark.parametrize("summed", [0, 1, 2, 3])
def test_checksums_are_verified_unless_the_port_knows(summed: int, stack: Stack) -> None:
    for frame in (tcp(ACK, FAR, 80, checksum=1), udp(b"x", FAR, 80, checksum=1)):
        actions = handle(stack, frame, bytes((summed,)) + VNET_NONE[1:])
        assert bool(actions) == bool(summed)


@given(cuts(min_size=1, max_size=64), st.integers(0, 2))
def test_cuts_do_not_show(octets: tuple[bytes, IoVec], kind: int) -> None:
    data, _ = octets
    frame = (tcp(ACK, FAR, 80, data=data), udp(data, FAR, 80), icmp(8, 0, 1, data, FAR))[kind]
    stack = make_stack()
    whole = handle(stack, frame)
    pieces = IoVec.of(*(frame[at : at + 3] for at in range(0, len(frame), 3)))
    cut = handle(stack, pieces)
    assert bytes(whole[0].payload) == bytes(cut[0].payload) == data  # type: ignore[union-attr]
    without: dict[str, Any] = {"payload": None} | ({} if kind else {"packet": None})
    assert whole[0]._replace(**without) == cut[0]._replace(**without)


# --- what the network answers itself --------------------------------------------------------------


@pytest.mark.parametrize("target", [GATEWAY, DNS])
def test_arp_for_our_addresses(target: str, stack: Stack) -> None:
    reply = frame_of(only(handle(stack, arp(1, GUEST, target)), Send))
    assert reply[:14] == GUEST_MAC + OWN_MAC + b"\x08\x06"
    assert reply[20:42] == b"\0\2" + OWN_MAC + addr(target) + GUEST_MAC + addr(GUEST)


def test_echo_to_our_addresses(stack: Stack) -> None:
    for target in (GATEWAY, DNS):
        packet = is_right(frame_of(only(handle(stack, icmp(8, 0, 77, b"data", target)), Send)))
        assert (packet.src, packet.dst) == (addr(target), addr(GUEST))
        assert packet.payload[0] == 0
        assert packet.payload[4:] == b"\0\0\0\x4ddata"


def test_a_long_echo_comes_back_in_fragments() -> None:
    stack = make_stack(mtu=576)
    sends = handle(stack, icmp(8, 0, 1, bytes(1400), GATEWAY))
    packets = [is_right(frame_of(send)) for send in sends]  # type: ignore[arg-type]
    assert [len(packet.payload) for packet in packets] == [552, 552, 304]
    assert len({packet.ident for packet in packets}) == 1
    assert not any(packet.fragment & 0x4000 for packet in packets)


def test_a_lease_makes_a_guest(stack: Stack) -> None:
    """Who was given an address is known there before it speaks from it."""
    met: list[Guest] = []
    stack.link.on_guest = lambda guest, now: met.append(guest)
    discover = b"\x01\x01\x06\0abcd" + bytes(20) + GUEST_MAC + bytes(10 + 192)
    request = discover + b"\x63\x82\x53\x63\x35\x01\x03\x32\x04" + addr(GUEST) + b"\xff"
    frame = udp(request, "255.255.255.255", 67, src="0.0.0.0", src_port=68)
    frame = BROADCAST_MAC + frame[6:]
    reply = is_right(frame_of(only(handle(stack, frame), Send)))
    assert (reply.src, reply.dst) == (addr(GATEWAY), addr(GUEST))
    assert [guest.addr for guest in met] == [addr(GUEST)]
    assert met[0].mac == GUEST_MAC


def test_without_dhcp_nobody_answers() -> None:
    stack = make_stack(dhcp=False)
    assert not handle(stack, udp(bytes(300), "255.255.255.255", 67, src="0.0.0.0"))
    assert stack.refused == {"dhcp is off": 1}


# --- errors, and where none may be sent -----------------------------------------------------------


def error_code(actions: Sequence[Action]) -> tuple[int, int]:
    packet = is_right(frame_of(only(actions, Send)))
    assert packet.src == addr(GATEWAY)
    return packet.payload[0], packet.payload[1]


def test_unreachable(stack: Stack) -> None:
    assert error_code(handle(stack, udp(b"x", "10.0.2.77", 9))) == (3, 1)
    assert error_code(handle(stack, ether(ipv4(b"x" * 8, 99, FAR)))) == (3, 2)
    assert error_code(handle(make_stack(restrict=True), udp(b"x", FAR, 9))) == (3, 9)
    assert error_code(handle(make_stack(host_loopback=False), udp(b"x", GATEWAY, 9))) == (3, 9)
    assert error_code(handle(make_stack(dhcp=False), udp(b"x", GATEWAY, 67))) == (3, 3)


def test_errors_are_limited_per_port(stack: Stack) -> None:
    """RFC 1812 §4.3.2.8: a flood is told so many times a second, and others as ever."""
    frame, other = udp(b"x", "10.0.2.77", 9), Attachment(2)
    told = [len(handle(stack, frame, now=5.0)) for _ in range(2 * ERRORS_AT_ONCE)]
    assert told == [1] * ERRORS_AT_ONCE + [0] * ERRORS_AT_ONCE
    assert (stack.link.errors, stack.link.errors_withheld) == (ERRORS_AT_ONCE, ERRORS_AT_ONCE)
    elsewhere = ether(kit.udp(b"x", "10.0.2.77", 9, src="10.0.2.16")[14:], src=b"\x02other")
    assert len(handle(stack, elsewhere, at=other, now=5.0)) == 1
    assert len(handle(stack, frame, now=5.0 + 1 / ERRORS_PER_SECOND)) == 1
    quoted = bytes(16)
    guest = stack.guests.get(addr(GUEST))
    assert guest is not None
    tell = partial(stack.layer(guest.addr).unreachable_by_host, guest, Cause.NO_ROUTE, 0, 17)
    assert tell(addr(FAR), quoted, 5.001) == []
    assert len(tell(addr(FAR), quoted, 6.0)) == 1


@pytest.mark.parametrize("dst", ["224.0.0.9", "255.255.255.255", "10.0.2.255"])
def test_no_error_about_what_went_to_a_group(dst: str, stack: Stack) -> None:
    """RFC 1122 §3.2.2, whoever has refused to send it."""
    handle(stack, arp(1, GUEST, GATEWAY))
    guest = stack.guests.get(addr(GUEST))
    assert guest is not None
    tell = stack.layer(guest.addr).unreachable_by_host
    assert tell(guest, Cause.NO_ROUTE, 0, 17, addr(dst), bytes(8), 1.0) == []


@pytest.mark.parametrize(
    ("size", "flags", "hops"),
    [
        (100, 0, 63),
        (100, 0x4000, 0x13F),
        (1472, 0x4000, 0x13F),
        (1473, 0x4000, 63),
        (1473, 0, 63),
    ],
)
def test_dont_fragment_goes_out_where_a_real_link_could_carry_it(
    size: int, flags: int, hops: int
) -> None:
    stack = make_stack(mtu=9000)
    stack_port = Attachment()
    stack_port.port.max_frame = 9014
    arrived = only(
        handle(stack, udp(bytes(size), FAR, 123, fragment=flags), at=stack_port), UdpArrived
    )
    assert arrived.hops == hops
    echo = only(
        handle(stack, icmp(8, 0, 1, bytes(size), FAR, fragment=flags), at=stack_port), EchoArrived
    )
    assert echo.hops == hops


def test_time_exceeded(stack: Stack) -> None:
    for frame in (
        udp(b"x", FAR, 9, ttl=1),
        icmp(8, 0, 1, b"x", FAR, ttl=1),
        tcp(SYN, FAR, 9, ttl=1),
        udp(b"x", FAR, 9, ttl=0),
    ):
        actions = handle(stack, frame)
        assert error_code(actions) == (11, 0)
        quoted = frame_of(actions[0])[42:]  # type: ignore[arg-type]
        assert quoted == frame[14:]


def test_an_error_quotes_no_more_than_576_octets_hold(stack: Stack) -> None:
    (send,) = handle(stack, udp(bytes(1400), "10.0.2.77", 9))
    assert len(frame_of(send)) == 14 + 576  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ether(ipv4(b"x" * 8, 99, "224.0.0.9")), id="to a group"),
        pytest.param(ether(ipv4(b"x" * 8, 99, "10.0.2.255")), id="to the network's broadcast"),
        pytest.param(ether(ipv4(b"x" * 8, 99, FAR), dst=BROADCAST_MAC), id="in a broadcast frame"),
        pytest.param(ether(ipv4(b"x" * 8, 99, FAR, fragment=1)), id="later fragment"),
        pytest.param(icmp(3, 3, 0, ipv4(b"x" * 8, 17, GUEST), "10.0.2.77"), id="about an error"),
        pytest.param(ether(ipv4(b"x" * 8, 99, FAR, src="0.0.0.0")), id="from nobody"),
    ],
)
def test_no_error_about(frame: bytes, stack: Stack) -> None:
    """RFC 1122 §3.2.2."""
    assert handle(stack, frame) == []


def test_incomplete_datagrams_are_given_up_with_a_word(stack: Stack) -> None:
    assert handle(stack, ether(ipv4(bytes(64), 17, FAR, ident=3, fragment=0x2000))) == []
    at = stack.poll_at()
    assert at is not None
    assert stack.handle_timeout(at - 0.1) == []
    assert error_code(stack.handle_timeout(at)) == (11, 1)
    assert stack.poll_at() is None


def test_who_is_not_known_any_more_has_to_be_asked_for(stack: Stack) -> None:
    handle(stack, ether(ipv4(bytes(64), 17, FAR, ident=3, fragment=0x2000)))
    stack.guests.forget_port(ATTACHMENT)
    at = stack.poll_at()
    assert at is not None
    packet = only(stack.handle_timeout(at), Unresolved)
    assert (packet.addr, packet.src, packet.protocol) == (addr(GUEST), addr(GATEWAY), 1)
    assert bytes(packet.payload)[:2] == b"\x0b\x01"


def test_fragments_of_two_ports_do_not_mix(stack: Stack) -> None:
    other = Attachment(2)
    first = ether(ipv4(kit.udp(b"a" * 16, FAR, 9)[34:50], 17, FAR, ident=3, fragment=0x2000))
    last = ether(ipv4(b"b" * 8, 17, FAR, src="10.0.2.16", ident=3, fragment=2), src=b"\x02other")
    assert handle(stack, first) == []
    assert handle(stack, last, at=other) == []
    assert len(reassemblers(stack)) == 2


# --- who is where ---------------------------------------------------------------------------------


def test_a_guest_is_met_once(stack: Stack) -> None:
    met: list[bytes] = []
    stack.link.on_guest = lambda guest, now: met.append(guest.addr)
    for frame in (arp(1, GUEST, GATEWAY), udp(b"x", FAR, 9), arp(2, GUEST, GATEWAY)):
        handle(stack, frame)
    handle(stack, arp(1, "10.0.2.16", GATEWAY))
    assert met == [addr(GUEST), addr("10.0.2.16")]


def test_a_guest_is_met_although_its_port_is_full(stack: Stack) -> None:
    """A flood of invented addresses does not keep a forward from finding its guest."""
    for number in range(PORT_MAX + 10):
        handle(stack, arp(1, f"10.0.{3 + number // 250}.{1 + number % 250}", GATEWAY), now=number)
    met: list[bytes] = []
    stack.link.on_guest = lambda guest, now: met.append(guest.addr)
    handle(stack, arp(1, GUEST, GATEWAY), now=1000.0)
    assert met == [addr(GUEST)]
    assert len(stack.guests) == PORT_MAX


def test_a_neighbour_cannot_take_an_address_that_is_in_use(stack: Stack) -> None:
    stack.ports = 2
    thief = Attachment(2)
    handle(stack, arp(1, GUEST, GATEWAY))
    handle(stack, arp(2, GUEST, GATEWAY, sender_mac=b"\x02thief"), at=thief, now=2.0)
    guest = stack.guests.get(addr(GUEST))
    assert guest is not None
    assert (guest.mac, guest.attachment) == (GUEST_MAC, ATTACHMENT)
    frame = udp(b"x", FAR, 9)
    frame = frame[:6] + b"\x02thief" + frame[12:]
    assert not [a for a in handle(stack, frame, at=thief, now=2.0) if not isinstance(a, Switch)]


def test_a_port_that_is_taken_off_is_forgotten(stack: Stack) -> None:
    handle(stack, arp(1, GUEST, GATEWAY))
    handle(stack, ether(ipv4(bytes(64), 17, FAR, ident=3, fragment=0x2000)))
    stack.forget_port(ATTACHMENT)
    assert stack.guests.get(addr(GUEST)) is None
    assert not reassemblers(stack)
    assert stack.poll_at() is None


def test_source_addresses_are_bounded(stack: Stack) -> None:
    """MACs and addresses by the ten thousand leave no more than the tables hold."""
    for number in range(10000):
        mac = b"\x02\0" + number.to_bytes(4, "big")
        handle(stack, arp(1, f"10.0.{number >> 8}.{number & 255}", GATEWAY, sender_mac=mac))
    assert len(stack.guests) <= PORT_MAX
    assert len(stack.switch) <= 4096


# --- two guests -----------------------------------------------------------------------------------


def test_frames_between_guests_are_switched(stack: Stack) -> None:
    stack.ports = 2
    one, two = Attachment(1), Attachment(2)
    mac = b"\x02other"
    frame = ether(ipv4(b"hello", 99, "10.0.2.16"), dst=mac)
    assert only(handle(stack, frame, at=one), Switch).attachment is None, "not seen yet: to all"
    handle(stack, arp(1, "10.0.2.16", GATEWAY, sender_mac=mac), at=two)
    assert only(handle(stack, frame, at=one), Switch).attachment is two
    assert handle(stack, ether(b"x", 0x1234, dst=mac, src=mac), at=two) == [], "to itself"
    broadcast = handle(stack, arp(1, GUEST, GATEWAY), at=one)
    assert {type(action) for action in broadcast} == {Switch, Send}


def test_isolated_guests_do_not_meet(stack: Stack) -> None:
    stack.ports = 2
    stack.isolated = True
    mac = b"\x02other"
    handle(stack, arp(1, "10.0.2.16", GATEWAY, sender_mac=mac), at=Attachment(2))
    assert handle(stack, ether(ipv4(b"hello", 99, "10.0.2.16"), dst=mac)) == []
    assert not [a for a in handle(stack, arp(1, GUEST, GATEWAY)) if isinstance(a, Switch)]


def test_nobody_speaks_to_others_in_the_gateways_name(stack: Stack) -> None:
    stack.ports = 2
    victim = b"\x02victm"
    forged = arp(2, GATEWAY, GUEST, sender_mac=GUEST_MAC)
    assert handle(stack, forged) == []
    assert handle(stack, ether(ipv4(b"x" * 8, 99, "10.0.2.16"), dst=victim, src=OWN_MAC)) == []
    assert stack.refused["forged"] == 2


# --- anything at all ------------------------------------------------------------------------------

GOOD = [
    arp(1, GUEST, GATEWAY),
    tcp(SYN, GATEWAY, 80, options=b"\2\4\5\xb4\1\3\3\7\4\2\1\1"),
    udp(b"data", GATEWAY, 9),
    udp(b"\xab\xcd\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1", DNS, 53),
    udp(bytes(300), "255.255.255.255", 67, src="0.0.0.0", src_port=68),
    icmp(8, 0, 1, b"data", GATEWAY),
    icmp(8, 0, 1, b"data", FAR),
    ether(ipv4(bytes(64), 17, FAR, ident=3, fragment=0x2000)),
    ether(ipv4(bytes(64), 17, FAR, ident=3, fragment=8)),
    ether(ipv4(bytes(20), 6, FAR, options=b"\7\7\4\0\0\0\0\0")),
]


def unharmed(stack: Stack, frame: bytes, vnet: bytes = VNET_NONE) -> None:
    """Nothing is raised; what is sent is right; what is wrong has a name."""
    for action in handle(stack, frame, vnet):
        if isinstance(action, Send) and action.headers[0][12:14] == b"\x08\x00":
            is_right(frame_of(action))
    assert all(isinstance(key, tuple) and len(key) == 2 for key in stack.malformed)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.binary(min_size=10, max_size=10))
def test_any_octets(frame: bytes, vnet: bytes) -> None:
    unharmed(make_stack(), frame, vnet)
    unharmed(make_stack(), OWN_MAC + GUEST_MAC + frame, vnet)


@settings(max_examples=600)
@given(st.sampled_from(GOOD), st.data())
def test_any_octets_changed_in_a_good_frame(frame: bytes, data: st.DataObject) -> None:
    """The sums made right again, so that the change gets further in."""
    stack = make_stack()
    broken = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(len(broken) - 12, len(broken) + 1))]
    if broken[12:14] == b"\x08\x00" and len(broken) >= 34:
        broken[24:26] = b"\0\0"
        broken[24:26] = (0xFFFF ^ kit.internet_sum(bytes(broken[14:34]))).to_bytes(2, "big")
    unharmed(stack, bytes(broken), bytes((data.draw(st.integers(0, 3)),)) + VNET_NONE[1:])


def test_only_malformed_packets_are_caught(stack: Stack) -> None:
    """A mistake of our own is not counted as theirs."""

    def mistaken(*_: object) -> None:
        raise ZeroDivisionError

    stack.link.on_guest = mistaken
    with pytest.raises(ZeroDivisionError):
        handle(stack, arp(1, GUEST, GATEWAY))
    assert not stack.malformed
    assert issubclass(MalformedPacket, Exception)
