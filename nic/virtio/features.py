"""Feature bits of a virtio network device, and what they mean for one that has them.

Bits are those of virtio 1.2 §5.1.3 (network) and §6 (rings, the standard). `OFFERED` is what this
device can do; the driver acknowledges some of it, and `Features` says what follows. Drivers differ:
Linux takes everything, an old one no VERSION_1 (then the header has 10 bytes and comes without the
count of buffers), boot firmware often no offload and no mergeable buffers.

The offloads towards the driver count in groups. Without GUEST_CSUM every checksum must be made;
without both of GUEST_TSO4 and GUEST_TSO6 no frame is larger than the MTU, since the stack has one
limit for both families.

MAC, STATUS, MTU and MQ are fields of the configuration space, which belongs to the emulator; the
device agrees to whatever it says there. `NET_CONFIG` is its beginning, for an emulator that asks.

Does not do: the control queue.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

CSUM: Final = 1 << 0  # the driver leaves checksums to the device
GUEST_CSUM: Final = 1 << 1  # … and the device to the driver
MTU: Final = 1 << 3
MAC: Final = 1 << 5
GUEST_TSO4: Final = 1 << 7
GUEST_TSO6: Final = 1 << 8
HOST_TSO4: Final = 1 << 11
HOST_TSO6: Final = 1 << 12
HOST_ECN: Final = 1 << 13
MRG_RXBUF: Final = 1 << 15
STATUS: Final = 1 << 16
GUEST_ANNOUNCE: Final = 1 << 21
MQ: Final = 1 << 22
GUEST_USO4: Final = 1 << 54
GUEST_USO6: Final = 1 << 55
HOST_USO: Final = 1 << 56

ANY_LAYOUT: Final = 1 << 27
INDIRECT_DESC: Final = 1 << 28
EVENT_IDX: Final = 1 << 29
VERSION_1: Final = 1 << 32
RING_PACKED: Final = 1 << 34

OFFERED: Final = (
    CSUM | GUEST_CSUM | MTU | MAC | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | HOST_ECN
    | MRG_RXBUF | STATUS | GUEST_ANNOUNCE | MQ | GUEST_USO4 | GUEST_USO6 | HOST_USO
    | ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED
)  # fmt: skip

NET_CONFIG: Final = Struct("<6sHHH")  # MAC address, status, pairs of rings at the most, MTU
LINK_UP: Final = 1  # of the status

FRAME_MAX: Final = 14 + 65535  # bytes: Ethernet header and the largest IP packet
HEADER_LEN: Final = 12  # bytes of struct virtio_net_hdr with num_buffers
LEGACY_HEADER_LEN: Final = 10


class Features:
    """What follows from the bits that the driver has acknowledged."""

    __slots__ = (
        "bits",
        "event_idx",
        "gso_tcp",
        "gso_udp",
        "header_len",
        "indirect",
        "mergeable",
        "offload",
        "packed",
    )

    def __init__(self, bits: int = 0) -> None:
        def has(wanted: int) -> bool:
            return bits & wanted == wanted

        self.bits = bits
        self.indirect = has(INDIRECT_DESC)
        self.event_idx = has(EVENT_IDX)
        self.packed = has(RING_PACKED)
        self.mergeable = has(MRG_RXBUF)
        self.header_len = HEADER_LEN if bits & (VERSION_1 | MRG_RXBUF) else LEGACY_HEADER_LEN
        self.offload = has(GUEST_CSUM)
        self.gso_tcp = has(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6)
        self.gso_udp = has(GUEST_CSUM | GUEST_USO4 | GUEST_USO6)

    def max_frame(self, mtu: int) -> int:
        """Bytes of the largest frame that the driver takes, where IP packets have `mtu`."""
        return FRAME_MAX if self.gso_tcp else 14 + mtu
