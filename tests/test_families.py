"""What is one address family's is behind that family's object, and nowhere else.

Read from the source (ast): a file of the packet's way that names something of IPv4's alone is one
of IPV4_FILES, or names the same of IPv6's beside it, since then it serves both. So a family that is
added finds no file that has to learn of it, but for those that list the families there are.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame
from slirp.host.dispatch import is_plain_datagram
from slirp.ip.family import Plain

ROOT: Final = Path(__file__).parent.parent

# What a frame or a datagram passes on its way; the edges (configuration, commands, namespaces) and
# the headers themselves (slirp/wire) are not of it.
PLACES: Final = ("slirp/flow.py", "slirp/switch.py", "slirp/stack.py", "slirp/tcp", "slirp/ip")
WAY: Final = sorted(
    path
    for place in (*PLACES, "slirp/host")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)

IPV4_FILES: Final = {
    "slirp/ip/ipv4.py": "its numbers and headers",
    "slirp/ip/ipv4_input.py": "its way in, with ARP and DHCP",
    "slirp/ip/ipv4_nat.py": "its addresses",
    "slirp/ip/arp.py": "how its neighbours are found",
    "slirp/ip/ipv4_fragments.py": "its fragments; IPv6 has a header for them",
    "slirp/ip/icmp.py": "its ICMP",
    "slirp/host/ipv4.py": "its sockets",
}
BOTH: Final = {"slirp/ip/offload.py": "cuts frames between guests, of either family"}
LISTS: Final = {
    "slirp/stack.py": "the families that guests have",
    "slirp/host/dispatch.py": "the families that sockets are opened in",
}
PROBES: Final = {"slirp/host/tcp_flow.py": "asks the kernel what its TCP can do, by any family"}

# What is IPv4's, and what IPv6 has in its place
PAIRS: Final = {
    "AF_INET": "AF_INET6",
    "IPPROTO_IP": "IPPROTO_IPV6",
    "IPPROTO_ICMP": "IPPROTO_ICMPV6",
    "IP_TTL": "IPV6_UNICAST_HOPS",
    "IP_RECVERR": "IPV6_RECVERR",
    "IP_MTU_DISCOVER": "IPV6_MTU_DISCOVER",
    "ETHERTYPE_IPV4": "ETHERTYPE_IPV6",
    "ETHERTYPE_ARP": "",
    "GSO_TCPV4": "GSO_TCPV6",
    "PROTOCOL_ICMP": "PROTOCOL_ICMPV6",
    "Ipv4Header": "Ipv6Header",
    "Template4": "Template6",
    "Nat4": "Nat6",
    "IPV4": "IPV6",
    "inet_aton": "",
    "inet_ntoa": "",
}
NUMBERS: Final = {"0x0800": "an Ethernet type", "0x45": "a version and IHL", "65507": "a length"}
TAKEN: Final = (28, 40)  # bytes of headers, as they were taken off an MTU


def names_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def findings(source: str) -> set[str]:
    """What a file says that only one family could."""
    tree = ast.parse(source)
    names = set(names_of(tree))
    found = {name for name, other in PAIRS.items() if name in names and other not in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            found |= {
                meaning for text, meaning in NUMBERS.items() if is_written(node, source, text)
            }
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            right = node.right
            if isinstance(right, ast.Constant) and right.value in TAKEN:
                found.add(f"- {right.value}")
    return found


def is_written(node: ast.Constant, source: str, text: str) -> bool:
    """Does the number stand there in this form? 2048 is no Ethernet type."""
    return type(node.value) is int and ast.get_source_segment(source, node) == text


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in WAY if name_of(p) not in IPV4_FILES], ids=name_of)
def test_a_file_of_no_family_says_nothing_of_ipv4s(path: Path) -> None:
    found = findings(path.read_text(encoding="utf-8"))
    if name_of(path) in LISTS:
        found -= {"IPV4"}
    if name_of(path) in BOTH:
        found -= {"a version and IHL"}
    if name_of(path) in PROBES:
        found -= {"AF_INET"}
    assert found == set()


@pytest.mark.parametrize("name", [*IPV4_FILES, *BOTH, *LISTS, *PROBES])
def test_each_exception_is_a_file(name: str) -> None:
    assert ROOT / name in WAY


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("room = mtu - 28", {"- 28"}),
        ("mss = config.mtu - 40", {"- 40"}),
        ("sock = socket.socket(socket.AF_INET, kind)", {"AF_INET"}),
        ("if ethertype == 0x0800: pass", {"an Ethernet type"}),
        ("from slirp.ip.ipv4 import Template4", {"Template4"}),
        ("from slirp.wire.virtio_net import GSO_TCPV4", {"GSO_TCPV4"}),
        ("sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)", {"IPPROTO_IP", "IP_RECVERR"}),
        ("SENDABLE = 2048", set()),
        ("found = AF_INET6 if ':' in text else AF_INET", set()),
        ("kind in (GSO_TCPV4, GSO_TCPV6)", set()),
        ("'socket.AF_INET in a text'", set()),
        ("room = family.udp_room(mtu)", set()),
    ],
)
def test_what_counts(source: str, found: set[str]) -> None:
    assert findings(source) == found


# That the seam is wide enough: IPv6's frames, read as a family that is not there yet would

PLAIN6: Final = Plain(
    unpack=struct.Struct("!12xI2xHBx36sIIHH").unpack_from,
    mask=0xFFFFF000,  # any traffic class
    mark=0x86DD6000,
    kinds=0xFF,
    base=54,
    least=74,
    transport_at=54,
    data_at=62,
    summed_to=14,
    addrs_at=22,
    hops_at=21,
    flags_at=13,  # 0x86DD: a bit that is set, since no router fragments
    sum_optional=False,
)


def frame6(transport: Packet, payload: bytes = b"") -> bytes:
    packet = IPv6(src="fd00::15", dst="2001:db8::1", tc=9, fl=0xFFFFF) / transport / Raw(payload)
    return bytes(Ether(dst="52:55:00:00:02:02") / packet)


def test_one_look_reads_a_segment_of_ipv6() -> None:
    octets = frame6(TCP(sport=1025, dport=80, seq=7, ack=9, flags="PA", window=512), b"payload")
    word, length, kind, key, *behind = PLAIN6.unpack(memoryview(octets))
    assert word & PLAIN6.mask == PLAIN6.mark
    assert (kind & PLAIN6.kinds, PLAIN6.base + length) == (6, len(octets))
    assert key == octets[22:54] + octets[54:58]
    assert behind == [7, 9, 5 << 12 | 0x18, 512]


@pytest.mark.parametrize(
    ("spoilt", "plain"), [(None, True), (25, False), (45, False), (61, False), (65, False)]
)
def test_a_datagram_of_ipv6_is_judged_by_its_sum(spoilt: int | None, plain: bool) -> None:
    octets = bytearray(frame6(UDP(sport=1025, dport=53), b"some payload"))
    if spoilt is not None:
        octets[spoilt] ^= 1
    head = memoryview(octets)
    word = PLAIN6.unpack(head)[4]
    frame = Frame(IoVec.of(octets), VNET_NONE)
    assert is_plain_datagram(PLAIN6, frame, head, len(octets), word) == plain


def test_a_datagram_of_ipv6_without_a_sum_takes_the_long_way() -> None:
    octets = bytearray(frame6(UDP(sport=1025, dport=53), b"some payload"))
    octets[60:62] = bytes(2)  # RFC 8200 §8.1: not to be accepted
    head = memoryview(octets)
    word = PLAIN6.unpack(head)[4]
    frame = Frame(IoVec.of(octets), VNET_NONE)
    assert not is_plain_datagram(PLAIN6, frame, head, len(octets), word)
