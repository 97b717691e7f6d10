"""Headers from templates, against scapy: every field, both checksums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from slirp.ip.ipv4 import IPV4
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP, Template
from slirp.tcp.segment import Emission
from slirp.wire.checksum import ones_sum
from tests.kit.guest import internet_sum

addrs = st.binary(min_size=8, max_size=8)
ports = st.binary(min_size=4, max_size=4)
payloads = st.binary(max_size=100) | st.integers(0, 3).map(lambda n: bytes(n))
emissions = st.builds(
    Emission,
    seq=st.integers(0, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 63),
    window=st.integers(0, 65535),
    options=st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
)


def template_of(addrs: bytes, ports: bytes, protocol: int) -> Template:
    return IPV4.template(addrs[:4], addrs[4:], ports, protocol)


def rebuilt(packet: IP, *layers: type) -> bytes:
    """The same packet, its sums computed by scapy."""
    for layer in (IP, *layers):
        del packet[layer].chksum
    return bytes(packet)


@given(addrs, ports, emissions, payloads)
def test_tcp(addrs: bytes, ports: bytes, emission: Emission, payload: bytes) -> None:
    template = template_of(addrs, ports, PROTOCOL_TCP)
    ip, transport = template.tcp(emission, len(payload), ones_sum((memoryview(payload),)))
    assert len(ip) == template.ip_len
    octets = ip + transport + payload
    packet = IP(octets)
    assert packet.src == ".".join(map(str, addrs[:4]))
    assert packet.dst == ".".join(map(str, addrs[4:]))
    assert (packet.ttl, packet.id, str(packet.flags), packet.len) == (64, 0, "DF", len(octets))
    segment = packet[TCP]
    assert segment.sport.to_bytes(2, "big") + segment.dport.to_bytes(2, "big") == ports
    assert (segment.seq, segment.ack, segment.window) == emission[0:2] + emission[3:4]
    assert int(segment.flags) == emission.flags
    assert segment.dataofs * 4 == 20 + len(emission.options)
    pseudo = addrs + b"\0\6" + (len(octets) - 20).to_bytes(2, "big")
    assert internet_sum(ip) == internet_sum(pseudo + octets[20:]) == 0xFFFF


@given(addrs, ports, st.integers(0, 2**32 - 1), payloads)
def test_tcp_as_scapy_has_it(addrs: bytes, ports: bytes, seq: int, payload: bytes) -> None:
    template = template_of(addrs, ports, PROTOCOL_TCP)
    emission = Emission(seq, 1, 16, 1000, b"")
    ip, transport = template.tcp(emission, len(payload), ones_sum((memoryview(payload),)))
    octets = ip + transport + payload
    assert rebuilt(IP(ip) / TCP(transport) / Raw(payload), TCP) == octets


@given(addrs, ports, payloads)
def test_udp(addrs: bytes, ports: bytes, payload: bytes) -> None:
    template = template_of(addrs, ports, PROTOCOL_UDP)
    ip, transport = template.udp(len(payload), ones_sum((memoryview(payload),)))
    octets = ip + transport + payload
    assert rebuilt(IP(ip) / UDP(transport) / Raw(payload), UDP) == octets
    assert transport[6:] != b"\0\0", "0 would say that there is no checksum"


def test_a_udp_sum_of_zero_is_sent_as_ones() -> None:
    template = template_of(bytes(8), b"\xff\xcf\0\0", PROTOCOL_UDP)
    payload = 0xFFFF - (17 + 8 + 0xFFCF + 8) % 0xFFFF
    _, transport = template.udp(0, payload)
    assert transport[6:] == b"\xff\xff"


@given(addrs, ports, emissions, st.integers(0, 60000))
def test_a_sum_that_is_left_to_the_port(
    addrs: bytes, ports: bytes, emission: Emission, length: int
) -> None:
    """The field holds the pseudo-header's sum, not complemented (virtio 1.2 §5.1.6.2)."""
    size = 20 + len(emission.options) + length
    _, transport = template_of(addrs, ports, PROTOCOL_TCP).tcp(emission, length, None)
    pseudo = addrs + b"\0\6" + size.to_bytes(2, "big")
    assert int.from_bytes(transport[16:18], "big") % 0xFFFF == internet_sum(pseudo) % 0xFFFF
    _, datagram = template_of(addrs, ports, PROTOCOL_UDP).udp(length, None)
    pseudo = addrs + b"\0\x11" + (8 + length).to_bytes(2, "big")
    assert int.from_bytes(datagram[6:8], "big") % 0xFFFF == internet_sum(pseudo) % 0xFFFF
