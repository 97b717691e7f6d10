"""What both families owe, asked of each in the same words. Their own files have the rest."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from slirp.address import addr_from_text
from slirp.flow import Cause, ends_of
from slirp.ip.family import Family
from slirp.ip.ipv4 import IPV4
from slirp.ip.ipv6 import IPV6
from slirp.ip.offload import finish
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from slirp.tcp.segment import Emission
from slirp.wire.checksum import ones_sum
from slirp.wire.virtio_net import VnetHeader

MAC = "52:55:00:00:02:02"
EMISSION = Emission(1000, 2000, 0x18, 4096, b"")
payloads = st.binary(min_size=1, max_size=200)


class Case(NamedTuple):
    """A family, and who is scapy's for it."""

    family: Family
    packet: Any
    ethertype: int
    guest: str
    far: str
    computed: tuple[str, ...]  # fields of the header that scapy computes

    @property
    def key(self) -> bytes:
        """Addresses and ports of the guest's direction."""
        ports = (1025).to_bytes(2, "big") + (80).to_bytes(2, "big")
        return addr_from_text(self.guest) + addr_from_text(self.far) + ports

    @property
    def link(self) -> bytes:
        """An Ethernet header."""
        return bytes(Ether(src="52:55:00:00:02:02", dst="52:54:00:00:00:01", type=self.ethertype))

    def remade(self, packet: Packet) -> bytes:
        """The packet, its lengths and sums computed by scapy."""
        again = packet.copy()
        for field in self.computed:
            again[self.packet].delfieldval(field)
        for layer in (TCP, UDP):
            if layer in again:
                del again[layer].chksum
        return bytes(again)

    def frame(self, transport: Packet, payload: bytes = b"", ethertype: int | None = None) -> bytes:
        """A guest's."""
        packet = self.packet(src=self.guest, dst=self.far) / transport / Raw(payload)
        return bytes(Ether(dst=MAC, type=ethertype or self.ethertype) / packet)

    def first_look(self, frame: bytes) -> tuple[int, int, bytes, int, int, int, int] | None:
        """As the dispatcher does it: protocol, end, key, words behind it; None: not plain."""
        plain = self.family.plain
        if len(frame) < plain.least:
            return None
        word, length, kind, key, *behind = plain.unpack(memoryview(frame))
        if word & plain.mask != plain.mark:
            return None
        return kind & plain.kinds, plain.base + length, key, *behind


CASES = (
    Case(IPV4, IP, 0x0800, "10.0.2.15", "192.0.2.1", ("chksum", "len")),
    Case(IPV6, IPv6, 0x86DD, "fd00::100", "2001:db8::1", ("plen",)),
)
each = pytest.mark.parametrize("case", CASES, ids=("IPv4", "IPv6"))


# Room


@each
@given(mtu=st.integers(1280, 65535))
def test_what_an_mtu_leaves_fills_a_packet(case: Case, mtu: int) -> None:
    family, ip = case.family, case.packet
    assert len(ip() / TCP() / Raw(bytes(family.mss(mtu)))) == mtu
    assert len(ip() / UDP() / Raw(bytes(family.udp_room(mtu)))) == mtu


# Headers towards the guest


@each
@given(payload=payloads)
def test_the_answering_flow_has_the_ends_exchanged(case: Case, payload: bytes) -> None:
    template = case.family.answering(case.key, PROTOCOL_TCP)
    headers = template.tcp(EMISSION, len(payload), ones_sum((memoryview(payload),)))
    packet = case.packet(b"".join((*headers, payload)))
    assert (packet.src, packet.dst) == (case.far, case.guest)
    assert (packet[TCP].sport, packet[TCP].dport) == (80, 1025)
    assert case.remade(packet) == b"".join((*headers, payload))


@each
@given(payload=payloads, size=st.integers(1, 60))
def test_a_super_segment_is_cut_by_its_header_into_right_frames(
    case: Case, payload: bytes, size: int
) -> None:
    headers = case.family.answering(case.key, PROTOCOL_TCP).tcp(EMISSION, len(payload), None)
    header_len = len(case.link) + sum(map(len, headers))
    vnet = case.family.tcp_vnet(header_len, size if len(payload) > size else 0)
    frames = finish(IoVec.of(case.link, *headers, payload), vnet)
    packets = [Ether(frame)[case.packet] for frame in frames]
    assert [bytes(packet) for packet in packets] == [case.remade(packet) for packet in packets]
    assert b"".join(bytes(packet[TCP].payload) for packet in packets) == payload
    assert [p[TCP].seq for p in packets] == [1000 + size * n for n in range(len(packets))]


@each
@given(payload=payloads, size=st.integers(1, 60))
def test_a_run_of_datagrams_is_cut_by_its_header_into_right_frames(
    case: Case, payload: bytes, size: int
) -> None:
    family = case.family
    headers = family.answering(case.key, PROTOCOL_UDP).udp(len(payload), None)
    vnet = family.udp_vnet(size) if len(payload) > size else family.udp_single
    frames = finish(IoVec.of(case.link, *headers, payload), vnet)
    packets = [Ether(frame)[case.packet] for frame in frames]
    assert [bytes(packet) for packet in packets] == [case.remade(packet) for packet in packets]
    assert [bytes(packet[UDP].payload) for packet in packets] == [
        payload[at : at + size] for at in range(0, len(payload), size)
    ]


@each
def test_the_lengths_of_a_datagrams_headers_are_those_of_its_segments(case: Case) -> None:
    family = case.family
    headers = family.answering(case.key, PROTOCOL_UDP).udp(5, None)
    assert family.udp_lengths == (len(case.link), *map(len, headers))
    assert sum(family.udp_lengths) == family.udp_headers
    vnet = VnetHeader.parse(family.udp_single)
    assert (vnet.hdr_len, vnet.csum_start) == (family.udp_headers, family.transport_at)


@each
def test_no_cause_is_without_a_number(case: Case) -> None:
    assert set(case.family.causes) == set(Cause)


# The first look


@each
@given(payload=st.binary(min_size=12, max_size=200))
def test_a_plain_datagram_is_read_at_one_look(case: Case, payload: bytes) -> None:
    frame = case.frame(UDP(sport=1025, dport=80), payload)
    found = case.first_look(frame)
    assert found is not None
    assert found[:3] == (PROTOCOL_UDP, len(frame), case.key)
    assert found[3] >> 16 == 8 + len(payload), "UDP's length"
    assert frame[case.family.plain.data_at :] == payload
    assert [end.port for end in ends_of(found[2])] == [1025, 80]


@each
@pytest.mark.parametrize("ethertype", [0x0806, 0x0800, 0x0801, 0x8100, 0x86DD, 0x86DE])
def test_another_ethernet_type_is_not_plain(case: Case, ethertype: int) -> None:
    frame = case.frame(TCP(sport=1025, dport=80), bytes(20), ethertype)
    assert (case.first_look(frame) is None) == (ethertype != case.ethertype)


@each
def test_a_tagged_frame_is_not_plain(case: Case) -> None:
    packet = case.packet(src=case.guest, dst=case.far) / TCP() / Raw(bytes(20))
    assert case.first_look(bytes(Ether(dst=MAC) / Dot1Q(vlan=1) / packet)) is None
