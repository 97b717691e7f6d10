"""Frames that a port with offloads left undone: judged by scapy and by the flat bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.ip.offload import FRAMES_MAX, finish
from slirp.wire.checksum import ones_sum, pseudo_sum
from slirp.wire.virtio_net import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VnetHeader,
)

V4 = IP(src="10.0.2.15", dst="10.0.2.16", id=0xFFFE, flags="DF")
V6 = IPv6(src="fd00::15", dst="fd00::16")


def undone(ip: Packet, transport: Packet, payload: bytes) -> bytes:
    """The frame as a kernel hands it over: the checksum field holds the pseudo-header's sum."""
    frame = bytearray(
        bytes(
            Ether(src="52:54:00:00:00:01", dst="52:54:00:00:00:02") / ip / transport / Raw(payload)
        )
    )
    start = 14 + len(ip)
    src, dst = (frame[26:30], frame[30:34]) if len(ip) == 20 else (frame[22:38], frame[38:54])
    kind, field = (6, 16) if transport.name == "TCP" else (17, 6)
    total = pseudo_sum(bytes(src), bytes(dst), kind, len(frame) - start)
    frame[start + field : start + field + 2] = total.to_bytes(2, "big")
    return bytes(frame)


def vnet(ip: Packet, transport: Packet, kind: int, size: int = 0) -> bytes:
    field = 16 if transport.name == "TCP" else 6
    start = 14 + len(ip)
    return VnetHeader(NEEDS_CSUM, kind, start + len(transport), size, start, field).emit()


