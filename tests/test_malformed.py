"""Published attacks and hostile input, row by row, through a whole network.

Each case is what a guest sends, and how it is counted. Around it a TCP connection and a UDP flow to
the host's loopback stay open: they work before, and they work afterwards. The oracle is the same
for all of them: nothing is raised, the counters say what was wrong and nothing else, and no reply
holds a byte that the guest did not send itself (the port poisons claims, and overwrites frames
that were released).

Names say where a case comes from: a CVE of other user-mode networks, or the protocol it breaks.

Does not do: IPv6 and the framing of stream sockets, which have files of their own.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from typing import Any, NamedTuple

import pytest

from tests.kit.echo import EchoServer
from tests.kit.guest import (
    ACK,
    BROADCAST_MAC,
    DNS,
    FIN,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    PSH,
    RST,
    SYN,
    URG,
    Lab,
    Stream,
    Tcp,
    addr,
    arp,
    ether,
    icmp,
    internet_sum,
    ipv4,
    is_right,
    tcp,
    udp,
)
from tests.kit.port import POISON, SPENT, MemoryPort

OUTSIDE = "192.0.2.1"  # TEST-NET-1, RFC 5737: nobody is there
DEAF = 9  # discard: a port that nobody listens on
MORE = 0x2000  # more fragments


class Case(NamedTuple):
    """What a guest sends, and what the network says it was."""

    name: str
    frames: tuple[bytes, ...]
    malformed: dict[str, int]
    refused: dict[str, int]
    replies: tuple[str, ...] | None  # what may come back, by kind; None: anything that is clean


def bad(
    name: str, *frames: bytes, count: int | None = None, why: str, replies: tuple[str, ...] = ()
) -> Case:
    """Each frame is malformed for the same reason (or `count` of them are)."""
    return Case(name, frames, {why: len(frames) if count is None else count}, {}, replies)


def led_nowhere(name: str, *frames: bytes, why: str, replies: tuple[str, ...] = ()) -> Case:
    """Well formed, and refused."""
    return Case(name, frames, {}, {why: len(frames)}, replies)


def harmless(name: str, *frames: bytes, replies: tuple[str, ...] | None = None) -> Case:
    """Strange, lawful, and counted nowhere."""
    return Case(name, frames, {}, {}, replies)


# --- pieces ---------------------------------------------------------------------------------------


def echo_request(data: bytes, ident: int = 7) -> bytes:
    """An ICMP message, checksum included."""
    message = struct.pack("!BBHHH", 8, 0, 0, ident, 1) + data
    return message[:2] + (0xFFFF ^ internet_sum(message)).to_bytes(2, "big") + message[4:]


def fragment(
    payload: bytes, offset: int, more: bool, ident: int = 1, protocol: int = 1, **ip: Any
) -> bytes:
    """A frame with one fragment; `offset` in bytes."""
    return ether(
        ipv4(
            payload,
            protocol,
            GATEWAY,
            ident=ident,
            fragment=(MORE if more else 0) | offset >> 3,
            **ip,
        )
    )


def pieces(payload: bytes, size: int, ident: int = 1, protocol: int = 1) -> list[bytes]:
    return [
        fragment(payload[at : at + size], at, at + size < len(payload), ident, protocol)
        for at in range(0, len(payload), size)
    ]


def dhcp(
    options: bytes,
    *,
    op: int = 1,
    htype: int = 1,
    hlen: int = 6,
    mac: bytes = GUEST_MAC,
    cookie: bytes = b"\x63\x82\x53\x63",
    src: str = "0.0.0.0",
    keep: int | None = None,
) -> bytes:
    """A frame for the DHCP server; `keep`: so many bytes of the message."""
    message = (
        struct.pack("!BBBBIHH", op, htype, hlen, 0, 0x1234, 0, 0x8000)
        + bytes(16)
        + mac.ljust(16, b"\0")
        + bytes(192)
        + cookie
        + options
    )
    return udp(message[:keep], "255.255.255.255", 67, src=src, src_port=68)


def dns(
    question: bytes,
    *,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    more: bytes = b"",
    flags: int = 0x0100,
) -> bytes:
    """A frame with a DNS query."""
    return udp(struct.pack("!HH4H", 0xABCD, flags, *counts) + question + more, DNS, 53)


NAME = b"\7gateway\5slirp\x08internal\0"
A_IN = b"\0\1\0\1"
DISCOVER = b"\x35\1\1"


def edns(size: int, rdlen: int = 0, data: bytes = b"") -> bytes:
    return b"\0" + struct.pack("!HHIH", 41, size, 0, rdlen) + data


# --- the cases ------------------------------------------------------------------------------------

ETHERNET = [
    *(
        bad(
            f"CVE-2007-5729 frame of {size}",
            ether(ipv4(bytes(size - 34), 17, GATEWAY)),
            why="ethernet: longer than the link carries",
        )
        for size in (1515, 1519, 65535, 65550, 131072)
    ),
    bad(
        "frame of MTU + 15",
        udp(bytes(1473), GATEWAY, DEAF),
        why="ethernet: longer than the link carries",
    ),
    harmless("frame of MTU + 14", udp(bytes(1472), GATEWAY, DEAF), replies=("icmp",)),
    harmless("frame of MTU + 13", udp(bytes(1471), GATEWAY, DEAF), replies=("icmp",)),
    *(bad(f"runt of {size}", ether(b"")[:size], why="ethernet: truncated") for size in range(14)),
    *(
        led_nowhere(
            f"CVE-2020-29129 NC-SI of {size}", ether(bytes(size - 14), 0x88F8), why="ethertype"
        )
        for size in range(14, 31)
    ),
    led_nowhere("802.3 length field", ether(bytes(46), 46), why="ethertype"),
    led_nowhere("802.1Q tag", ether(b"\0\1" + ipv4(b"", 1, GATEWAY), 0x8100), why="ethertype"),
    bad(
        "source is a group",
        ether(ipv4(echo_request(b""), 1, GATEWAY), src=BROADCAST_MAC),
        why="ethernet: source is a group address",
    ),
    harmless(
        "another station's frame",
        ether(ipv4(echo_request(b""), 1, GATEWAY), dst=b"\x02" * 6),
        replies=(),
    ),
]

ARP = [
    *(
        bad(
            f"CVE-2020-29130 ARP frame of {size}",
            arp(1, GUEST, GATEWAY)[:size],
            why="arp: truncated",
        )
        for size in range(14, 42)
    ),
    *(
        bad(
            f"CVE-2020-29130 ARP {fixed}",
            arp(1, GUEST, GATEWAY, fixed=fixed),
            why="arp: not IPv4 over Ethernet",
        )
        for fixed in (
            (1, 0x0800, 5, 4),
            (1, 0x0800, 7, 4),
            (1, 0x0800, 255, 4),
            (1, 0x0800, 0, 4),
            (1, 0x0800, 6, 3),
            (1, 0x0800, 6, 16),
            (1, 0x0800, 6, 255),
            (6, 0x0800, 6, 4),
            (1, 0x86DD, 6, 4),
        )
    ),
    bad(
        "ARP sender is a group",
        arp(1, GUEST, GATEWAY, sender_mac=b"\x01" * 6, src=GUEST_MAC),
        why="arp: sender is a group address",
    ),
    harmless("ARP spoofs the gateway", arp(2, GATEWAY, GUEST), replies=()),
    harmless("ARP spoofs the DNS server", arp(2, DNS, GUEST), replies=()),
    harmless("ARP announces the gateway's address", arp(1, GATEWAY, GATEWAY), replies=("arp",)),
    harmless("ARP probes the gateway's address", arp(1, "0.0.0.0", GATEWAY), replies=("arp",)),
    harmless("ARP for nobody", arp(1, GUEST, "10.0.2.99"), replies=()),
    harmless(
        "ARP operation 0 and 65535", arp(0, GUEST, GATEWAY), arp(65535, GUEST, GATEWAY), replies=()
    ),
    harmless(
        "ARP reply flood beyond the table",
        *(arp(2, f"10.0.{n >> 8}.{n & 255}", GUEST) for n in range(2 << 8, (2 << 8) + 400)),
        replies=(),
    ),
]

IPV4 = [
    *(
        bad(
            f"version {version}",
            ether(ipv4(echo_request(b""), 1, GATEWAY, version=version)),
            why="ipv4: version",
        )
        for version in (0, 5, 6, 15)
    ),
    *(
        bad(
            f"IHL {ihl}",
            ether(ipv4(echo_request(b""), 1, GATEWAY, ihl=ihl)),
            why="ipv4: header length below 20",
        )
        for ihl in range(5)
    ),
    bad("IHL beyond the frame", ether(ipv4(bytes(8), 1, GATEWAY, ihl=15)), why="ipv4: truncated"),
    bad(
        "IHL beyond the total length",
        ether(ipv4(bytes(100), 1, GATEWAY, ihl=15, total=40)),
        why="ipv4: total length below the header's",
    ),
    *(
        bad(
            f"total length {total}",
            ether(ipv4(echo_request(bytes(20)), 1, GATEWAY, total=total)),
            why="ipv4: total length below the header's",
        )
        for total in (0, 1, 19)
    ),
    *(
        bad(
            f"CVE-2007-1321 total length {total}",
            ether(ipv4(echo_request(b""), 1, GATEWAY, total=total)),
            why="ipv4: total length beyond the frame",
        )
        for total in (29, 1500, 0x7FFF, 0x8000, 0xFFFF)
    ),
    *(
        bad(
            f"IPv4 frame of {14 + size}", ether(ipv4(b"", 1, GATEWAY)[:size]), why="ipv4: truncated"
        )
        for size in range(20)
    ),
    harmless(
        "padding behind the total length",
        ether(ipv4(echo_request(b"abc"), 1, GATEWAY) + b"PADDING" * 3),
        replies=("echo",),
    ),
    bad(
        "header checksum",
        ether(ipv4(echo_request(b""), 1, GATEWAY, checksum=0xBEEF)),
        why="ipv4: header checksum",
    ),
    *(
        bad(
            f"source {src}",
            ether(ipv4(echo_request(b""), 1, GATEWAY, src=src)),
            why="ipv4: source that no guest can have",
        )
        for src in (
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.2.255",
            GATEWAY,
            DNS,
            "240.1.1.1",
            "0.0.0.1",
        )
    ),
    *(
        led_nowhere(
            f"datagram to {dst}", udp(b"x", dst, 5353), why="destination that no packet may have"
        )
        for dst in (
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.251",
            "240.0.0.1",
            "255.255.255.255",
            "10.0.2.255",
        )
    ),
    led_nowhere(
        "a host that is not there",
        udp(b"x", "10.0.2.77", 1000),
        why="no such host on the network",
        replies=("icmp",),
    ),
    led_nowhere(
        "unknown protocol",
        ether(ipv4(b"abcdefgh", 253, OUTSIDE)),
        why="protocol",
        replies=("icmp",),
    ),
    led_nowhere(
        "unknown protocol, no payload",
        ether(ipv4(b"", 255, OUTSIDE)),
        why="protocol",
        replies=("icmp",),
    ),
    led_nowhere("IGMP to a group", ether(ipv4(bytes(8), 2, "224.0.0.22")), why="protocol"),
    harmless(
        "TTL 0 and 1 outward",
        udp(b"x", OUTSIDE, 7, ttl=0),
        udp(b"x", OUTSIDE, 7, ttl=1),
        icmp(8, 0, 1, b"x", OUTSIDE, ttl=1),
        tcp(SYN, OUTSIDE, 7, ttl=1),
        replies=("icmp",) * 4,
    ),
    harmless(
        "TTL 0 and 1 to the gateway",
        udp(b"x", GATEWAY, DEAF, ttl=0),
        udp(b"x", GATEWAY, DEAF, ttl=1),
        icmp(8, 0, 1, b"x", GATEWAY, ttl=0),
        replies=("echo", "icmp", "icmp"),
    ),
    harmless(
        "options: a source route",
        ether(ipv4(echo_request(b""), 1, GATEWAY, options=b"\x83\x07\x04" + addr(OUTSIDE) + b"\0")),
        replies=("echo",),
    ),
    harmless(
        "options of length 0",
        ether(ipv4(echo_request(b""), 1, GATEWAY, options=b"\x07\x00\x04\x00")),
        replies=("echo",),
    ),
]

_ping = echo_request(bytes(range(256)) * 8)  # 2,056 bytes
_overlap = [
    fragment(_ping[0:800], 0, True),
    fragment(_ping[400:1200], 400, True),
    fragment(_ping[1200:], 1200, False),
]
_different_ihl = echo_request(b"0123456789abcdef")

FRAGMENTS = [
    *(
        Case(
            f"CVE-2019-15890 overlap, order {order}",
            tuple(_overlap[n] for n in order),
            {
                "ipv4: overlapping fragments": 1,
                # Whatever comes after the two that contradict each other.
                "ipv4: fragment of a discarded datagram": int(order[2] == 2),
            },
            {},
            (),
        )
        for order in permutations(range(3))
    ),
    bad(
        "CVE-2019-15890 one covers all that is queued",
        fragment(bytes(8), 64, True),
        fragment(bytes(8), 80, True),
        fragment(bytes(1400), 0, True),
        count=1,
        why="ipv4: overlapping fragments",
    ),
    harmless(
        "duplicate last fragment",
        fragment(_ping[1480:], 1480, False),
        fragment(_ping[1480:], 1480, False),
        fragment(_ping[:1480], 0, True),
        replies=("fragment",) * 2,
    ),
    bad(
        "duplicate last fragment with other bytes",
        fragment(b"a" * 8, 1480, False),
        fragment(b"b" * 8, 1480, False),
        count=1,
        why="ipv4: overlapping fragments",
    ),
    harmless(
        "CVE-2018-11806 tiny first, huge later",
        fragment(_ping[:8], 0, True),
        fragment(_ping[8:1480], 8, True),
        fragment(_ping[1480:], 1480, False),
        replies=("fragment",) * 2,
    ),
    harmless("CVE-2020-1983 many small ones", *pieces(_ping, 8), replies=("fragment",) * 2),
    bad(
        "CVE-2020-1983 ping of death",
        fragment(bytes(1480), 65528, False),
        why="ipv4: fragment beyond 65535 bytes",
    ),
    bad(
        "empty fragment",
        fragment(b"", 0, True),
        fragment(b"", 8, False),
        why="ipv4: empty fragment",
    ),
    bad(
        "fragment of 7 bytes with more to come",
        fragment(bytes(7), 0, True),
        why="ipv4: fragment length",
    ),
    harmless(
        "DF and fragmented",
        *(
            ether(
                ipv4(
                    _ping[at : at + 1480],
                    1,
                    GATEWAY,
                    ident=3,
                    fragment=0x4000 | (MORE if at == 0 else 0) | at >> 3,
                )
            )
            for at in (0, 1480)
        ),
        replies=("fragment",) * 2,
    ),
    harmless(
        "thousands of incomplete datagrams",
        *(fragment(bytes(1400), 0, True, ident=n) for n in range(5000)),
        replies=(),
    ),
    harmless(
        "different IHL, the later one larger",
        fragment(_different_ihl[:8], 0, True),
        fragment(_different_ihl[8:], 8, False, options=b"\1" * 40),
        replies=("echo",),
    ),
    harmless(
        "different IHL, the first one larger",
        fragment(_different_ihl[:8], 0, True, options=b"\1" * 40),
        fragment(_different_ihl[8:], 8, False),
        replies=("echo",),
    ),
    harmless(
        "different IHL, last first",
        fragment(_different_ihl[8:], 8, False, options=b"\1" * 40),
        fragment(_different_ihl[:8], 0, True),
        replies=("echo",),
    ),
    bad(
        "TCP header in two fragments, flags in the second is nonsense",
        fragment(bytes(8), 0, True, protocol=6),
        fragment(bytes(16), 8, False, protocol=6),
        count=1,
        why="tcp: data offset below 20",
    ),
]

ICMP = [
    *(
        bad(
            f"ICMP of {size}",
            ether(ipv4(echo_request(b"")[:size], 1, GATEWAY)),
            why="icmp: truncated",
        )
        for size in range(8)
    ),
    bad("ICMP checksum", icmp(8, 0, 1, b"abc", GATEWAY, checksum=1), why="icmp: checksum"),
    harmless("echo without payload", icmp(8, 0, 1, b"", GATEWAY), replies=("echo",)),
    harmless(
        "echo of 65,507 bytes",
        *pieces(echo_request(bytes(range(251)) * 260), 1480),
        replies=("fragment",) * 45,
    ),
    *(
        led_nowhere(
            f"error with an inner packet of {size}",
            icmp(3, 3, 0, ipv4(bytes(8), 17, GUEST)[:size], GATEWAY),
            why="icmp type",
        )
        for size in (0, 1, 19, 20, 27, 28)
    ),
    led_nowhere(
        "error with an inner IHL of 15",
        icmp(3, 3, 0, b"\x4f" + bytes(27), GATEWAY),
        why="icmp type",
    ),
    led_nowhere(
        "redirect from a guest",
        icmp(5, 1, 0x0A000263, ipv4(bytes(8), 17, OUTSIDE), GATEWAY),
        why="icmp type",
    ),
    led_nowhere("unknown type", icmp(255, 255, 0, b"", GATEWAY), why="icmp type"),
    led_nowhere(
        "echo to the broadcast address",
        icmp(8, 0, 1, b"smurf", "10.0.2.255"),
        why="destination that no packet may have",
    ),
]

UDP = [
    bad(
        "CVE-2014-3640 source 0.0.0.0 port 0",
        udp(b"x", OUTSIDE, 7, src="0.0.0.0", src_port=0),
        why="udp: port 0",
    ),
    bad(
        "CVE-2014-3640 source 0.0.0.0",
        udp(b"x", OUTSIDE, 7, src="0.0.0.0"),
        why="udp: source address unspecified",
    ),
    bad("CVE-2014-3640 source port 0", udp(b"x", OUTSIDE, 7, src_port=0), why="udp: port 0"),
    bad("destination port 0", udp(b"x", GATEWAY, 0), why="udp: port 0"),
    *(
        bad(
            f"CVE-2021-3594 UDP of {size}",
            ether(ipv4(b"\x9c\x40\0\x07\0\x08\0"[:size], 17, GATEWAY)),
            why="udp: truncated",
        )
        for size in range(8)
    ),
    *(
        bad(
            f"CVE-2021-3594 length {length}",
            udp(b"abcd", GATEWAY, DEAF, length=length, checksum=0),
            why="udp: length below the header's",
        )
        for length in (0, 1, 7)
    ),
    *(
        bad(
            f"CVE-2021-3594 length {length}",
            udp(b"abcd", GATEWAY, DEAF, length=length, checksum=0),
            why="udp: length beyond the packet",
        )
        for length in (13, 0x7FFF, 0x8000, 0xFFFF)
    ),
    bad("UDP checksum", udp(b"abcd", GATEWAY, DEAF, checksum=0x1234), why="udp: checksum"),
    *(
        harmless(
            f"CVE-2020-7211 CVE-2021-3595 TFTP {data[:24]!r}",
            udp(data, GATEWAY, 69),
            replies=("icmp",),
        )
        for data in (
            b"",
            b"\0",
            b"\0\1",
            b"\0\1a",
            b"\0\1..\\..\\x\0octet\0",
            b"\0\1../x\0octet\0",
            b"\0\1a/../../x\0octet\0",
            b"\0\1/etc/passwd\0octet\0",
            b"\0\1x/\0octet\0",
            b"\0\1\0octet\0",
            b"\0\1x",
            b"\0\1" + b"x" * 600,
            b"\0\1C:\\x\0octet\0",
            b"\0\1x\0octet\0blksize\0",
            b"\0\1x\0octet\0blksize\x000\0",
            b"\0\1x\0octet\0blksize\x00-1\0",
            b"\0\1x\0octet\0blksize\x0099999999999\0",
            b"\0\1x\0octet\0tsize\x00999999999999\0",
            b"\0\5\0\0x\0",
            b"\0\4\0\1",
        )
    ),
]

_syn = {"dst": GATEWAY, "dst_port": DEAF}

TCP = [
    *(
        bad(
            f"TCP of {size}",
            ether(ipv4(tcp(SYN, GATEWAY, DEAF)[34 : 34 + size], 6, GATEWAY)),
            why="tcp: truncated",
        )
        for size in range(20)
    ),
    *(
        bad(
            f"data offset {words}",
            tcp(SYN, GATEWAY, DEAF, offset=words),
            why="tcp: data offset below 20",
        )
        for words in range(5)
    ),
    *(
        bad(
            f"data offset {words} of a bare header",
            tcp(SYN, GATEWAY, DEAF, offset=words),
            why="tcp: data offset beyond the segment",
        )
        for words in (6, 15)
    ),
    bad("TCP checksum", tcp(SYN, GATEWAY, DEAF, checksum=0x1234), why="tcp: checksum"),
    bad("port 0", tcp(SYN, GATEWAY, 0), tcp(SYN, GATEWAY, DEAF, src_port=0), why="tcp: port 0"),
    bad(
        "source 0.0.0.0",
        tcp(SYN, GATEWAY, DEAF, src="0.0.0.0"),
        why="tcp: source address unspecified",
    ),
    *(
        bad(name, tcp(flags, GATEWAY, DEAF), why="tcp: flags")
        for name, flags in {
            "SYN and FIN": SYN | FIN,
            "SYN and RST": SYN | RST,
            "null scan": 0,
            "xmas scan": FIN | PSH | URG,
            "only FIN": FIN,
            "all of them": 63,
        }.items()
    ),
    *(
        bad(f"destination {dst}", tcp(SYN, dst, 80), why="tcp: destination is a group")
        for dst in ("224.0.0.1", "255.255.255.255", "10.0.2.255", "239.1.1.1")
    ),
    *(
        bad(
            f"option {octets.hex()}",
            tcp(SYN, GATEWAY, DEAF, options=octets),
            why="tcp: option length",
        )
        for octets in (
            b"\x02\0\0\0",
            b"\x02\1\0\0",
            b"\x02\5\0\0",
            b"\x02\xff\0\0",
            b"\1\1\1\2",
            b"\3\0\0\0",
            b"\3\4\0\0",
            b"\x08\0\0\0",
            b"\x05\3\0\0",
            b"\x05\0\0\0",
            b"\xfe\0\0\0",
            b"\xfe\1\0\0",
            b"\xfe\x05\0\0",
        )
    ),
    harmless("refused port: RST", tcp(SYN, GATEWAY, DEAF), replies=("rst",)),
    harmless("ACK of no connection: RST", tcp(ACK, GATEWAY, DEAF, ack=77), replies=("rst",)),
    harmless("RST of no connection: silence", tcp(RST, GATEWAY, DEAF), replies=()),
    harmless(
        "data of no connection: RST",
        tcp(ACK | PSH, GATEWAY, DEAF, data=b"secret"),
        replies=("rst",),
    ),
    harmless("SYN with data", tcp(SYN, GATEWAY, DEAF, data=b"x" * 100), replies=("rst",)),
    led_nowhere(
        "loopback from the guest",
        tcp(SYN, "127.0.0.1", 22),
        why="destination that no packet may have",
    ),
    led_nowhere(
        "DNS address, another port",
        tcp(SYN, DNS, 80),
        why="no such service at the DNS address",
        replies=("rst",),
    ),
    *(
        harmless(
            f"MSS {mss}",
            tcp(SYN, GATEWAY, DEAF, options=b"\2\4" + mss.to_bytes(2, "big")),
            replies=("rst",),
        )
        for mss in (0, 1, 65535)
    ),
    *(
        harmless(
            f"window scale {shift}",
            tcp(SYN, GATEWAY, DEAF, options=b"\1\3\3" + bytes((shift,))),
            replies=("rst",),
        )
        for shift in (14, 15, 255)
    ),
]

DHCP = [
    *(
        bad(
            f"CVE-2021-3592 DHCP of {size}",
            dhcp(DISCOVER + b"\xff", keep=size),
            why="dhcp: truncated",
        )
        for size in (0, 1, 44, 235)
    ),
    bad(
        "CVE-2017-11434 option runs past the end",
        dhcp(DISCOVER + b"\x0c\xff" + b"a" * 8),
        why="dhcp: option length",
    ),
    bad(
        "CVE-2017-11434 option code is the last byte",
        dhcp(DISCOVER + b"\x0c"),
        why="dhcp: option without length",
    ),
    bad("CVE-2017-11434 no end", dhcp(DISCOVER), why="dhcp: no end option"),
    bad("CVE-2017-11434 nothing but padding", dhcp(bytes(60)), why="dhcp: no end option"),
    *(
        bad(f"hardware address length {hlen}", dhcp(DISCOVER + b"\xff", hlen=hlen), why=why)
        for hlen, why in (
            (0, "dhcp: hardware type"),
            (5, "dhcp: hardware type"),
            (16, "dhcp: hardware type"),
            (17, "dhcp: hardware address length"),
            (255, "dhcp: hardware address length"),
        )
    ),
    bad("hardware type", dhcp(DISCOVER + b"\xff", htype=6), why="dhcp: hardware type"),
    bad("op 2 from a guest", dhcp(DISCOVER + b"\xff", op=2), why="dhcp: op"),
    bad("op 0", dhcp(DISCOVER + b"\xff", op=0), why="dhcp: op"),
    bad(
        "hardware address is a group",
        dhcp(DISCOVER + b"\xff", mac=b"\xff" * 6),
        why="dhcp: hardware address",
    ),
    bad("message type from a server", dhcp(b"\x35\1\2\xff"), why="dhcp: message type"),
    bad("request for nothing", dhcp(b"\x35\1\3\xff"), why="dhcp: no address requested"),
    bad(
        "requested address of 3 bytes",
        dhcp(b"\x35\1\3\x32\3\x0a\0\2\xff"),
        why="dhcp: option size",
    ),
    harmless(
        "request outside the pool: NAK",
        dhcp(b"\x35\1\3\x32\4" + addr("192.168.1.5") + b"\xff"),
        replies=("dhcp",),
    ),
    harmless(
        "request for the gateway's address: NAK",
        dhcp(b"\x35\1\3\x32\4" + addr(GATEWAY) + b"\xff"),
        replies=("dhcp",),
    ),
    harmless(
        "request for the broadcast address: NAK",
        dhcp(b"\x35\1\3\x32\4" + addr("10.0.2.255") + b"\xff"),
        replies=("dhcp",),
    ),
]

DNS_CASES = [
    *(
        bad(f"DNS of {size}", udp(bytes(size), DNS, 53), why="dns: truncated")
        for size in (0, 1, 11)
    ),
    bad("no question", dns(b"", counts=(0, 0, 0, 0)), why="dns: question count"),
    bad("65,535 questions", dns(NAME + A_IN, counts=(65535, 0, 0, 0)), why="dns: question count"),
    bad("truncated name", dns(NAME[:5]), why="dns: truncated name"),
    bad("truncated question", dns(NAME + b"\0\1"), why="dns: truncated question"),
    bad("name without an end", dns(b"\x3f" + b"a" * 63 + b"\x3f"), why="dns: truncated name"),
    bad("compression loop onto itself", dns(b"\xc0\x0c" + A_IN), why="dns: compression pointer"),
    bad("compression loop of two", dns(b"\1a\xc0\x0c" + A_IN), why="dns: compression pointer"),
    bad("compression forward", dns(b"\xc0\xff" + A_IN), why="dns: compression pointer"),
    bad("label type 01", dns(b"\x41" + b"a" * 65 + b"\0" + A_IN), why="dns: label type"),
    bad(
        "name of 300 bytes",
        dns(b"".join(b"\x3b" + b"a" * 59 for _ in range(5)) + b"\0" + A_IN),
        why="dns: name length",
    ),
    bad("response instead of query", dns(NAME + A_IN, flags=0x8180), why="dns: response as query"),
    bad(
        "additional record that is not there",
        dns(NAME + A_IN, counts=(1, 0, 0, 1)),
        why="dns: truncated name",
    ),
    bad(
        "record longer than the message",
        dns(NAME + A_IN, counts=(1, 0, 0, 1), more=edns(1232, 500)),
        why="dns: truncated record",
    ),
    bad(
        "two EDNS records",
        dns(NAME + A_IN, counts=(1, 0, 0, 2), more=edns(512) * 2),
        why="dns: OPT record",
    ),
    *(
        harmless(
            f"EDNS size {size}",
            dns(NAME + A_IN, counts=(1, 0, 0, 1), more=edns(size)),
            replies=("dns",),
        )
        for size in (0, 1, 511, 65535)
    ),
    *(
        harmless(f"type {kind}", dns(NAME + kind.to_bytes(2, "big") + b"\0\1"), replies=("dns",))
        for kind in (0, 6, 12, 28, 252, 255, 65535)
    ),
    harmless("class 65535", dns(NAME + b"\0\1\xff\xff"), replies=("dns",)),
    harmless("opcode 15", dns(NAME + A_IN, flags=0x7900), replies=("dns",)),
]

CASES = [*ETHERNET, *ARP, *IPV4, *FRAGMENTS, *ICMP, *UDP, *TCP, *DHCP, *DNS_CASES]


# --- an established connection, and what is thrown at it ------------------------------------------


class Thrown(NamedTuple):
    """Frames into a connection that must not notice, or notice only as it says."""

    name: str
    frames: Callable[[Stream], list[bytes]]
    malformed: dict[str, int]


def thrown(name: str, *make: Callable[[Stream], bytes], **malformed: int) -> Thrown:
    return Thrown(
        name,
        lambda stream: [frame(stream) for frame in make],
        {why.replace("__", ": ").replace("_", " "): n for why, n in malformed.items()},
    )


def trailed(frame: bytes) -> bytes:
    return frame + b"TRAILING OCTETS"


UNNOTICED = [
    thrown("keepalive probe without bytes", lambda s: s.frame(ACK, seq=s.seq - 1)),
    thrown("keepalive probe with a byte", lambda s: s.frame(ACK, b"!", seq=s.seq - 1)),
    thrown("FIN behind a gap", lambda s: s.frame(FIN | ACK, seq=s.seq + 5000)),
    thrown("FIN of long ago", lambda s: s.frame(FIN | ACK, seq=s.seq - 70000)),
    thrown("data beyond the window", lambda s: s.frame(ACK, b"x" * 99, seq=s.seq + (1 << 26))),
    thrown("data of long ago", lambda s: s.frame(ACK, b"x" * 99, seq=s.seq - 5000)),
    thrown("ACK of what was never sent", lambda s: s.frame(ACK, b"x", ack=s.ack + 100000)),
    thrown("ACK of long ago", lambda s: s.frame(ACK, ack=s.ack - 100000)),
    thrown("RST outside the window", lambda s: s.frame(RST, seq=s.seq + (1 << 30), ack=0)),
    thrown("RST in the window, not next", lambda s: s.frame(RST, seq=s.seq + 100, ack=0)),
    thrown("RST of long ago", lambda s: s.frame(RST, seq=s.seq - 1, ack=0)),
    thrown("SYN in the window", lambda s: s.frame(SYN, seq=s.seq + 10)),
    thrown("the first SYN again", lambda s: s.frame(SYN, seq=5000, ack=0)),
    thrown("SYN and ACK", lambda s: s.frame(SYN | ACK, seq=s.seq)),
    thrown("duplicate ACKs by the hundred", *[lambda s: s.frame(ACK)] * 300),
    thrown("checksum", lambda s: s.frame(ACK | PSH, b"x", checksum=7), tcp__checksum=1),
    thrown(
        "option length", lambda s: s.frame(ACK, b"x", options=b"\2\0\0\0"), tcp__option_length=1
    ),
    thrown(
        "data offset",
        lambda s: s.frame(ACK, b"x", offset=15),
        tcp__data_offset_beyond_the_segment=1,
    ),
    thrown("no flags", lambda s: s.frame(0, b"x"), tcp__flags=1),
    thrown("SYN and FIN", lambda s: s.frame(SYN | FIN, b"x"), tcp__flags=1),
    thrown("no ACK", lambda s: s.frame(PSH, b"x"), tcp__flags=1),
    thrown("bytes behind the packet", lambda s: trailed(s.frame(ACK))),
    thrown("header cut short", lambda s: s.frame(ACK)[:50], ipv4__total_length_beyond_the_frame=1),
]

WITH_URGENT = [
    pytest.param(data, pointer, id=f"{len(data)} bytes, pointer {pointer}")
    for data in (b"", b"u", b"urgent data")
    for pointer in (0, 1, 2, 10, 11, 12, 32768, 65535)
]  # CVE-2026-9539


# --- the oracle -----------------------------------------------------------------------------------


class Around:
    """A TCP connection and a UDP flow that have to go on working."""

    def __init__(self, lab: Lab, echo: EchoServer) -> None:
        self._lab = lab
        self._echo = echo
        self._stream = lab.guest.connect((GATEWAY, echo.port))
        self._count = 0
        self.check()

    def check(self) -> None:
        """Both carry bytes there and back."""
        self._count += 1
        text = b"still here, %d" % self._count
        guest = self._lab.guest
        self._stream.send(text)
        guest.give(udp(text, GATEWAY, self._echo.port, src_port=41000))
        came = self._stream.received
        self._lab.turn(lambda: self._echo.pump() and len(came) >= len(text) and bool(guest.inbox))
        assert self._stream.receive(len(text)) == text
        assert [datagram.data for datagram in guest.datagrams()] == [text]


def kind_of(frame: bytes) -> str:
    """What a reply is, in a word."""
    if frame[12:14] == b"\x08\x06":
        return "arp"
    packet = is_right(frame)
    if packet.is_fragment:
        return "fragment"
    match packet.protocol:
        case 1:
            return "echo" if packet.payload[0] == 0 else "icmp"
        case 6:
            return "rst" if packet.payload[13] & RST else "tcp"
    return {67: "dhcp", 53: "dns"}.get(int.from_bytes(packet.payload[:2], "big"), "udp")


def assert_clean(frame: bytes, sent: Iterable[bytes]) -> None:
    """Nothing in the reply that the guest did not send, or that we did not mean to say."""
    for stale in (POISON, SPENT):
        assert bytes((stale,)) * 4 not in frame, f"stale memory in {frame.hex()}"
    kind = kind_of(frame)
    if kind == "icmp":
        quoted = frame[42:]
        everything = b"".join(sent)
        # The quote's own IP header may have been made again; what follows it is the guest's.
        assert quoted[28:] in everything, "an error quotes what the guest did not send"
    elif kind == "rst":
        assert len(frame) == 54, "a reset carries no data"


def run_case(case: Case, lab: Lab) -> list[bytes]:
    before = (lab.malformed(), lab.refused())
    replies: list[bytes] = []
    for frame in case.frames:
        replies += lab.exchange(frame)
    lab.turn(lambda: settled(case, replies, lab))
    counted = [
        {why: n - old.get(why, 0) for why, n in new.items() if n != old.get(why, 0)}
        for old, new in zip(before, (lab.malformed(), lab.refused()), strict=True)
    ]
    assert counted == [{why: n for why, n in case.malformed.items() if n}, case.refused], case.name
    return replies


def settled(case: Case, replies: list[bytes], lab: Lab) -> bool:
    """Errors from the host's kernel come a turn later."""
    replies += lab.guest.inbox
    lab.guest.inbox = []
    return case.replies is None or len(replies) >= len(case.replies)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_frame(case: Case) -> None:
    with EchoServer() as echo, Lab() as lab:
        around = Around(lab, echo)
        replies = run_case(case, lab)
        for frame in replies:
            assert_clean(frame, case.frames)
        if case.replies is not None:
            assert sorted(map(kind_of, replies)) == sorted(case.replies)
        around.check()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


