"""Filters of captures: on scapy's packets, and beside libpcap's own compiler of pcap-filter."""

from __future__ import annotations

import ctypes
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from slirp.errors import ConfigError
from slirp.sight.filter import DEPTH_MAX, facts_of, parse
from tests.kit.need import missing

A, B, V6 = "10.0.2.15", "192.0.2.7", "2001:db8::7"
PACKETS: dict[str, Packet] = {
    "tcp": IP(src=A, dst=B) / TCP(sport=40000, dport=80),
    "tcp back": IP(src=B, dst=A) / TCP(sport=80, dport=40000),
    "udp": IP(src=A, dst=B) / UDP(sport=80, dport=53) / Raw(b"x"),
    "options": IP(src=A, dst=B, options=b"\1\1\1\0") / TCP(sport=1, dport=443),
    "fragment": IP(src=A, dst=B, frag=100) / UDP(sport=80, dport=53),
    "icmp": IP(src=A, dst=B) / ICMP(),
    "arp": ARP(psrc=A, pdst=B),
    "tcp6": IPv6(src="fd00::1", dst=V6) / TCP(sport=40000, dport=80),
    "echo6": IPv6(src="fd00::1", dst=V6) / ICMPv6EchoRequest(),
}
FRAMES = {name: bytes(Ether(dst="02:00:00:00:00:01") / packet) for name, packet in PACKETS.items()}


def found(text: str) -> set[str]:
    wanted = parse(text)
    return {name for name, frame in FRAMES.items() if wanted(facts_of(frame, ethernet=True))}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set(FRAMES)),
        ("arp", {"arp"}),
        ("ip6", {"tcp6", "echo6"}),
        ("tcp", {"tcp", "tcp back", "options", "tcp6"}),
        ("port 80", {"tcp", "tcp back", "udp", "tcp6"}),
        ("tcp port 80", {"tcp", "tcp back", "tcp6"}),
        ("tcp dst port 80", {"tcp", "tcp6"}),
        ("src port 80", {"tcp back", "udp"}),
        ("not ip and not ip6", {"arp"}),
        ("icmp or icmp6", {"icmp", "echo6"}),
        (f"src host {B}", {"tcp back"}),
        (f"host {V6}", {"tcp6", "echo6"}),
        ("src net 192.0.2.0/24", {"tcp back"}),
        ("dst net 2001:db8::/32 and tcp", {"tcp6"}),
        ("icmp or udp and port 53", {"udp"}),  # from the left, as pcap-filter has it
        ("icmp or (udp and port 53)", {"icmp", "udp"}),
        ("! (tcp || udp) && ip", {"icmp"}),
        ("TCP PORT 443", {"options"}),
    ],
)
def test_packets_are_found(text: str, names: set[str]) -> None:
    assert found(text) == names


def test_packets_without_ethernet() -> None:
    wanted = parse(f"tcp port 80 and host {B}")
    assert wanted(facts_of(bytes(PACKETS["tcp"]), ethernet=False))
    assert not wanted(facts_of(bytes(PACKETS["udp"]), ethernet=False))
    assert not parse("ip")(facts_of(b"", ethernet=False))


def test_behind_extension_headers() -> None:
    inside = TCP(sport=1, dport=80)
    whole = IPv6(src="fd00::1", dst=V6) / IPv6ExtHdrDestOpt() / inside
    first = IPv6(src="fd00::1", dst=V6) / IPv6ExtHdrFragment(m=1) / inside
    later = IPv6(src="fd00::1", dst=V6) / IPv6ExtHdrFragment(offset=9, nh=6) / Raw(bytes(inside))
    wanted = parse("tcp port 80")
    assert [wanted(facts_of(bytes(p), ethernet=False)) for p in (whole, first, later)] == [
        *(True, True, False)
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("tcp and", "the end"),
        ("port", "a port is missing"),
        ("port x", "no port"),
        ("port 65536", "no port"),
        ("port ²", "no port"),
        ("host example.org", "example.org"),
        ("net 10.0.2.1/24", "host bits"),
        ("src", "the end"),
        ("(tcp", ") is missing"),
        ("tcp)", "is not expected"),
        ("tcp udp", "is not expected"),
        ("bogus", "bogus"),
        ("(" * (DEPTH_MAX + 2), "deep"),
        ("not " * (DEPTH_MAX + 2) + "tcp", "deep"),
        ("tcp or " * 2000 + "tcp", "letters"),
    ],
)
def test_what_is_no_filter(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match="filter") as caught:
        parse(text)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


WORDS = [
    "tcp",
    "udp",
    "and",
    "or",
    "not",
    "(",
    ")",
    "host",
    "net",
    "port",
    "src",
    "80",
    A,
    "x",
    "é",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=40))
def test_text_is_a_filter_or_refused(text: str) -> None:
    try:
        wanted = parse(text)
    except ConfigError:
        return
    for frame in FRAMES.values():
        assert isinstance(wanted(facts_of(frame, ethernet=True)), bool)


@given(st.binary(max_size=100) | st.sampled_from(list(FRAMES.values())).flatmap(
    lambda frame: st.integers(0, len(frame)).map(lambda size: frame[:size])))  # fmt: skip
def test_no_packet_raises(octets: bytes) -> None:
    facts_of(octets, ethernet=True)
    facts_of(octets, ethernet=False)


def an_expression(draw: random.Random, depth: int) -> str:
    if depth and draw.random() < 0.7:
        left, right = an_expression(draw, depth - 1), an_expression(draw, depth - 1)
        joined = f"{left} {draw.choice(['and', 'or'])} {right}"
        return draw.choice([joined, f"({joined})", f"not ({joined})"])
    side = draw.choice(["", "src ", "dst "])
    return draw.choice(
        [
            "ip", "arp", "tcp", "udp", "icmp", "ip6", f"{side}host {A}", f"{side}host {V6}",
            f"ip and {side}net 192.0.2.0/24", f"ip and tcp {side}port 80", f"ip and {side}port 53",
        ]
    )  # fmt: skip


class Bpf(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("code", ctypes.c_void_p))


class PacketHeader(ctypes.Structure):
    """pcap/pcap.h: a timeval, and the lengths that were kept and that were there."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("kept", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


def libpcap() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libpcap.so.0.8")
    except OSError:
        missing("libpcap is not installed")
    library.pcap_open_dead.restype = ctypes.c_void_p
    return library


def test_as_libpcap_has_it() -> None:
    library, draw = libpcap(), random.Random(7)
    handle = ctypes.c_void_p(library.pcap_open_dead(1, 65535))
    frames = {
        name: frame for name, frame in FRAMES.items() if name != "arp"
    }  # `host` finds it there
    for _ in range(300):
        text = an_expression(draw, 3)
        program = Bpf()
        compiled = library.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, 0xFFFFFFFF)
        theirs = set()
        for name, frame in frames.items() if not compiled else ():  # else: rejects all packets
            header = PacketHeader(0, 0, len(frame), len(frame))
            if library.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), frame):
                theirs.add(name)
        library.pcap_freecode(ctypes.byref(program))
        assert found(text) - {"arp"} == theirs, text
    library.pcap_close(handle)