def is_right(frame: bytes) -> bool:
    """Are all lengths and checksums what scapy would have made them?"""
    packet = Ether(frame)
    again = packet.copy()
    for layer in (IP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    for layer, name in ((IP, "len"), (IPv6, "plen"), (UDP, "len")):
        if layer in again:
            again[layer].delfieldval(name)
    return bytes(Ether(bytes(again))) == frame


@pytest.mark.parametrize("ip", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("transport", [TCP(sport=1, dport=2, flags="PA"), UDP(sport=1, dport=2)])
@given(payload=st.binary(max_size=300), at=st.integers(0, 300))
@settings(max_examples=20)
def test_a_checksum_is_finished(ip: Packet, transport: Packet, payload: bytes, at: int) -> None:
    frame = undone(ip, transport, payload)
    (done,) = finish(IoVec.of(frame[:at], frame[at:]), vnet(ip, transport, GSO_NONE))
    assert is_right(done)
    assert done[-len(payload) :] == payload or not payload


def test_a_finished_frame_stays_as_it_is() -> None:
    frame = bytes(Ether(dst="52:55:00:00:02:02") / V4 / TCP() / Raw(b"x" * 10))
    assert finish(IoVec.of(frame), bytes(10)) == [frame]
    data_valid = VnetHeader(2, 0, 0, 0, 0, 0).emit()
    assert finish(IoVec.of(frame), data_valid) == [frame]


@pytest.mark.parametrize(
    ("ip", "kind"),
    [(V4, GSO_TCPV4), (V4, GSO_TCPV4 | GSO_ECN), (V6, GSO_TCPV6)],
    ids=["v4", "v4-ecn", "v6"],
)
@given(payload=st.binary(min_size=1, max_size=400), size=st.integers(1, 410))
@settings(max_examples=30)
def test_a_large_segment_is_cut(ip: Packet, kind: int, payload: bytes, size: int) -> None:
    tcp = TCP(
        sport=1, dport=2, seq=0xFFFFFFF0, ack=7, flags="FPAC", options=[("Timestamp", (1, 2))]
    )
    frames = finish(IoVec.of(undone(ip, tcp, payload)), vnet(ip, tcp, kind, size))
    assert all(map(is_right, frames))
    packets = [Ether(frame)[TCP] for frame in frames]
    assert b"".join(bytes(p.payload) for p in packets) == payload
    assert {len(p.payload) for p in packets[:-1]} <= {size}
    seqs = [(0xFFFFFFF0 + n * size) % 2**32 for n in range(len(packets))]
    assert [p.seq for p in packets] == seqs
    assert all(p.options == packets[0].options for p in packets)
    assert ["F" in p.flags and "P" in p.flags for p in packets[:-1]] == [False] * (len(packets) - 1)
    assert {"F", "P", "A"} <= set(str(packets[-1].flags))
    assert ["C" in p.flags for p in packets] == [True] + [False] * (len(packets) - 1)
    if ip is V4:
        assert [Ether(f)[IP].id for f in frames] == [
            (0xFFFE + n) & 0xFFFF for n in range(len(frames))
        ]


@pytest.mark.parametrize("ip", [V4, V6], ids=["v4", "v6"])
@given(payload=st.binary(min_size=1, max_size=400), size=st.integers(1, 410))
@settings(max_examples=20)
def test_several_datagrams_are_parted(ip: Packet, payload: bytes, size: int) -> None:
    udp = UDP(sport=1, dport=2)
    frames = finish(IoVec.of(undone(ip, udp, payload)), vnet(ip, udp, GSO_UDP_L4, size))
    assert all(map(is_right, frames))
    datagrams = [bytes(Ether(frame)[UDP].payload) for frame in frames]
    assert datagrams == [payload[at : at + size] for at in range(0, len(payload), size)]


@pytest.mark.parametrize(
    ("frame", "header"),
    [
        (undone(V4, TCP(), b"x" * 50), vnet(V4, TCP(), GSO_TCPV6, 10)),
        (undone(V6, TCP(), b"x" * 50), vnet(V6, TCP(), GSO_TCPV4, 10)),
        (undone(V4, UDP(), b"x" * 50), vnet(V4, UDP(), GSO_TCPV4, 10)),
        (undone(V4, TCP(), b"x" * 50), vnet(V4, TCP(), GSO_UDP_L4, 10)),
        (undone(V4, TCP(), b"x" * 50), vnet(V4, TCP(), GSO_UDP, 10)),
        (undone(V4, TCP(), b"x" * 50), vnet(V4, TCP(), 77, 10)),
        (undone(V4, TCP(), b"x" * 50), vnet(V4, TCP(), GSO_TCPV4, 0)),
        (undone(V4, TCP(), b"x" * (FRAMES_MAX + 1)), vnet(V4, TCP(), GSO_TCPV4, 1)),
        (undone(V4, TCP(), b"x" * 50)[:40], vnet(V4, TCP(), GSO_TCPV4, 10)),
        (undone(V4, TCP(dataofs=15), b""), vnet(V4, TCP(), GSO_TCPV4, 10)),
        (undone(V4, TCP(dataofs=2), b"x" * 50), vnet(V4, TCP(), GSO_TCPV4, 10)),
        (undone(V4, TCP(), b"")[:50], vnet(V4, TCP(), GSO_NONE)),
    ],
)
def test_what_does_not_fit_together_is_malformed(frame: bytes, header: bytes) -> None:
    with pytest.raises(MalformedPacket):
        finish(IoVec.of(frame), header)


@given(
    st.binary(min_size=14, max_size=120),
    st.binary(min_size=10, max_size=10),
    st.sampled_from([GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4]),
    st.sampled_from([b"\x45", b"\x60", b"\x4f"]),
)
def test_any_octets_are_frames_or_malformed(
    octets: bytes, header: bytes, kind: int, version: bytes
) -> None:
    frame = octets[:14] + version + octets[14:]
    header = header[:1] + bytes((kind,)) + header[2:]
    try:
        frames = finish(IoVec.of(frame), header)
    except MalformedPacket:
        return
    assert len(frames) <= FRAMES_MAX


def test_the_sum_of_a_finished_segment_is_all_ones() -> None:
    frame = undone(V4, TCP(), b"odd")
    (done,) = finish(IoVec.of(frame), vnet(V4, TCP(), GSO_NONE))
    pseudo = pseudo_sum(done[26:30], done[30:34], 6, len(done) - 34)
    assert ones_sum((memoryview(done)[34:],), pseudo) == 0xFFFF