def echoed(lab: Lab, echo: EchoServer, stream: Stream, count: int) -> bytes:
    """So many bytes that came back."""
    lab.turn(lambda: echo.pump() and len(stream.received) >= count)
    return stream.receive(count)


@pytest.mark.parametrize("case", UNNOTICED, ids=[case.name for case in UNNOTICED])
def test_hostile_segment_in_a_connection(case: Thrown, lab: Lab, echo: EchoServer) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port))
    stream.send(b"before")
    assert echoed(lab, echo, stream, 6) == b"before"
    for frame in case.frames(stream):
        lab.guest.give(frame)
    lab.turn()
    assert lab.malformed() == case.malformed
    stream.send(b"after")
    assert echoed(lab, echo, stream, 5) == b"after"
    assert not stream.got_reset
    assert not stream.got_fin
    assert not stream.received


def test_keepalive_probe_is_answered(lab: Lab, echo: EchoServer) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port))
    stream.segments.clear()
    lab.guest.give(stream.frame(ACK, seq=stream.seq - 1))
    lab.turn()
    assert [(s.flags, s.ack) for s in stream.segments] == [(ACK, stream.seq)]


@pytest.mark.parametrize(("data", "pointer"), WITH_URGENT)
def test_urgent_pointer_means_nothing(
    data: bytes, pointer: int, lab: Lab, echo: EchoServer
) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port))
    stream.put(ACK | PSH | URG, data, urgent=pointer)
    stream.send(b".after")
    assert echoed(lab, echo, stream, len(data) + 6) == data + b".after"


