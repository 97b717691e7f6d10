"""The header in front of a frame on a TAP device or virtqueue: virtio 1.2 §5.1.6.

     0     1     2       4       6       8       10
    +-----+-----+-------+-------+-------+-------+
    |flags|gso_t|hdr_len|gso_siz|cs_strt|cs_offs|   little endian
    +-----+-----+-------+-------+-------+-------+

With NEEDS_CSUM the field at csum_start + csum_offset holds the pseudo-header's sum, and whoever
puts the frame on a wire sums from csum_start to the end. With a gso_type the frame is one large
segment, to be cut into pieces of gso_size bytes of payload.

Little endian is what virtio 1.x says; a TAP device uses the host's order unless it is told
otherwise (TUNSETVNETLE), which is the same on the hosts where Linux guests mostly run.

Does not do: num_buffers, the two bytes that a virtqueue with mergeable buffers appends.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 10  # bytes

NEEDS_CSUM: Final = 1  # flags
DATA_VALID: Final = 2

GSO_NONE: Final = 0  # gso_type
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3  # fragmentation of a datagram, deprecated
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5  # segmentation into datagrams
GSO_ECN: Final = 0x80  # a bit beside the TCP types

_HEADER: Final = Struct("<BBHHHH")
_TYPES: Final = frozenset((GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4))


class VnetHeader(NamedTuple):
    flags: int
    gso_type: int
    hdr_len: int  # bytes of headers that each segment repeats; a hint
    gso_size: int  # bytes of payload per segment
    csum_start: int  # bytes from the frame's start
    csum_offset: int  # bytes from csum_start

    @classmethod
    def parse(cls, view: memoryview | bytes, frame_len: int | None = None) -> VnetHeader:
        """The first 10 bytes of `view`; where `frame_len` is known, offsets must be within it."""
        if len(view) < HEADER_LEN:
            raise MalformedPacket("virtio-net", "truncated")
        header = cls(*_HEADER.unpack_from(view))
        kind = header.gso_type & ~GSO_ECN
        if kind not in _TYPES:
            raise MalformedPacket("virtio-net", "unknown segmentation")
        if kind and not header.gso_size:
            raise MalformedPacket("virtio-net", "segments of no bytes")
        if frame_len is not None and header.flags & NEEDS_CSUM:
            field_end = header.csum_start + header.csum_offset + 2
            if field_end > frame_len:
                raise MalformedPacket("virtio-net", "checksum beyond the frame")
        return header

    def emit(self) -> bytes:
        return _HEADER.pack(*self)
