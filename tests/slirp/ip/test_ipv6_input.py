"""IPv6's way in: frames as scapy makes them, what comes of them as scapy reads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
    fragment6,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults
from slirp.address import addr_from_text, mac_to_text
from slirp.config import Config
from slirp.ip.ipv6_fragments import TIMEOUT
from slirp.ip.packet import DnsArrived, EchoArrived, Send, TcpArrived, UdpArrived
from slirp.stack import Action, Stack, Switch
from tests.kit.cuts import cut, views

GUEST, OTHER, FAR = "fd00::100", "fd00::101", "2001:db8::1"
GATEWAY, ROUTER, DNS = "fd00::2", "fe80::2", "fd00::3"
MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
OWN_MAC = mac_to_text(Config().mac_addr)


class Attachment:
    """As much of a port as the stack looks at."""

    def __init__(self) -> None:
        self.port = PortDefaults()
        self.unlabelled = False


ATTACHMENT, OTHER_PORT = Attachment(), Attachment()


def fresh(**fields: Any) -> Stack:
    made = Stack(Config(**fields))
    made.ports = 1
    return made


@pytest.fixture
def stack() -> Stack:
    return fresh()


def frame(packet: Packet, *, to: str = OWN_MAC, src: str = MAC) -> bytes:
    return bytes(Ether(src=src, dst=to, type=0x86DD) / packet)


def handle(
    stack: Stack, octets: bytes | IoVec | Packet, *, at: Attachment = ATTACHMENT, now: float = 1.0
) -> list[Action]:
    if isinstance(octets, Packet):
        octets = frame(octets)
    iov = octets if isinstance(octets, IoVec) else IoVec.of(octets)
    return stack.handle_frame(Frame(iov, VNET_NONE), at, now)


def sent(actions: Sequence[Action]) -> Packet:
    """The one frame that goes back, its sums right."""
    (action,) = actions
    assert isinstance(action, Send)
    octets = b"".join((*action.headers, bytes(action.payload)))
    packet = Ether(octets)
    message = octets[54:]
    assert in6_chksum(58, packet[IPv6], message) == 0, "RFC 4443 §2.3"
    assert packet[IPv6].plen == len(message)
    return packet


def ip(dst: str = FAR, **fields: Any) -> Packet:
    return IPv6(**({"src": GUEST, "dst": dst} | fields))


# What packets lead to


def test_a_datagram_for_the_world(stack: Stack) -> None:
    (action,) = handle(stack, ip(hlim=9) / UDP(sport=1025, dport=53) / b"hello")
    assert isinstance(action, UdpArrived)
    assert (action.guest.addr, action.src_port) == (addr_from_text(GUEST), 1025)
    assert (action.dst, action.dst_port, action.ttl) == (addr_from_text(FAR), 53, 8)
    assert bytes(action.payload) == b"hello"
    assert action.dont_fragment, "nobody cuts it on its way"


def test_a_syn_a_question_and_an_echo(stack: Stack) -> None:
    (syn,) = handle(stack, ip() / TCP(sport=1025, dport=80, flags="S"))
    assert isinstance(syn, TcpArrived)
    assert syn.key == b"".join(map(addr_from_text, (GUEST, FAR))) + b"\x04\x01\0\x50"
    (question,) = handle(stack, ip(DNS) / UDP(sport=1025, dport=53) / b"?")
    assert isinstance(question, DnsArrived)
    (echo,) = handle(stack, ip() / ICMPv6EchoRequest(id=7, seq=9, data=b"x"))
    assert isinstance(echo, EchoArrived)
    assert (echo.ident, echo.sequence, bytes(echo.payload)) == (7, 9, b"x")


@pytest.mark.parametrize("addr", [GATEWAY, ROUTER, DNS])
def test_the_networks_own_addresses_answer_echo(stack: Stack, addr: str) -> None:
    reply = sent(handle(stack, ip(addr) / ICMPv6EchoRequest(id=7, seq=9, data=b"x" * 99)))
    assert (reply[IPv6].src, reply[IPv6].dst, reply.dst) == (addr, GUEST, MAC)
    message = reply[ICMPv6EchoReply]
    assert (message.id, message.seq, bytes(message.data)) == (7, 9, b"x" * 99)


def test_where_the_hop_limit_ends(stack: Stack) -> None:
    told = sent(handle(stack, ip(hlim=1) / UDP(dport=33434) / b"traceroute"))
    assert (told[IPv6].src, told[ICMPv6TimeExceeded].code) == (GATEWAY, 0)
    assert handle(stack, ip(GATEWAY, hlim=1) / ICMPv6EchoRequest()), "it has arrived"


def test_an_unknown_protocol_is_pointed_at(stack: Stack) -> None:
    told = sent(handle(stack, ip() / IPv6ExtHdrDestOpt(nh=253) / Raw(b"12345678")))
    assert (told[ICMPv6ParamProblem].code, told[ICMPv6ParamProblem].ptr) == (1, 40)
    told = sent(handle(stack, ip(nh=253) / Raw(b"12345678")))
    assert (told[ICMPv6ParamProblem].code, told[ICMPv6ParamProblem].ptr) == (1, 6)
    assert handle(stack, ip(nh=59) / Raw(b"nothing")) == []


def test_no_such_host_and_martians(stack: Stack) -> None:
    told = sent(handle(stack, ip(OTHER) / UDP(dport=9) / b"x"))
    assert (told[ICMPv6DestUnreach].code, stack.refused["no such host on the network"]) == (3, 1)
    for dst in ("::1", "::", "ff0e::1", "::ffff:10.0.2.2"):
        assert handle(stack, ip(dst) / UDP(dport=9) / b"x") == []


@pytest.mark.parametrize("src", ["ff02::1", "::1", GATEWAY, ROUTER])
def test_a_source_that_no_guest_can_have(stack: Stack, src: str) -> None:
    assert handle(stack, ip(src=src) / UDP(dport=9) / b"x") == []
    assert stack.malformed["ipv6", "source that no guest can have"] == 1


def test_a_checksum_that_is_wrong_or_missing(stack: Stack) -> None:
    for wrong in (UDP(chksum=1), UDP(chksum=0), TCP(chksum=1), ICMPv6EchoRequest(cksum=1)):
        assert handle(stack, ip() / wrong / b"x") == []
    assert sum(stack.malformed.values()) == 4


# Extension headers


def test_past_extension_headers(stack: Stack) -> None:
    packet = (
        ip()
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrRouting(segleft=0, addresses=[])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
        / UDP(sport=1, dport=2)
        / b"data"
    )
    (action,) = handle(stack, packet)
    assert isinstance(action, UdpArrived)
    assert bytes(action.payload) == b"data"


@pytest.mark.parametrize(
    ("option", "dst", "link", "told"),
    [
        (0x1E, FAR, OWN_MAC, None), (0x5E, FAR, OWN_MAC, False), (0x9E, FAR, OWN_MAC, True),
        (0xDE, FAR, OWN_MAC, True), (0x9E, "ff02::1", "33:33:00:00:00:01", True),
        (0xDE, "ff02::1", "33:33:00:00:00:01", False),
    ],
)  # fmt: skip
def test_an_option_that_nobody_knows(
    stack: Stack, option: int, dst: str, link: str, told: bool | None
) -> None:
    """RFC 8200 §4.2: passed over, dropped, or pointed at, even for a group."""
    unknown = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=option, optdata=b"1234")])
    actions = handle(stack, frame(ip(dst) / unknown / UDP(dport=9) / b"x", to=link))
    if told is None:
        assert isinstance(actions[0], UdpArrived)
    elif told:
        problem = sent(actions)[ICMPv6ParamProblem]
        assert (problem.code, problem.ptr) == (2, 42)
    else:
        assert actions == []


def test_a_jumbogram_is_refused(stack: Stack) -> None:
    packet = ip(plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)]) / UDP() / b"x"
    assert handle(stack, packet) == []
    assert sum(stack.malformed.values()) == 1


# Fragments


def pieces(size: int = 4000, data: bytes | None = None) -> list[Packet]:
    body = data if data is not None else bytes(n & 0xFF for n in range(size))
    whole = ip() / IPv6ExtHdrFragment(id=77) / UDP(sport=1, dport=2) / Raw(body)
    whole = IPv6(bytes(whole))
    return list(fragment6(whole, 1500))


def test_fragments_in_any_order(stack: Stack) -> None:
    parts = pieces()
    random.Random(1).shuffle(parts)
    *others, last = (handle(stack, part) for part in parts)
    assert not any(others)
    (action,) = last
    assert isinstance(action, UdpArrived)
    assert bytes(action.payload) == bytes(n & 0xFF for n in range(4000))
    assert not action.dont_fragment, "its sender cut it, and so may others"


def test_an_atomic_fragment_meets_no_other(stack: Stack) -> None:
    """RFC 6946: not even of its own identification."""
    first, *_ = pieces()
    assert handle(stack, first) == []
    atomic = ip() / IPv6ExtHdrFragment(id=77) / UDP(sport=1, dport=2) / Raw(b"alone")
    (action,) = handle(stack, atomic)
    assert isinstance(action, UdpArrived)
    assert bytes(action.payload) == b"alone"


def test_overlapping_fragments_drop_the_datagram(stack: Stack) -> None:
    """RFC 5722: it, and all that comes of it later."""
    first, *rest = pieces()
    handle(stack, first)
    over = ip() / IPv6ExtHdrFragment(id=77, offset=10, m=1, nh=17) / Raw(bytes(64))
    assert handle(stack, over) == []
    assert stack.malformed["ipv6", "overlapping fragments"] == 1
    assert not any(handle(stack, part) for part in rest)


@pytest.mark.parametrize(
    ("fragment", "size", "code", "pointer"),
    [
        ({"offset": 0, "m": 1}, 65, 0, 4),
        ({"offset": 8191, "m": 0}, 64, 0, 42),
        ({"offset": 0, "m": 1, "nh": 6}, 8, 3, 0),
        ({"offset": 0, "m": 1, "nh": 60}, 8, 3, 0),
    ],
)
def test_fragments_that_cannot_be(
    stack: Stack, fragment: dict[str, int], size: int, code: int, pointer: int
) -> None:
    payload = b"\x11\x01" + bytes(size - 2)
    packet = ip() / IPv6ExtHdrFragment(**({"nh": 17, "id": 5} | fragment)) / Raw(payload)
    problem = sent(handle(stack, packet))[ICMPv6ParamProblem]
    assert (problem.code, problem.ptr) == (code, pointer)


def test_a_fragment_of_a_fragment(stack: Stack) -> None:
    inner = IPv6ExtHdrFragment(id=2, nh=17) / UDP(dport=2) / Raw(b"x")
    assert handle(stack, ip() / IPv6ExtHdrFragment(id=1) / inner) == []
    assert stack.malformed["ipv6", "fragment of a fragment"] == 1


def test_an_incomplete_datagram_is_told_of(stack: Stack) -> None:
    first, *_ = pieces()
    handle(stack, first)
    assert stack.poll_at() == 1.0 + TIMEOUT
    assert stack.handle_timeout(0.5 + TIMEOUT) == []
    told = sent(stack.handle_timeout(1.0 + TIMEOUT))
    assert told[ICMPv6TimeExceeded].code == 1
    assert bytes(first)[:60] in bytes(told)
    assert stack.poll_at() is None


def test_fragments_of_two_ports_do_not_mix(stack: Stack) -> None:
    first, *rest = pieces()
    handle(stack, first)
    assert not any(handle(stack, part, at=OTHER_PORT) for part in rest)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 200)), st.data())
def test_segment_boundaries_are_invisible(at: list[int], data: st.DataObject) -> None:
    flat = frame(ip() / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2) / Raw(bytes(100))) + b"pad"
    (action,) = handle(
        fresh(), IoVec.of(*(data.draw(views(piece)) for piece in cut(flat, at) if piece))
    )
    assert isinstance(action, UdpArrived)
    assert bytes(action.payload) == bytes(100)


# Neighbours


def solicitation(target: str, src: str = GUEST, mac: str | None = MAC, **fields: Any) -> Packet:
    last = addr_from_text(target)[13:].hex()
    group = f"ff02::1:ff{last[:2]}:{last[2:]}"
    message = IPv6(**({"src": src, "dst": group, "hlim": 255} | fields)) / ICMPv6ND_NS(tgt=target)
    return message / ICMPv6NDOptSrcLLAddr(lladdr=mac) if mac else message


@pytest.mark.parametrize("addr", [GATEWAY, ROUTER, DNS])
def test_who_has_one_of_ours(stack: Stack, addr: str) -> None:
    reply = sent(handle(stack, frame(solicitation(addr), to="33:33:ff:00:00:02")))
    answer = reply[ICMPv6ND_NA]
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == (addr, GUEST, 255)
    assert (answer.tgt, answer.R, answer.S, answer.O) == (addr, 1, 1, 1)
    assert (reply[ICMPv6NDOptDstLLAddr].lladdr, reply.dst) == (OWN_MAC, MAC)
    guest = stack.guests.get(addr_from_text(GUEST))
    assert guest is not None
    assert mac_to_text(guest.mac) == MAC


def test_an_address_of_ours_is_taken(stack: Stack) -> None:
    """RFC 4862 §5.4: everybody is told, since who asks has no address yet."""
    probe = solicitation(GATEWAY, src="::", mac=None)
    reply = sent(handle(stack, frame(probe, to="33:33:ff:00:00:02")))
    assert (reply[IPv6].dst, reply.dst, reply[ICMPv6ND_NA].S) == ("ff02::1", "33:33:00:00:00:01", 0)
    assert handle(stack, solicitation(GUEST, src="::", mac=None)) == [], "theirs to have"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (solicitation(GATEWAY, hlim=254), "hop limit"),
        (solicitation(GATEWAY, src="::"), "probe for an address"),
        (solicitation(GATEWAY, src="::", mac=None, dst=GATEWAY), "probe for an address"),
        (
            ip("ff02::1", hlim=255) / ICMPv6ND_NA(tgt=GUEST, S=1, R=0),
            "answer to nobody's question",
        ),
        (solicitation("ff02::2"), "target is a group address"),
    ],
)
def test_discovery_that_is_not_believed(stack: Stack, packet: Packet, reason: str) -> None:
    assert handle(stack, packet) == []
    assert stack.malformed["ndp", reason] == 1


def test_discovery_in_fragments_is_not_believed(stack: Stack) -> None:
    message = bytes(solicitation(GATEWAY))
    wrapped = IPv6(src=GUEST, dst=GATEWAY, hlim=255) / IPv6ExtHdrFragment(nh=58, id=9)
    assert handle(stack, wrapped / Raw(message[40:])) == []
    assert sum(stack.malformed.values()) == 1


def test_an_advertisement_is_believed_of_ones_own_address_only(stack: Stack) -> None:
    stack.ports = 2
    handle(stack, ip() / UDP(dport=9) / b"x")
    claim = IPv6(src=OTHER, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=GUEST, S=0, R=0)
    claim = claim / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC)
    octets = frame(claim, to="33:33:00:00:00:01", src=OTHER_MAC)
    assert handle(stack, octets, at=OTHER_PORT) == [], "nor does it reach the other guest"
    assert stack.refused["forged"] == 1
    guest = stack.guests.get(addr_from_text(GUEST))
    assert guest is not None
    assert (guest.attachment, mac_to_text(guest.mac)) == (ATTACHMENT, MAC)
    own = IPv6(src=OTHER, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=OTHER, S=0, R=0)
    (passed,) = handle(stack, frame(own, to="33:33:00:00:00:01", src=OTHER_MAC), at=OTHER_PORT)
    assert isinstance(passed, Switch)


RA = ICMPv6ND_RA(routerlifetime=1800)


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(src="fe80::9", dst="ff02::1", hlim=255) / RA,
        IPv6(src="fe80::9", dst="ff02::1", hlim=255) / IPv6ExtHdrDestOpt() / RA,
        IPv6(src="fe80::9", dst="ff02::1", hlim=255) / IPv6ExtHdrFragment(m=1) / RA,
        IPv6(src="fe80::9", dst="ff02::1") / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 200)]),
        IPv6(src="fe80::9", dst="ff02::1") / IPv6ExtHdrFragment(m=1, nh=60) / Raw(b"\x3a\x01" * 4),
        IPv6(src="fe80::9", dst="ff02::1", hlim=255) / ICMPv6ND_Redirect(tgt="fe80::9", dst=FAR),
        IPv6(src="fe80::9", dst="ff02::1:2") / UDP(sport=547, dport=546) / b"reply",
        IPv6(src=GATEWAY, dst=OTHER) / UDP(dport=9) / b"x",
        IPv6(src=ROUTER, dst=OTHER, hlim=255) / ICMPv6ND_NA(tgt=OTHER),
        IPv6(src=OTHER, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=GATEWAY),
    ],
)
def test_what_no_guest_may_say_to_others(stack: Stack, packet: Packet) -> None:
    stack.ports = 2
    actions = handle(stack, frame(packet, to="33:33:00:00:00:01"))
    assert not any(isinstance(action, Switch) for action in actions)
    assert stack.refused["forged"] == 1


def test_what_guests_may_say_to_others(stack: Stack) -> None:
    stack.ports = 2
    for packet in (solicitation(OTHER), ip("ff02::16", hlim=1) / ICMPv6MLReport2(), *pieces()[1:]):
        (action,) = handle(stack, frame(packet, to="33:33:00:00:00:16"))[:1]
        assert isinstance(action, Switch)


def test_group_reports_are_read_over(stack: Stack) -> None:
    report = IPv6(src="fe80::9", dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop() / ICMPv6MLReport2()
    assert handle(stack, frame(report, to="33:33:00:00:00:16")) == []
    assert not stack.malformed
    assert not stack.refused


def test_the_question_for_a_guests_address(stack: Stack) -> None:
    octets = b"".join(stack.solicit(addr_from_text(GUEST)))
    asked = Ether(octets)
    assert (asked.dst, asked[IPv6].dst) == ("33:33:ff:00:01:00", "ff02::1:ff00:100")
    assert (asked[IPv6].src, asked[ICMPv6ND_NS].tgt) == (GATEWAY, GUEST)
    assert asked[ICMPv6NDOptSrcLLAddr].lladdr == OWN_MAC
    local = Ether(b"".join(stack.solicit(addr_from_text("fe80::9"))))
    assert local[IPv6].src == ROUTER, "of the scope of what is asked for"


# Two families, or one


def test_a_family_that_the_network_does_not_speak() -> None:
    four = Ether(src=MAC, dst=OWN_MAC) / IP(src="10.0.2.15", dst="10.0.2.2") / ICMP()
    six = Ether(src=MAC, dst=OWN_MAC) / ip(GATEWAY) / ICMPv6EchoRequest()
    for made, served, not_served in (
        (fresh(ipv4_only=True), four, six),
        (fresh(ipv6_only=True), six, four),
        (fresh(mtu=1279), four, six),
    ):
        assert handle(made, bytes(served))
        assert handle(made, bytes(not_served)) == []
        assert made.refused["ethertype"] == 1


def test_a_message_too_big_tells_the_mtu(stack: Stack) -> None:
    handle(stack, ip() / UDP(dport=9) / b"x")
    layer = stack.layer(addr_from_text(FAR))
    guest = stack.guests.get(addr_from_text(GUEST))
    assert guest is not None
    told = layer.pass_on_error(
        guest, addr_from_text(FAR), 2, 0, 1400, 17, addr_from_text(FAR), b"x"
    )
    assert sent(told)[ICMPv6PacketTooBig].mtu == 1400