@pytest.mark.parametrize("order", ["in order", "reversed", "halves"])
@pytest.mark.parametrize("overlap", [0, 1, 700])
def test_segments_out_of_order(order: str, overlap: int, lab: Lab, echo: EchoServer) -> None:
    """libslirp 4.8.0: a list of segments was walked past its end."""
    data = bytes(range(256)) * 40
    stream = lab.guest.connect((GATEWAY, echo.port))
    base = stream.seq
    cuts = [(at, min(at + 1000 + overlap, len(data))) for at in range(0, len(data), 1000)]
    if order == "reversed":
        cuts.reverse()
    elif order == "halves":
        cuts = cuts[1::2] + cuts[::2]
    for start, stop in cuts:
        stream.put(ACK, data[start:stop], seq=base + start)
    stream.seq = base + len(data)
    assert echoed(lab, echo, stream, len(data)) == data
    assert not lab.malformed()


def test_fin_without_octets_ahead_of_the_data(lab: Lab, echo: EchoServer) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port))
    base = stream.seq
    stream.put(FIN | ACK, seq=base + 6)
    stream.put(ACK, b"def", seq=base + 3)
    stream.put(ACK, b"abc", seq=base)
    stream.seq = base + 7
    assert echoed(lab, echo, stream, 6) == b"abcdef"
    lab.turn(lambda: echo.pump() and stream.got_fin)
    assert stream.una == base + 7


