"""What a port with offloads left undone, done before a frame reaches one without.

A guest behind a TAP device leaves checksums and the cutting of large segments to whoever puts its
frames on a wire (slirp/wire/virtio_net.py says how). Between two such guests the frame and its
virtio-net header pass as they are; a guest behind a stream has nowhere to put that header, so a
frame for it is finished here: the checksum computed, a large TCP segment or several datagrams in
one cut into frames of the size that the sender asked for. Each gets the headers again with its own
lengths, identification, sequence number and flags: FIN and PSH on the last, CWR on the first only.

Everything read here is what a guest wrote: offsets that lead outside the frame, or headers that
are not what the virtio-net header says, are `MalformedPacket`.

Does not do: GSO_UDP (fragmentation by the receiver; the kernel stopped sending it), IP options and
extension headers in a frame that is to be cut.
"""

from __future__ import annotations

from typing import Final

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.wire.checksum import checksum, ones_sum, pseudo_sum
from slirp.wire.virtio_net import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VnetHeader,
)

FRAMES_MAX: Final = 1024  # frames that one may become; a guest that asks for more is refused
ETHERNET_LEN: Final = 14
IPV4_LEN: Final = 20
IPV6_LEN: Final = 40
TCP: Final = 6
UDP: Final = 17
UDP_LEN: Final = 8
TCP_LEN: Final = 20  # without options
FIN_PSH: Final = 0x09
CWR: Final = 0x80


def finish(frame: IoVec, vnet: bytes) -> list[bytes]:
    """The frame as a wire carries it: one with its checksum, or several."""
    size = len(frame)
    header = VnetHeader.parse(vnet, size)
    octets = bytearray(bytes(frame))
    if header.gso_type == GSO_NONE:
        if header.flags & NEEDS_CSUM:
            start, field = header.csum_start, header.csum_start + header.csum_offset
            octets[field : field + 2] = _field(checksum((memoryview(octets)[start:],)))
        return [bytes(octets)]
    return _cut(bytes(octets), header)


def _field(value: int) -> bytes:
    # All ones stands for zero in UDP and is the same number in TCP.
    return (value or 0xFFFF).to_bytes(2, "big")


def _cut(octets: bytes, header: VnetHeader) -> list[bytes]:
    kind = header.gso_type & ~GSO_ECN
    start = ETHERNET_LEN + _ip_len(octets, kind)
    protocol = UDP if kind == GSO_UDP_L4 else TCP
    payload_at = start + _transport_len(octets, start, protocol)
    step = header.gso_size
    if len(octets) - payload_at > FRAMES_MAX * step:
        raise MalformedPacket("virtio-net", "too many segments")
    pieces = [octets[at : at + step] for at in range(payload_at, len(octets), step)] or [b""]
    frames = []
    for index, piece in enumerate(pieces):
        head = bytearray(octets[start:payload_at])
        ip = _ip(octets[ETHERNET_LEN:start], index, len(head) + len(piece))
        if protocol == TCP:
            _set_tcp(head, index * step, first=not index, last=index == len(pieces) - 1)
        else:
            head[4:6] = (UDP_LEN + len(piece)).to_bytes(2, "big")
        _set_checksum(head, ip, protocol, piece)
        frames.append(b"".join((octets[:ETHERNET_LEN], ip, head, piece)))
    return frames


def _transport_len(octets: bytes, start: int, protocol: int) -> int:
    """Bytes of the header at `start`, which is to be of this protocol."""
    named = octets[ETHERNET_LEN + (9 if start == ETHERNET_LEN + IPV4_LEN else 6)]
    least = UDP_LEN if protocol == UDP else TCP_LEN
    if named == protocol and len(octets) >= start + least:
        length = UDP_LEN if protocol == UDP else octets[start + 12] >> 2 & 60
        if length >= least and start + length <= len(octets):
            return length
    raise MalformedPacket("virtio-net", "not what its segmentation says")


def _ip_len(octets: bytes, kind: int) -> int:
    """Bytes of the IP header, where it is a plain one of the version that `kind` says."""
    room = len(octets) - ETHERNET_LEN
    first = octets[ETHERNET_LEN] if room > 0 else 0
    if first == 0x45 and kind in (GSO_TCPV4, GSO_UDP_L4) and room > IPV4_LEN:
        return IPV4_LEN
    if first >> 4 == 6 and kind in (GSO_TCPV6, GSO_UDP_L4) and room > IPV6_LEN:
        return IPV6_LEN
    raise MalformedPacket("virtio-net", "not what its segmentation says")


def _ip(header: bytes, index: int, payload_len: int) -> bytes:
    ip = bytearray(header)
    if len(ip) == IPV6_LEN:
        ip[4:6] = payload_len.to_bytes(2, "big")
        return bytes(ip)
    ip[2:4] = (IPV4_LEN + payload_len).to_bytes(2, "big")
    ident = int.from_bytes(ip[4:6], "big") + index
    ip[4:6] = (ident & 0xFFFF).to_bytes(2, "big")
    ip[10:12] = bytes(2)
    ip[10:12] = checksum((memoryview(ip),)).to_bytes(2, "big")
    return bytes(ip)


def _set_tcp(head: bytearray, offset: int, *, first: bool, last: bool) -> None:
    seq = int.from_bytes(head[4:8], "big") + offset
    head[4:8] = (seq & 0xFFFFFFFF).to_bytes(4, "big")
    if not last:
        head[13] &= ~FIN_PSH & 0xFF
    if not first:
        head[13] &= ~CWR & 0xFF


def _set_checksum(head: bytearray, ip: bytes, protocol: int, piece: bytes) -> None:
    field = 16 if protocol == TCP else 6
    head[field : field + 2] = bytes(2)
    src, dst = (ip[12:16], ip[16:20]) if len(ip) == IPV4_LEN else (ip[8:24], ip[24:40])
    total = pseudo_sum(src, dst, protocol, len(head) + len(piece))
    total = ones_sum((memoryview(head), memoryview(piece)), total)
    head[field : field + 2] = _field(0xFFFF ^ total)
