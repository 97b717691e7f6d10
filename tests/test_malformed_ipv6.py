"""Hostile IPv6, row by row, through a whole network, as tests/test_malformed.py has IPv4's.

Frames are scapy's, or bytes where scapy would put them right. Around each case a TCP connection and
a UDP flow of IPv4 stay open; afterwards an IPv6 echo is answered.

Does not do: what the layer alone shows (tests/slirp/ip/test_ipv6_input.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from slirp.address import mac_to_text
from slirp.ip.reassembly import MEMORY_MAX
from slirp.wire.ipv6 import EXTENSIONS_MAX, OPTIONS_MAX
from tests.kit.echo import EchoServer
from tests.kit.guest import GUEST_MAC, OWN_MAC, Lab
from tests.kit.port import POISON, SPENT
from tests.test_malformed import Around

GUEST, GATEWAY, RESOLVER, OUTSIDE = "fd00::100", "fd00::2", "fd00::3", "2001:db8::1"
MAC = mac_to_text(GUEST_MAC)


def frame(packet: Packet | bytes, to: str = mac_to_text(OWN_MAC)) -> bytes:
    return bytes(Ether(src=MAC, dst=to, type=0x86DD) / packet)


def ip(dst: str = GATEWAY, **fields: Any) -> Packet:
    return IPv6(**({"src": GUEST, "dst": dst} | fields))


def header(size: int, protocol: int, version: int = 6, dst: str = GATEWAY) -> bytes:
    """A header that says what it is told to."""
    made = bytearray(bytes(ip(dst)))
    made[0] = version << 4
    made[4:7] = struct.pack("!HB", size, protocol)
    return bytes(made)


def sealed(octets: bytes) -> bytes:
    """An ICMPv6 packet of any bytes, with the checksum right."""
    bare = octets[:42] + b"\0\0" + octets[44:]
    total: int = in6_chksum(58, IPv6(octets[:40]), bare[40:])
    return octets[:42] + total.to_bytes(2, "big") + octets[44:]


class Case(NamedTuple):
    """What a guest sends, and what the network says it was."""

    name: str
    frames: list[bytes]
    malformed: dict[str, int]
    refused: dict[str, int]
    replies: list[type[Packet]]


def bad(name: str, *packets: Packet | bytes, why: str) -> Case:
    return Case(name, [frame(p) for p in packets], {why: len(packets)}, {}, [])


def led_nowhere(name: str, *packets: Packet | bytes, why: str) -> Case:
    return Case(name, [frame(p) for p in packets], {}, {why: len(packets)}, [])


def problem(name: str, *packets: Packet | bytes) -> Case:
    """Each is answered by a Parameter Problem."""
    count = {"parameter problem": len(packets)}
    return Case(name, [frame(p) for p in packets], {}, count, [ICMPv6ParamProblem] * len(packets))


def harmless(name: str, *packets: Packet | bytes, replies: tuple[type[Packet], ...] = ()) -> Case:
    return Case(name, [frame(p) for p in packets], {}, {}, list(replies))


ECHO = ICMPv6EchoRequest(id=7, seq=1, data=b"echo")
TRAILED = bytes(ip() / ECHO) + b"secret trailer"


def solicitation(*options: bytes, **fields: Any) -> bytes:
    """With options of any bytes."""
    message = bytes(ICMPv6ND_NS(tgt=GATEWAY)) + b"".join(options)
    around = ip(**({"hlim": 255, "nh": 58, "plen": len(message)} | fields))
    return sealed(bytes(around) + message)


CASES = [
    bad("a cut header", *(bytes(ip())[:n] for n in (0, 1, 39)), why="ipv6: truncated"),
    bad("version 4 and 0 under 0x86dd", header(0, 59, 4), header(0, 59, 0), why="ipv6: version"),
    bad(
        "CVE-2020-10756: echo longer than its frame",
        header(64, 58) + bytes(ECHO), header(65535, 58) + bytes(ECHO),
        why="ipv6: payload length beyond the frame",
    ),
    bad(
        "CVE-2021-3593: UDP with 0 to 7 bytes",
        *(header(n, 17) + bytes(n) for n in range(8)),
        why="udp: truncated",
    ),
    bad("TCP of 0 to 19 bytes", *(header(n, 6) + bytes(n) for n in (0, 19)), why="tcp: truncated"),
    bad("ICMPv6 cut short", *(header(n, 58) + bytes(n) for n in (0, 7)), why="icmpv6: truncated"),
    harmless("bytes behind the payload length", TRAILED, replies=(ICMPv6EchoReply,)),
    bad("UDP without checksum", ip() / UDP(dport=9, chksum=0) / b"x", why="udp: no checksum"),
    bad(
        "ICMPv6 with a wrong checksum",
        ip() / ICMPv6EchoRequest(cksum=1),
        why="icmpv6: checksum",
    ),
    bad(
        "jumbogram",
        ip(plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70000)]) / Raw(bytes(100)),
        why="ipv6: extension header truncated",
    ),
    bad(
        "jumbo option where a length is given",
        ip() / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=9)]) / ECHO,
        why="ipv6: jumbogram",
    ),
    harmless("no next header", ip(nh=59) / Raw(b"anything")),
    problem("unknown next headers", *(ip(nh=n) / Raw(bytes(8)) for n in (132, 253, 47))),
    problem("hop-by-hop not first", ip() / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / ECHO),
    problem("a route with segments left", ip() / IPv6ExtHdrRouting(addresses=[OUTSIDE]) / ECHO),
    problem(
        "an option that is to be told of",
        ip() / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x80, optdata=b"x")]) / ECHO,
    ),
    bad(
        "an extension header longer than its packet",
        bytes(ip(nh=60, plen=8)) + b"\x3a\xff" + bytes(6),
        bytes(ip(nh=60, plen=4)) + bytes(4),
        bytes(ip(nh=44, plen=7)) + bytes(7),
        why="ipv6: extension header truncated",
    ),
    bad(
        "options that run over",
        bytes(ip(nh=60, plen=8)) + b"\x3b\0" + b"\x1e\x07" + bytes(4),
        bytes(ip(nh=60, plen=8)) + b"\x3b\0" + b"\1\2\0\0" + b"\0\x1e",
        why="ipv6: option runs past its header",
    ),
    bad(
        "headers without end",
        ip(nh=60, plen=8 * 4 * EXTENSIONS_MAX) / Raw(b"\x3c\0\1\4\0\0\0\0" * 4 * EXTENSIONS_MAX),
        why="ipv6: too many extension headers",
    ),
    bad(
        "options without end",
        bytes(ip(nh=60, plen=16 + OPTIONS_MAX)) + b"\x3b" + bytes((1 + OPTIONS_MAX // 8,))
        + bytes(14 + OPTIONS_MAX),
        why="ipv6: too many options",
    ),
    bad(
        "CVE: NDP option of length 0, or cut",
        solicitation(b"\1\0" + bytes(6)), solicitation(b"\1\2" + bytes(6)), solicitation(b"\1"),
        why="ndp: option length",
    ),
    bad("NDP from further away", solicitation(hlim=64), why="ndp: hop limit"),
    bad(
        "solicitation for a group",
        ip(hlim=255) / ICMPv6ND_NS(tgt="ff02::1"),
        why="ndp: target is a group address",
    ),
    bad(
        "router solicitation of nobody that names a station",
        IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
        why="ndp: link-layer address of nobody",
    ),
    led_nowhere(
        "errors about what was never sent",
        *(ip() / e / Raw(bytes(60)) for e in (ICMPv6DestUnreach(), ICMPv6PacketTooBig(mtu=1))),
        ip() / ICMPv6PacketTooBig(mtu=0),
        why="icmpv6 type",
    ),
]  # fmt: skip


def replies_of(lab: Lab) -> list[Packet]:
    """What came, its sums right, without a stale byte."""
    found = []
    for octets in lab.guest.inbox:
        assert bytes((POISON,)) * 4 not in octets
        assert bytes((SPENT,)) * 4 not in octets
        packet = Ether(octets)
        if IPv6 in packet:
            assert packet[IPv6].plen == len(octets) - 54
            if packet[IPv6].nh in (6, 17, 58):
                assert in6_chksum(packet[IPv6].nh, packet[IPv6], octets[54:]) == 0
            found.append(packet)
    lab.guest.inbox.clear()
    return found


def greet(lab: Lab) -> None:
    """The network knows the guest, and answers it."""
    lab.guest.give(frame(ip() / ECHO))
    lab.turn()
    (reply,) = replies_of(lab)
    assert reply[ICMPv6EchoReply].data == b"echo"


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {why: n - before.get(why, 0) for why, n in after.items() if n != before.get(why, 0)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_packet(case: Case) -> None:
    with EchoServer() as echo, Lab() as lab:
        around = Around(lab, echo)
        greet(lab)
        before = lab.malformed(), lab.refused()
        for octets in case.frames:
            lab.guest.give(octets)
        lab.turn()
        replies = replies_of(lab)
        assert difference(before[0], lab.malformed()) == case.malformed
        assert difference(before[1], lab.refused()) == case.refused
        assert len(replies) == len(case.replies)
        for reply, kind in zip(replies, case.replies, strict=True):
            assert kind in reply
            assert b"secret" not in bytes(reply)
        greet(lab)
        around.check()


@pytest.mark.parametrize("src", ["::", "ff02::9", "::1", GATEWAY, "fe80::2", RESOLVER])
@pytest.mark.parametrize(
    "make",
    [
        lambda ip: ip / TCP(dport=9, flags="S"),
        lambda ip: ip / UDP(dport=9) / b"x",
        lambda ip: ip / UDP(dport=53) / DNS(qd=DNSQR(qname="host.slirp.internal")),
        lambda ip: ip / ECHO,
    ],
)
def test_nobody_speaks_under_such_a_source(src: str, make: Callable[[Packet], Packet]) -> None:
    """Nothing goes out for it, nothing comes back, and whose address it is stays as it was."""
    with Lab() as lab:
        greet(lab)
        for dst in (GATEWAY, RESOLVER):
            lab.guest.give(frame(make(IPv6(src=src, dst=dst))))
        lab.turn()
        assert replies_of(lab) == []
        assert not lab.network.flows()
        assert sum(lab.malformed().values()) + sum(lab.refused().values()) == 2
        greet(lab)


def test_thousands_of_first_fragments_are_bounded() -> None:
    with EchoServer() as echo, Lab() as lab:
        around = Around(lab, echo)
        greet(lab)
        for number in range(3000):
            piece = ip() / IPv6ExtHdrFragment(m=1, id=number, nh=17) / Raw(bytes(1400))
            lab.guest.give(frame(piece))
        lab.turn()
        inputs = lab.network._stack.inputs
        held = [r for i in inputs for r in getattr(i, "reassemblers", {}).values()]
        assert 0 < sum(reassembler.memory for reassembler in held) <= MEMORY_MAX
        greet(lab)
        around.check()


OTHER, OTHER_MAC = "fd00::101", bytes.fromhex("52540012 3457")
FORGED = [
    ICMPv6ND_RA(routerlifetime=1800),
    ICMPv6ND_NA(tgt=GATEWAY, O=1, R=1, S=0),
    ICMPv6ND_NA(tgt=RESOLVER, O=1, R=0, S=0),
    ICMPv6ND_NA(tgt=OTHER, O=1, R=0, S=0),
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("to", ["ff02::1", OTHER])
def test_forged_advertisements_reach_and_move_nobody(forged: Packet, to: str) -> None:
    with Lab() as lab:
        other = lab.add_guest("10.0.2.16", OTHER_MAC)
        greet(lab)
        theirs = Ether(src=mac_to_text(OTHER_MAC), dst=mac_to_text(OWN_MAC))
        other.give(bytes(theirs / IPv6(src=OTHER, dst=GATEWAY) / ECHO))
        lab.turn()
        other.inbox.clear()
        station = "33:33:00:00:00:01" if to == "ff02::1" else mac_to_text(OTHER_MAC)
        lab.guest.give(frame(IPv6(src=GUEST, dst=to, hlim=255) / forged, station))
        lab.turn()
        assert other.inbox == []
        other.give(bytes(theirs / IPv6(src=OTHER, dst=GATEWAY) / ECHO))
        lab.turn()
        (answer,) = other.inbox
        assert answer[:6] == OTHER_MAC
        lab.guest.give(frame(ip(OTHER) / ECHO, mac_to_text(OTHER_MAC)))
        lab.turn()
        assert len(other.inbox) == 2, "what they may say to each other passes"