def test_data_after_the_guests_fin_is_ignored(lab: Lab, echo: EchoServer) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port))
    stream.send(b"abc")
    assert echoed(lab, echo, stream, 3) == b"abc"
    stream.finish()
    stream.put(ACK | PSH, b"never", seq=stream.seq)
    lab.turn(lambda: echo.pump() and stream.got_fin)
    assert not stream.received


def test_sequence_numbers_wrap(lab: Lab, echo: EchoServer) -> None:
    stream = lab.guest.connect((GATEWAY, echo.port), iss=0xFFFFFF00)
    data = bytes(range(256)) * 16
    stream.send(data)
    assert echoed(lab, echo, stream, len(data)) == data


def test_replies_wait_and_the_guest_resets(lab: Lab, echo: EchoServer) -> None:
    """CVE-2017-13711: replies queued for a connection that is reset; then the same ports again."""
    stream = lab.guest.connect((GATEWAY, echo.port))
    lab.port.room = 0
    stream.put(ACK | PSH, b"x" * 1000)
    for _ in range(5):
        lab.turn()
        echo.pump()
    stream.reset()
    lab.turn()
    assert lab.network.stats()["tcp"]["flows"] == 0
    lab.guest._next_port = stream.port - 1
    again = lab.guest.open((GATEWAY, echo.port), iss=0x70000000)
    lab.turn()
    lab.port.grant(None)
    lab.turn(lambda: again.connected)
    assert again.port == stream.port
    again.send(b"anew")
    assert echoed(lab, echo, again, 4) == b"anew"
    assert not again.got_reset


def test_repeated_syn_does_not_disturb_a_connection_in_the_making(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        frame = tcp(SYN, GATEWAY, port, seq=9)
        for _ in range(3):
            lab.guest.give(frame)
        lab.turn(lambda: bool(lab.guest.inbox))
        answers = [Tcp.of(is_right(f).payload) for f in lab.guest.inbox]
        assert {a.flags for a in answers} == {SYN | ACK}
        assert len({a.seq for a in answers}) == 1
        assert lab.network.stats()["tcp"]["opened"] == 1


@pytest.mark.parametrize(
    ("port", "text"),
    [
        pytest.param(
            113,
            b"x" * 4000 + b"12,34:abc\r\n,\r\n1,\r\n",
            id="CVE-2019-6778 CVE-2019-9824 ident, endless and nonsense",
        ),
        pytest.param(21, b"PORT 10,0,2,15,4,1\r\nEPRT |1|10.0.2.15|5|\r\n", id="CVE-2020-8608 FTP"),
        pytest.param(
            6667,
            b"PRIVMSG a :\1DCC SEND f 167772687 5000 10\1\r\n\1DCC CHAT chat 167772687 1\1\r\n"
            b"\1DCC MOVE f 167772687 1 1\1\1DCC",
            id="CVE-2020-7039 DCC",
        ),
    ],
)
def test_no_application_is_looked_into(port: int, text: bytes, lab: Lab) -> None:
    """The bytes arrive as they were sent: there is no rewriting that could go wrong."""
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        pytest.skip(f"port {port}: {error.strerror}")
    with listener:
        listener.setblocking(False)
        stream = lab.guest.connect((GATEWAY, port))
        peer, _ = listener.accept()
        with peer:
            stream.send(text)
            assert peer.recv(8192, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == text


def test_initial_sequence_numbers_are_not_linked(echo: EchoServer) -> None:
    """CVE-2024-10026: neither a counter, nor a function of the addresses."""
    seen = set()
    for _ in range(2):
        with Lab() as lab:
            for _ in range(20):
                stream = lab.guest.connect((GATEWAY, echo.port))
                seen.add(stream.segments[0].seq >> 8)
    assert len(seen) > 35  # of 40, 24 bits each: a collision is rare, a pattern is not


def test_huge_first_fragment(echo: EchoServer) -> None:
    """CVE-2019-14378: a first fragment beyond any default buffer, then one more."""
    port = MemoryPort(max_frame=14 + 65521)
    with Lab(port, mtu=65521) as lab:
        around = Around(lab, echo)
        message = echo_request(bytes(range(256)) * 240)  # 61,448 bytes
        first = lab.exchange(fragment(message[:60000], 0, True))
        assert not first
        (reply,) = lab.exchange(fragment(message[60000:], 60000, False))
        assert is_right(reply).payload[8:] == message[8:]
        around.check()


def test_discover_flood_leaves_the_pool_to_others(lab: Lab, echo: EchoServer) -> None:
    around = Around(lab, echo)
    for number in range(2000):
        mac = b"\x02\0\0" + number.to_bytes(3, "big")
        lab.exchange(dhcp(DISCOVER + b"\xff", mac=mac))
    assert not lab.malformed()
    stats = lab.network.stats()["dhcp"]
    assert stats["discover"] == 2000
    assert stats["offer"] <= 240
    assert lab.network.leases() == []
    around.check()


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_dns_over_tcp_in_pieces(step: int, lab: Lab) -> None:
    stream = lab.guest.connect((DNS, 53))
    message = dns(NAME + A_IN)[42:]
    framed = len(message).to_bytes(2, "big") + message
    for at in range(0, len(framed), step):
        stream.put(ACK | PSH, framed[at : at + step])
        lab.turn()
    lab.turn(lambda: len(stream.received) > 2)
    answer = bytes(stream.received)
    assert int.from_bytes(answer[:2], "big") == len(answer) - 2
    assert answer[2:4] == message[:2]
    assert answer.endswith(addr(GATEWAY))


@pytest.mark.parametrize(
    "octets", [b"\0\0", b"\0\1a", b"\0\x0b" + bytes(11)], ids=["length 0", "length 1", "11 bytes"]
)
def test_dns_over_tcp_malformed(octets: bytes, lab: Lab, echo: EchoServer) -> None:
    around = Around(lab, echo)
    stream = lab.guest.connect((DNS, 53))
    stream.put(ACK | PSH, octets)
    lab.turn(lambda: stream.got_fin or stream.got_reset)
    assert sum(lab.malformed().values()) == 1
    assert not stream.received
    around.check()


@pytest.mark.parametrize("checksum", [None, 0])
def test_datagrams_without_octets_or_checksum(
    checksum: int | None, lab: Lab, echo: EchoServer
) -> None:
    lab.guest.give(udp(b"", GATEWAY, echo.port, checksum=checksum))
    lab.guest.give(udp(b"odd", GATEWAY, echo.port, checksum=checksum))
    lab.turn(lambda: echo.pump() and len(lab.guest.inbox) == 2)
    assert [datagram.data for datagram in lab.guest.datagrams()] == [b"", b"odd"]
    assert not lab.malformed()


@pytest.mark.parametrize("length", range(8, 12))
def test_octets_behind_a_datagram_stay_out(length: int, lab: Lab, echo: EchoServer) -> None:
    datagram = struct.pack("!HHHH", 40000, echo.port, length, 0) + b"abcXXXX"
    lab.guest.give(ether(ipv4(datagram, 17, GATEWAY) + b"PADDING"))
    lab.turn(lambda: echo.pump() and bool(lab.guest.inbox))
    assert lab.guest.datagrams()[0].data == b"abcX"[: length - 8]
